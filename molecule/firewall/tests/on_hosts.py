"""Python that the tests run on hosts, which have nothing but the standard library."""

# Prints all open TCP ports of an address, as JSON.
SCAN = r"""
import json, resource, selectors, socket, sys, time

resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
address, found, left = sys.argv[1], [], list(range(1, 65536))
family = socket.AF_INET6 if ":" in address else socket.AF_INET
while left:
    some, left = left[:2000], left[2000:]
    waiting = selectors.DefaultSelector()
    for port in some:
        probe = socket.socket(family)
        probe.setblocking(False)
        probe.connect_ex((address, port))
        waiting.register(probe, selectors.EVENT_WRITE, port)
    end = time.monotonic() + 1
    while waiting.get_map() and (rest := end - time.monotonic()) > 0:
        for key, _ in waiting.select(rest):
            if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(key.data)
            waiting.unregister(key.fileobj)
            key.fileobj.close()
    for key in list(waiting.get_map().values()):
        key.fileobj.close()
print(json.dumps(sorted(found)))
"""

# Exit status 0 if a connection to an address and a port opens.
REACH = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)"

# Tries to connect to a port of addresses without end; writes how often, and which answered.
KNOCK = r"""
import socket, sys

path, port, addresses = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
number = 0
with open(path, "w") as file:
    while True:
        for address in addresses:
            number += 1
            try:
                socket.create_connection((address, port), 0.05).close()
                file.write(f"open {address}\n")
            except OSError:
                pass
            file.write(f"tried {number}\n")
            file.flush()
"""

# A connection to Redis as the user producer, whose certificate the tests put there.
_OPEN = r"""
import socket, ssl, sys

def opened(address, port):
    context = ssl.create_default_context(cafile="/root/ca.pem")
    context.load_cert_chain("/root/producer.pem")
    connection = socket.create_connection((address, int(port)), 5)
    return context.wrap_socket(connection, server_hostname=address)
"""

# Talks to Redis on one connection as long as that lives; writes how many answers there were.
TALK = (
    _OPEN
    + r"""
import time

with opened(*sys.argv[2:]) as connection:
    for number in range(1, 1000000):
        connection.sendall(b"PING\r\n")
        assert connection.recv(100)  # that it wants a password is an answer, too
        with open(sys.argv[1], "w") as file:
            file.write(str(number))
        time.sleep(0.05)
"""
)

# Sends commands to Redis on one connection: a line of standard input each, a JSON list of words.
SAY = (
    _OPEN
    + r"""
import json

def word(text):
    return b"$%d\r\n%s\r\n" % (len(text.encode()), text.encode())

with opened(*sys.argv[1:]) as connection:
    for line in sys.stdin:
        words = json.loads(line)
        connection.sendall(b"*%d\r\n" % len(words) + b"".join(map(word, words)))
        answer = connection.recv(1000)
        assert answer[:1] in b"+:$", answer
"""
)
