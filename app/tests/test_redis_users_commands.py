"""Each command of Celery's command line, as each user: the table in docs/access.md."""

import re
import uuid
from pathlib import Path

import pytest
from runtime_lab import PATIENCE, Producer, base_environ, start_process, wait_until
from test_runtime_questions import CONTROL, QUESTIONS, celery, grant, heard, url_of

pytestmark = pytest.mark.versions

TABLE = re.compile(r"^\| Command \|.*\n\|[-|]+\n((?:\|.*\n)+)", re.M)
DOCUMENT = Path(__file__).parents[2] / "docs/access.md"
#: The columns: user, exchange, who may control workers, and whether these hear replies.
USERS = (
    ("worker", CONTROL, ["producer"], False),
    ("producer", CONTROL, ["producer"], False),
    ("producer", CONTROL, ["producer"], True),
    ("monitor", QUESTIONS, ["producer"], False),
    ("monitor", CONTROL, ["monitor"], False),
)
#: Each command as it is given, and what it prints when it works. A destination saves the time in
#: which more replies could come; without one kombu also looks for tasks that others have left.
COMMANDS = {
    "call TASK": ("call lab_app.inside --queue calls", "-"),
    "result ID": ("result {done}", "7"),
    "control revoke ID": ("control --timeout=2 revoke {id}", "flagged as revoked"),
    "control rate_limit TASK RATE": ("control {to} rate_limit lab_app.work 9/m", "new rate limit"),
    "inspect ping": ("inspect {to} ping", "pong"),
    "inspect active": ("inspect {to} active", "1 node online"),
    "status": ("status {to}", "1 node online"),
    "events --dump": ("events --dump", "heartbeat"),
    "purge": ("purge -f -Q left", "Purged 1 message"),
}


def promised():
    """Command to what becomes of it, as each user."""
    (rows,) = TABLE.findall(DOCUMENT.read_text())
    cells = [[one.strip() for one in row.strip("| ").split("|")] for row in rows.splitlines()]
    return {name.strip("`").removeprefix("celery "): outcomes for name, *outcomes in cells}


def end_of(server, user, exchange, words, works, folder):
    """How a command ends, in the words of the table."""
    if words.startswith("events"):  # which never ends
        shown, environ = folder / uuid.uuid4().hex, base_environ()
        environ |= {"LAB_URL": url_of(server, user), "LAB_EXCHANGE": exchange}
        process = start_process(
            "celery", ("-A", "stock_app", *words.split()), environ, folder, shown
        )
        wait_until(lambda: re.search("heartbeat|Connection lost", shown.read_text()), "a line")
        process.kill()
        process.wait()
        code, text = 0, shown.read_text()
    else:
        done = celery(server, user, exchange, words)
        code, text = done.returncode, done.stdout + done.stderr
    refused = [one for one in server.refused() if one.startswith(f"{user}: ")]
    server.client.acl_log_reset()
    ends = {
        "yes": (works in text and code == 0, False),
        "`NOPERM`": ("no permissions" in text and code != 0, True),
        "no reply": ("No nodes replied" in text and code != 0, False),
        "deletes nothing": ("No messages purged" in text, True),
        "never ends": ("Connection lost, attempting reconnect" in text, True),
    }
    found = [end for end, ok in ends.items() if ok == (True, bool(refused))]
    return found[0] if len(found) == 1 else f"{code}, {text[-300:]}, {refused}"


def test_each_command_ends_as_the_table_says(start, own_redis, tmp_path):
    worker = start("worker", "-E", server=own_redis).ready()
    heard(own_redis, worker)
    client, clients = own_redis.client, Producer(own_redis)
    done = clients.app.send_task("metal_sample.tasks.add", (3, 4), queue=worker.queue)
    assert done.get(timeout=PATIENCE) == 7
    promises, found, revoked = promised(), {name: [] for name in COMMANDS}, set()
    for column, (user, exchange, control, replies) in enumerate(USERS):
        grant(own_redis, *control, replies=replies)
        client.acl_log_reset()
        for name, (words, works) in COMMANDS.items():
            number = str(uuid.uuid4())
            client.delete("calls", "left")
            client.lpush("left", "a task")
            line = words.format(id=number, done=done.id, to=f"--destination={worker.node}")
            found[name].append(end_of(own_redis, user, exchange, line, works, tmp_path))
            is_done = promises[name][column] == "yes"
            assert client.llen("calls") == (is_done and name == "call TASK"), (user, name)
            assert client.llen("left") == (not is_done or name != "purge"), (user, name)
            revoked |= {number} if is_done and "revoke" in name else set()
    assert found == promises
    inspect = clients.operator.control.inspect([worker.node], timeout=PATIENCE, limit=1)
    assert {*inspect.revoked()[worker.node]} == revoked
