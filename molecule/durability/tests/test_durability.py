"""What Redis has acknowledged, and what of it is there after a power cut.

With DURABILITY_MARKDOWN the table is written to that file.

The data of Redis are on a disk of their own, a file. What has been written to that file and not to
Redis's file system alone is what a power cut leaves: so the cut is a copy of the file, in which
Redis starts again.
"""

import os
import re
import shlex
import statistics
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import lab as machinery
import pytest
from kit_fixtures import ROOT

BROKER, SENDER = "broker", "sender"
DATA, DISK = "/var/lib/celery-metal/redis", "/root/disk-{}.img"
MARKDOWN = os.environ.get("DURABILITY_MARKDOWN", "")
CUTS, ROUNDS = (5, 3) if MARKDOWN else (2, 1)
SECONDS = 5
# Sends to a queue that nobody takes, and writes a dot for each task that was acknowledged.
SEND = """
import os, time
from celery_metal_runtime import configure
from metal_sample.celery import app
from metal_sample.tasks import add
configure(app)
end = time.monotonic() + {seconds}
with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
    while time.monotonic() < end:
        add.apply_async((0, 0), queue={queue!r}, producer=producer, retry=False)
        os.write(1, b".")
"""
PAGE = """# What a power cut may take

Written by `make durability`: {cuts} power cuts for each `redis_durability`, while one Celery
producer on another host sends as fast as it can.

{table}

*Lost* are tasks that were acknowledged to the producer and are not in Redis when it runs again, in
the worst of the cuts; *after* is how long the producer had been sending then. The rates are those
of one producer, which waits for each answer, and of 50 connections at once (redis-benchmark, 1 kB
each), in the same run; the percentage is of `none`. The disk decides what `always` costs: measure
on a host of yours.

- `always`: a task is on the disk before it is acknowledged.
- `everysec`, the default: Redis has the disk take what there is each second, and lets a slow one be
  late by another second.
- `none`: what the kernel has not written by itself, up to half a minute.

When Redis alone ends, by a crash or SIGKILL, all three lose nothing: the kernel has what it wrote.

A power cut may leave zeros at the end of Redis's file, with which Redis does not start
([redis#5177](https://github.com/redis/redis/issues/5177)). Its unit cuts them off first, and says
so in its journal; in this run it had to after {mended} of the {all} cuts. Should Redis still say
"Bad file format", its file has a hole before its end: copy `/var/lib/celery-metal/redis` and let
`redis-check-aof --fix` cut off what follows the hole, or take a [backup](backup.md).
"""
MENDED = "journalctl -u celery-redis -o cat | awk '/as a power cut leaves/ {n++} END {print n + 0}'"


def make_disk(lab):
    """Put Redis's data on a disk that is a file."""
    lab.run(
        BROKER, "apt-get update -qq && apt-get install -qq -y e2fsprogs >/dev/null", timeout=300
    )
    nodes = "; ".join(f"mknod /dev/loop{n} b 7 {n}" for n in range(32))
    lab.run(BROKER, f"mknod /dev/loop-control c 10 237; {nodes}; true")
    first = DISK.format("first")
    lab.run(BROKER, f"truncate -s 256M {first} && mkfs.ext4 -q {first}")
    lab.run(BROKER, f"systemctl stop celery-redis && mv {DATA} {DATA}.aside && mkdir {DATA}")
    mount(lab, first)
    lab.run(BROKER, f"cp -a {DATA}.aside/. {DATA} && sync && systemctl start celery-redis")


def mount(lab, image):
    # The loop device goes with the last mount of it, also when the host goes.
    lab.run(
        BROKER,
        f"loop=$(losetup --find --show {image}) && mount $loop {DATA} && losetup -d $loop",
    )


@pytest.fixture(scope="module", autouse=True)
def disk(lab):
    make_disk(lab)


@pytest.fixture(scope="module")
def measured(lab):
    """Each durability to what was measured, written at the end."""
    rows = {}
    yield rows
    if not MARKDOWN or len(rows) < 3:
        return
    base = rows["none"]
    lines = [
        "| `redis_durability` | acknowledged | lost | after, s | one, tasks/s | 50, tasks/s |",
        "|---" + "|--:" * 5 + "|",
    ]
    for name, row in rows.items():
        rates = [f"{row[key]:.0f} ({row[key] / base[key]:.0%})" for key in ("one", "many")]
        cells = (f"`{name}`", row["acknowledged"], row["lost"], SECONDS, *rates)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    mended = lab.run(BROKER, MENDED).strip()
    page = PAGE.format(cuts=CUTS, table="\n".join(lines), mended=mended, all=3 * CUTS)
    Path(ROOT, MARKDOWN).write_text(page)


