"""Each fault under load: no task is lost, and in a planned one none runs twice.

With FAULTS_MARKDOWN all faults, FAULTS_RUNS times in a row, and what was counted is written to that
file; else the usual ones, once.
"""

import dataclasses
import os
import time
from pathlib import Path
from uuid import uuid4

import effects
import pytest
from faults import FAR, FAULTS, NEAR, ROOT, after_full_disk, full_disk

MARKDOWN = os.environ.get("FAULTS_MARKDOWN", "")
RUNS = int(os.environ.get("FAULTS_RUNS") or 1)
CHOSEN = [one for one in FAULTS if MARKDOWN or one.usual]
SHORT = range(480) if MARKDOWN else range(180)
LONG = range(SHORT.stop, SHORT.stop + (20 if MARKDOWN else 6))
SEND = """
from celery_metal_runtime import configure
from metal_sample.celery import app
from metal_sample.tasks import record

configure(app)
with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
    for number in range({stop}):
        queue, seconds = ("short", 0.2) if number < {short} else ("long", 3)
        record.apply_async(({run!r}, number, seconds), queue=queue, producer=producer)
"""
LEFT = """
local left = redis.call('LLEN', 'short') + redis.call('LLEN', 'long')
for _, key in ipairs(redis.call('KEYS', 'celery-metal.held:*')) do
  left = left + redis.call('LLEN', key)
end
return left
"""
VERSIONS = """
import celery, kombu, redis
print(f"Celery {celery.__version__}, kombu {kombu.__version__}, redis-py {redis.__version__}")
"""
PAGE = """# Faults under load

Written by `make faults`. Two hosts, Redis and workers on one and workers on the other; {short}
tasks of 0.2 s and {long} of 3 s are sent, then the fault happens to it all. Each task adds an
element to a set in Redis when its work is done, once for each time that it ran; these are counted.
The pause is the longest time in which no short task was done.

All faults one after the other, {runs} times in a row: the tasks are those of all runs, the pause
and the restarted units those of the worst.

{table}

A planned fault may run no task twice. Where another may, and why:

{reasons}

The lab's hosts share the clock of the machine: the one that moves is that of the workers'
containers, by libfaketime. Their memory is limited by a cgroup of the machine, whose kernel ends
the process.

Versions: {versions}.
"""
rows: dict[str, list[effects.Counted]] = {}


@pytest.fixture(scope="module", autouse=True)
def page(lab):
    """Write what was counted, when all faults were, in each run."""
    yield
    counted = all(len(rows.get(one.name, ())) == RUNS for one in FAULTS)
    if not MARKDOWN or not counted:
        return
    versions = [
        lab.run(NEAR, ["podman", "exec", "celery-producer-1", "python", "-c", VERSIONS]),
        lab.run(
            NEAR,
            "echo Redis $(podman exec celery-redis redis-server --version | grep -o 'v=[0-9.]*')",
        ),
        lab.run(NEAR, "podman --version"),
        lab.run(NEAR, "systemctl --version | head -1"),
        lab.run(NEAR, ". /etc/os-release; echo $PRETTY_NAME"),
    ]
    table = {one.name: (one.planned, effects.together(rows[one.name])) for one in FAULTS}
    reasons = {one.why: [] for one in FAULTS if one.why}
    for one in FAULTS:
        if one.why:
            reasons[one.why].append(one.name)
    text = PAGE.format(
        short=len(SHORT),
        long=len(LONG),
        runs=RUNS,
        table="\n".join(effects.table(table)),
        reasons="\n".join(f"- {', '.join(names)}: {why}." for why, names in reasons.items()),
        versions=", ".join(" ".join(version.split()) for version in versions),
    )
    Path(ROOT, MARKDOWN).write_text(text)


@pytest.mark.parametrize("fault", CHOSEN, ids=lambda one: one.name)
@pytest.mark.parametrize("number", range(1, RUNS + 1))
def test_no_task_is_lost(number, fault, kit, lab, tmp_path):
    run = str(uuid4())
    units = {host: lab.invocation_ids(host, "celery-*.service") for host in (NEAR, FAR)}
    # The lab's hosts share the machine's kernel, and so its monotonic clock.
    begun = time.monotonic()
    text = SEND.format(run=run, stop=LONG.stop, short=SHORT.stop)
    lab.run(NEAR, ["podman", "exec", "celery-producer-1", "python", "-c", text])
    key = f"metal_sample.record:{run}"
    lab.wait_for(lambda: int(kit.redis(NEAR, "scard", key)) > 9, 30, "the load is on its way")
    try:
        fault.inject(kit, lab, tmp_path)
        lab.wait_for(
            lambda: kit.redis(NEAR, "eval", LEFT, "0") == "0", 300, "nothing waits, nothing runs"
        )
    finally:
        if fault.inject is full_disk:
            after_full_disk(lab)
    found = effects.count(kit.redis(NEAR, "smembers", key).splitlines(), LONG.stop, SHORT, begun)
    now = {host: lab.invocation_ids(host, "celery-*.service") for host in (NEAR, FAR)}
    restarted = sum(
        now[host].get(unit) != mark for host in units for unit, mark in units[host].items()
    )
    found = dataclasses.replace(found, restarted=restarted)
    rows.setdefault(fault.name, []).append(found)
    print(number, effects.table({fault.name: (fault.planned, found)})[2])
    journals = "\n".join(
        lab.journal(host, unit)
        for host in (NEAR, FAR)
        for unit in ("celery-short@1", "celery-long@1")
    )
    assert found.lost == 0, f"{found}\n{journals}"
    assert not (fault.planned and found.duplicates), f"{found}\n{journals}"
