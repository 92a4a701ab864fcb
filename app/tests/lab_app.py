"""An app for the tests: it tells what runs it, and can be made to fail as workers do."""

import ctypes
import json
import os
import pkgutil
import signal
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from celery import Celery, bootsteps, chain, chord, group, signals
from celery.exceptions import Ignore, Reject
from celery.result import GroupResult, allow_join_result
from celery.worker.consumer.tasks import Tasks
from celery.worker.control import control_command
from kombu import Connection
from redis import Redis

app = Celery(
    "lab",
    broker="redis://broker.invalid:6379/0",
    backend="redis://results.invalid:6379/0",
    include=["metal_sample.tasks"],
)
# Short, so that the time in which kombu repairs a connection by itself is short too.
app.conf.broker_transport_options = {"health_check_interval": 1}
app.conf.update(json.loads(os.environ.get("LAB_CONF", "{}")))
if "LAB_PREFIX" in os.environ:
    _prefix = {"global_keyprefix": os.environ["LAB_PREFIX"]}
    app.conf.broker_transport_options |= _prefix
    app.conf.result_backend_transport_options = _prefix


class Flaky(bootsteps.StartStopStep):
    """Loses the connection before the tasks are set up, for as long as a file exists."""

    def start(self, consumer):
        if Path(os.environ["LAB_FLAKY"]).exists():
            raise ConnectionResetError("lost at once")


class Closing(bootsteps.StartStopStep):
    """Leaves a mark when the consumer has forgotten what the pool has not begun."""

    def close(self, consumer):
        Path(os.environ["LAB_CLOSED"]).touch()


NO_CAPABILITY = "CapEff:\t0000000000000000"
_status = Path("/proc/self/status").read_text()
if "LAB_WITHOUT_CAPABILITIES" in os.environ and NO_CAPABILITY not in _status:
    # As in a container; the tests run as root. See PR_CAPBSET_DROP in prctl(2), for what root
    # executes, and capset(2): version 3, this thread, no bits.
    _libc = ctypes.CDLL(None)
    for _number in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        assert not _libc.prctl(24, _number, 0, 0, 0)
    assert not _libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24))

if "LAB_FLAKY" in os.environ:
    Tasks.requires = (*Tasks.requires, Flaky)

if "LAB_CLOSED" in os.environ:
    app.steps["consumer"].add(Closing)

if os.environ.get("LAB_CONSTANTS"):
    for _name, _value in json.loads(os.environ["LAB_CONSTANTS"]).items():
        _owner, _, _constant = _name.rpartition(".")
        _owner = pkgutil.resolve_name(_owner)
        assert hasattr(_owner, _constant), _name
        setattr(_owner, _constant, _value)
    # The pauses between two attempts to connect, which are 2, 4, 6 ... s.
    _pauses = Connection._ensure_connection.__defaults__
    assert _pauses[2:5] == (2, 2, 30)
    Connection._ensure_connection.__defaults__ = (*_pauses[:2], 0.2, 0.2, 1.0, *_pauses[5:])


def end_this_process():
    """End a process of a pool in the middle of its task.

    Celery looks when the pipes close. If that is before the end, it looks again 5 s later: a fork
    keeps them open until then.
    """
    stat = Path(f"/proc/{os.getpid()}/stat")
    if not os.fork():
        with suppress(OSError):
            while stat.read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.001)
    os._exit(1)


@signals.task_prerun.connect
def break_down(**_):
    """An image whose tasks end their process."""
    if "LAB_BROKEN" in os.environ:
        end_this_process()


_lock = threading.Lock()
_crowd = {"now": 0, "peak": 0}


@app.task(bind=True)
def gather(self, folder, size):
    """Where this ran, and the most of these that have ever run at once in this process.

    None ends before so many of them have begun.
    """
    with _lock:
        _crowd["now"] += 1
        _crowd["peak"] = max(_crowd.values())
    Path(folder, self.request.id).touch()
    while len(os.listdir(folder)) < size:
        time.sleep(0.02)
    with _lock:
        _crowd["now"] -= 1
    return {"pid": os.getpid(), "thread": threading.get_native_id(), "peak": _crowd["peak"]}


@app.task
def work(seconds):
    """Take some time."""
    time.sleep(seconds)


@app.task
def stamp(path):
    """Work for a moment, and note when it began and ended."""
    begun = time.monotonic()
    time.sleep(0.05)
    with Path(path).open("a") as file:
        file.write(f"{begun} {time.monotonic()}\n")


@app.task
def constants(names):
    """What constants of the runtime are, in the process that this runs in."""
    return [pkgutil.resolve_name(f"celery_metal_runtime.{name}") for name in names]


@app.task
def fall():
    """A task that the worker's main process cannot take."""


@app.task
def kill_worker():
    """A task at a moment of which its worker is killed: when it is parsed, received, or run."""
    kill_main_process()


def kill_main_process():
    """Of the worker, in it or in a process of its pool; returns in none."""
    os.kill(MAIN_PID if os.getppid() == MAIN_PID else os.getpid(), signal.SIGKILL)
    time.sleep(60)