@contextmanager
def sending(lab, queue, seconds):
    """A Celery producer on the other host; what it has written comes with its end."""
    code = SEND.format(queue=queue, seconds=seconds)
    words = ["podman", "exec", "celery-add_queue-1", "python", "-c", code]
    ssh = machinery.ssh(lab.lab, lab.lab.host(SENDER))
    with subprocess.Popen([*ssh, shlex.join(words)], stdout=subprocess.PIPE, text=True) as process:
        yield process


def acknowledged_before_a_cut(kit, lab, image, queue):
    """Cut the power of Redis while it is sent tasks; how many it had acknowledged."""
    used = lab.run(BROKER, f"losetup -nO BACK-FILE $(findmnt -no SOURCE {DATA})").strip()
    redis = kit.main_process(BROKER, "celery-redis")
    with sending(lab, queue, 600) as process:
        lab.wait_for(lambda: int(kit.redis(BROKER, "llen", queue)) > 0, 30, "the first task")
        time.sleep(SECONDS)  # this is the load
        # As it is at one moment: the kernel goes on writing by itself.
        copy = f"cp --sparse=always {used} {image} && cmp -s {used} {image}"
        lab.run(BROKER, f"kill -STOP {redis} && until {copy}; do :; done")
        # Its answer to the last task may be on its way.
        lab.run(SENDER, f"sleep 0.2; pkill -f {queue}")
        answers = process.communicate(timeout=30)[0]
    lab.run(BROKER, f"kill -KILL {redis}; systemctl stop celery-redis; umount {DATA}")
    mount(lab, image)
    lab.run(BROKER, f"rm {used} && systemctl start celery-redis")
    return answers.count(".")


def rate_of_one(kit, lab, queue):
    """Tasks per second that one Celery producer gets acknowledged."""
    with sending(lab, queue, SECONDS) as process:
        sent = process.communicate(timeout=60)[0].count(".")
    kit.redis(BROKER, "del", queue)
    return sent / SECONDS


def rate_of_many(kit, lab):
    """Tasks per second that 50 connections at once get acknowledged."""
    password = kit.password(BROKER, "admin")
    words = "-c 50 -n 20000 -d 1024 -q --csv -t lpush"
    line = f"redis-benchmark -s /run/redis/redis.sock --user admin -a {password} {words}"
    found = lab.run(BROKER, f"podman exec celery-redis {line}", timeout=300)
    kit.redis(BROKER, "del", "mylist")
    return float(re.search(r'"LPUSH[^"]*","([\d.]+)"', found)[1])


@pytest.mark.parametrize("durability", ["always", "everysec", "none"])
def test_what_a_power_cut_takes(kit, lab, measured, durability):
    kit.play(redis_durability=durability)
    acknowledged = lost = 0
    for number in range(CUTS):
        queue = f"cut-{durability}-{number}"
        sent = acknowledged_before_a_cut(kit, lab, DISK.format(queue), queue)
        there = int(kit.redis(BROKER, "llen", queue))
        print(f"{queue}: {sent} acknowledged, {there} there")
        assert sent > 100
        acknowledged, lost = acknowledged + sent, max(lost, sent - there)
        kit.redis(BROKER, "del", queue)
    ones = [rate_of_one(kit, lab, f"rate-{number}") for number in range(ROUNDS)]
    many = [rate_of_many(kit, lab) for _ in range(ROUNDS)]
    measured[durability] = {
        "acknowledged": acknowledged,
        "lost": lost,
        "one": statistics.median(ones),
        "many": statistics.median(many),
    }
    print(durability, measured[durability])
    if durability == "always":
        assert lost == 0
    if durability == "none":
        # Else the cut is none: nothing but the kernel has written, and it takes its time.
        assert lost > 0


def test_zeros_that_a_cut_has_left_keep_redis_from_nothing(kit, lab):
    kit.redis(BROKER, "lpush", "there", "a task")
    before = int(lab.run(BROKER, MENDED))
    lab.run(BROKER, "systemctl stop celery-redis")
    lab.run(BROKER, f"truncate -s +158 $(ls {DATA}/appendonlydir/*.incr.aof | tail -n 1)")
    lab.run(BROKER, "systemctl start celery-redis")
    assert kit.redis(BROKER, "lrange", "there", "0", "-1") == "a task"
    assert int(lab.run(BROKER, MENDED)) == before + 1
