"""A web process that sends a task for each request, and is reloaded as gunicorn is.

The first process has the socket. On SIGHUP it starts a second one that reads all anew, and ends
the earlier one when its requests are answered.
"""

import os
import signal
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer


def serve(listener, ready):
    from celery import Celery

    app = Celery("shop")
    app.conf.task_publish_retry_policy = {"max_retries": 100, "interval_max": 0.5}
    ends = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: ends.append(True))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            _, run, number = self.path.split("/")
            words = (run, int(number), 0.01)
            app.send_task("metal_sample.tasks.record", words, queue="add_queue", ignore_result=True)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(str(os.getpid()).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.timeout = 0.2
    os.close(ready)
    while not ends:
        server.handle_request()


def start(listener):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            serve(listener, write)
        finally:
            os._exit(0)
    os.close(write)
    os.read(read, 1)  # until the other end is closed
    os.close(read)
    return child


def main():
    signals = {signal.SIGHUP, signal.SIGTERM}
    listener = socket.create_server(("0.0.0.0", int(os.environ["PORT"])), backlog=64)
    listener.setblocking(False)
    child = start(listener)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    while signal.sigwait(signals) == signal.SIGHUP:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        earlier, child = child, start(listener)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        os.kill(earlier, signal.SIGTERM)
        os.waitpid(earlier, 0)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)


main()