MAIN_PID = os.getpid()
_killed_at = os.environ.get("LAB_KILLED_AT")
if _killed_at == "parse":
    _transport = pkgutil.resolve_name("celery_metal_runtime.transport")
    _parse = _transport.parse

    def parse_to_death(item):
        """As where memory runs out."""
        if b"lab_app.kill_worker" in item:
            kill_main_process()
        return _parse(item)

    _transport.parse = parse_to_death


@signals.task_received.connect
def end_the_worker(request, **_):
    """As an app's own code may do there."""
    if request.name == fall.name:
        raise SystemExit(3)
    if request.name == kill_worker.name and _killed_at == "receive":
        kill_main_process()


@app.task
def run_out_of_memory():
    """Fail as a task does that asks for more than there is."""
    raise MemoryError("no more")


@app.task
def inside():
    """What a task sees of its process."""
    names = {name: os.environ.get(name) for name in ("NOTIFY_SOCKET", "CELERY_BROKER_URL")}
    return names | {"pid": os.getpid(), "threads": len(os.listdir("/proc/self/task"))}


@app.task
def notify(path, line):
    """Send a line to systemd, by a new socket and by all that this process has: what failed."""
    said = line.encode()
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as inherited:
            if (inherited.family, inherited.type) == (socket.AF_UNIX, socket.SOCK_DGRAM):
                inherited.send(said)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(said, path)
    except OSError as error:
        return type(error).__name__


@app.task
def shell(command):
    """The exit status of another program's."""
    return subprocess.run(["sh", "-c", command], check=False).returncode


@app.task
def spy_on(*pids):
    """The error's name, if any, of each way into the first of these that is not this process."""
    pid = next(pid for pid in pids if pid != os.getpid())
    libc, sizes = ctypes.CDLL(None, use_errno=True), [ctypes.c_size_t] * 6
    there = next(
        line for line in Path("/proc/self/maps").read_text().splitlines() if "[heap]" in line
    )
    address, here = int(there.partition("-")[0], 16), ctypes.create_string_buffer(8)
    mine, theirs = (
        struct.pack("QQ", where, len(here)) for where in (ctypes.addressof(here), address)
    )
    libc.process_vm_readv.argtypes = [ctypes.c_int, ctypes.c_char_p, *sizes[:1], ctypes.c_char_p]
    libc.process_vm_readv.argtypes += sizes[:2]

    def read_memory():
        if libc.process_vm_readv(pid, mine, 1, theirs, 1, 0) != len(here):
            raise OSError(ctypes.get_errno(), "process_vm_readv")

    def trace():
        seize, detach = 0x4206, 17
        if libc.ptrace(seize, pid, None, None):
            raise OSError(ctypes.get_errno(), "ptrace")
        libc.ptrace(detach, pid, None, None)

    def open_memory():
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(address)
            memory.read(8)

    ways = {
        "mem": open_memory,
        "process_vm_readv": read_memory,
        "ptrace": trace,
        "environ": lambda: open(f"/proc/{pid}/environ", "rb").close(),
        "cwd": lambda: os.readlink(f"/proc/{pid}/cwd"),
    }
    answers = {}
    for name, way in ways.items():
        try:
            way()
            answers[name] = ""
        except OSError as error:
            answers[name] = type(error).__name__
    return answers


def wait_for(path):
    """Return when there is a file of that name, or after an hour."""
    end = time.monotonic() + 3600
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.02)


@app.task
def touch(path):
    """Leave a mark, and another one when there is a file of the name with .go."""
    Path(path).write_text("begun")
    wait_for(f"{path}.go")
    Path(path).write_text("done")


@app.task
def count_later(path, go):
    """Leave a mark when there is a file of the other name, each time that this is done."""
    wait_for(go)
    count(path, 0)


@app.task
def count(path, seconds):
    """Leave a mark after some work, each time that it is done."""
    time.sleep(seconds)
    with Path(path).open("a") as file:
        file.write("done\n")


@app.task(bind=True)
def retry_once(self, path):
    """Runs twice, by a retry of its own."""
    with open(path, "a") as file:
        file.write("run\n")
    if not self.request.retries:
        raise self.retry(countdown=0)


@app.task(bind=True)
def retry_as_there_is_room(self, path, client):
    """The same, when Redis is full and has room from the moment when it has first refused."""

    def make_room(*_):
        Redis(**client).config_set("maxmemory", 0)

    with open(path, "a") as file:
        file.write("run\n")
    if not self.request.retries:
        raise self.retry(countdown=0, retry_policy={"errback": make_room, "interval_start": 0})


@app.task
def repeat(text, times):
    """A result of a length that is asked for."""
    return text * times


@app.task
def total(numbers):
    """The body of a chord."""
    return sum(numbers)


@app.task(bind=True)
def part(self, folder, number):
    """A header task with a value of its own for each run; see `die_once`.

    It waits until the one before has run again, which is then counted before this one.
    """
    if number:
        wait_for(f"{folder}/{number - 1}.again")
    note(f"{folder}/{number}", self.request.id)
    runs = len(Path(folder, str(number)).read_text().splitlines())
    if runs > 1:
        Path(folder, f"{number}.again").touch()
    return [number, runs]


@app.task
def collect(values, path):
    """The body of a chord, each run of which leaves a mark."""
    count(path, 0)
    return values


@signals.task_postrun.connect
def die_once(task, args, **_):
    """End the process that has run a header task once it is counted, and not acknowledged yet."""
    if task.name == part.name:
        mark = Path(args[0], f"{args[1]}.died")
        if not mark.exists():
            mark.touch()
            end_this_process()


@app.task(bind=True)
def grow_chord(self):
    """Add a task to the chord of this one."""
    self.add_to_chord(total.s([2]).set(queue=self.request.delivery_info["routing_key"]))
    return 1


@app.task(bind=True)
def replaced(self, how):
    """Have other tasks do what this one was asked for."""
    queue = self.request.delivery_info["routing_key"]
    one = total.s([1, 2]).set(queue=queue)
    ways = {
        "task": lambda: one,
        "chain": lambda: chain(total.si([1, 1]).set(queue=queue), one.set(immutable=True)),
        "group": lambda: group(one, one.clone()),
    }
    raise self.replace(ways[how]())


@app.task(bind=True)
def progress(self):
    """Report a state of its own, and return what can be read of it."""
    self.update_state(state="PROGRESS", meta={"done": 1})
    return self.AsyncResult(self.request.id).state


@app.task(bind=True)
def fan_out(self):
    """Use a canvas and its results in a task."""
    queue = self.request.delivery_info["routing_key"]
    one = total.s([1, 2]).set(queue=queue)
    with allow_join_result():
        sent = group(one, one.clone()).apply_async()
        sent.save()
        values = [sum(sent.get(timeout=60)), sum(sent.join(timeout=60))]
        restored = GroupResult.restore(sent.id, app=app)
        assert restored.successful()
        restored.forget()
        restored.delete()
        body = total.s().set(queue=queue)
        return [*values, chord([one, one.clone()], body)().get(timeout=60)]


@app.task(bind=True)
def fail(self, retries=0):
    """Fail, at the last of so many retries."""
    if self.request.retries < retries:
        raise self.retry(countdown=0)
    raise ValueError("failed")


@app.task
def note_failure(request, error, traceback, path):
    """An errback of the new style."""
    note(path, type(error).__name__)


@app.task
def trust_connections():
    """Have this process use its connections for results as if it had just looked at them."""
    idle = app.backend.client.connection_pool._available_connections
    for connection in idle:
        connection._parser.can_read = lambda timeout=0: False
    return bool(idle)


@app.task
def note(path, text):
    """Add a line to a file."""
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


@app.task
def die(path):
    """Leave a mark and end the process that this runs in."""
    count(path, 0)
    end_this_process()


@app.task
def slay(path):
    """Leave a mark and kill the main process of the worker."""
    count(path, 0)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


@app.task
def quit_as_errback(request, exc, traceback):
    """Celery calls this one in the process that learns of a failure."""
    raise SystemExit(3)


@app.task(bind=True)
def again(self, path):
    """Leave a mark and ask to be requeued, until a file of the name with .stop appears."""
    count(path, 0)
    if not Path(f"{path}.stop").exists():
        raise Reject(requeue=True)


@app.task
def tick(path):
    """Leave ten marks a second, until a file of the name with .stop appears."""
    while not Path(f"{path}.stop").exists():
        with Path(path).open("a") as file:
            file.write(".")
        time.sleep(0.1)


@control_command(args=[("seconds", int), ("hold_lock", bool)])
def block(state, seconds, hold_lock=False):
    """Block the consumer's loop; with the interpreter's lock held, every other thread as well."""
    (ctypes.PyDLL if hold_lock else ctypes.CDLL)(None).sleep(seconds)


@control_command(args=[("path", str)])
def hold_up(state, path):
    """Keep the consumer's loop from turning until the file that this makes is removed."""
    Path(path).touch()
    while Path(path).exists():
        time.sleep(0.05)


@control_command()
def deafen(state):
    """Have the loop turn without asking Redis for tasks, as after a reconnect gone wrong."""
    state.consumer.connection.transport.cycle._channels.clear()


@app.task(bind=True)
def end_by(self, outcome):
    """A task that ends in one of Celery's ways; or not by itself."""
    if outcome == "fail":
        raise ValueError(outcome)
    if outcome == "retry" and not self.request.retries:
        raise self.retry(countdown=0)
    if outcome in ("ignore", "reject"):
        raise {"ignore": Ignore(), "reject": Reject()}[outcome]
    if outcome == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if outcome == "hang":
        time.sleep(60)


@app.task
def litter(path, megabytes):
    """Write a file and be killed; the next time, leave it as it is."""
    if not Path(path).exists():
        Path(path).write_bytes(bytes(megabytes << 20))
        os.kill(os.getpid(), signal.SIGKILL)
