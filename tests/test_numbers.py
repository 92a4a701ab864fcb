"""Numbers that the pages promise are those of the code."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUNTIME = "celery_metal_runtime."
UTILS = "ansible.module_utils."
WORDS = {
    0.5: "half",
    3: "three",
    5: "five",
    10: "ten",
    900: "a quarter of an hour",
    3600: "an hour",
}

#: Page, its words, and the numbers in them, of a module.
NUMBERS: list[tuple[str, str, str, Callable[[Any], tuple[object, ...]]]] = [
    (
        "docs/safety.md",
        "was there at {} ends of a worker, or of a process",
        f"{RUNTIME}ledger",
        lambda m: (m.MOST_CRASHES + 1,),
    ),
    (
        "docs/safety.md",
        "has heard nothing of theirs for {:g} s",
        f"{RUNTIME}ledger",
        lambda m: (m.LEASE_SECONDS,),
    ),
    (
        "docs/safety.md",
        "was cut off for more than {:g} s",
        f"{RUNTIME}ledger",
        lambda m: (m.LEASE_SECONDS,),
    ),
    (
        "docs/safety.md",
        "a worker beats every {:g} s",
        f"{RUNTIME}ledger",
        lambda m: (m.BEAT_SECONDS,),
    ),
    (
        "docs/safety.md",
        "takes no tasks and ends with code {}",
        f"{RUNTIME}twins",
        lambda m: (m.EX_SOFTWARE,),
    ),
    (
        "docs/safety.md",
        "or another boot waits {:g} s whether",
        f"{RUNTIME}twins",
        lambda m: (m.WAIT_BEATS * module(f"{RUNTIME}ledger").BEAT_SECONDS,),
    ),
    (
        "docs/safety.md",
        "in its first and its last {} KiB",
        f"{RUNTIME}dead",
        lambda m: (m.LONGEST_HEADERS >> 10,),
    ),
    (
        "docs/safety.md",
        "is tried {} times in all, each at least {:g} s after the last",
        f"{RUNTIME}verdict",
        lambda m: (m.MOST_TRIES, m.PAUSE_SECONDS),
    ),
    (
        "docs/safety.md",
        "| all of it, as it is in Redis | {} MiB |",
        f"{RUNTIME}messages",
        lambda m: (m.LARGEST >> 20,),
    ),
    (
        "docs/safety.md",
        "| JSON {} MiB, msgpack {} MiB, YAML {} KiB without aliases, others {} MiB |",
        f"{RUNTIME}messages",
        lambda m: (
            m.LARGEST_BODY >> 20,
            m.LARGEST_OF_TYPE["application/x-msgpack"] >> 20,
            m.LARGEST_OF_TYPE[m.YAML] >> 10,
            m.LARGEST_OTHER >> 20,
        ),
    ),
    (
        "docs/safety.md",
        "| values in it | {:,}, nested {} levels deep |",
        f"{RUNTIME}messages",
        lambda m: (m.MOST_VALUES, m.DEEPEST),
    ),
    (
        "docs/safety.md",
        "| name, ID, group and the like | {} printable characters |",
        f"{RUNTIME}messages",
        lambda m: (m.LONGEST_NAME,),
    ),
    (
        "docs/safety.md",
        "| `retries` | {:,} | | interval of `celery.chord_unlock` | at least {} s |",
        f"{RUNTIME}messages",
        lambda m: (m.MOST_RETRIES, m.POLL_SECONDS),
    ),
    (
        "docs/safety.md",
        "and every {:g} s: so a worker that missed the broadcast knows of it {:g} s later",
        f"{RUNTIME}revokes",
        lambda m: (m.LOOK_SECONDS, m.LOOK_SECONDS),
    ),
    (
        "docs/safety.md",
        "A revoke is kept for {:g} hours, and {:,} of them at most",
        "celery.worker.state",
        lambda m: (m.REVOKE_EXPIRES / 3600, m.REVOKES_MAX),
    ),
    ("docs/safety.md", "The terminal shows the {} oldest", "celery_dead", lambda m: (m.MOST_ROWS,)),
    ("docs/safety.md", "at most {} MiB", "celery_dead", lambda m: (m.MOST_TEXT >> 20,)),
    (
        "docs/operating.md",
        "As it last told systemd, at most {:g} s ago",
        f"{RUNTIME}watch",
        lambda m: (m.STATUS_SECONDS,),
    ),
    (
        "docs/operating.md",
        "The search ends after {:g} s",
        f"{UTILS}celery_lists",
        lambda m: (m.LOOK_SECONDS,),
    ),
    (
        "docs/operating.md",
        "at most {} characters of each text",
        "fleet",
        lambda m: (m.MAX_TEXT,),
    ),
    (
        "docs/operating.md",
        "it is older than {} s or than Redis's last start",
        f"{UTILS}celery_signs",
        lambda m: (m.FRESH_SECONDS,),
    ),
    (
        "docs/operating.md",
        "a unit has waited for Redis for {} s",
        f"{UTILS}celery_up",
        lambda m: (m.LONG_SECONDS,),
    ),
    (
        "docs/operating.md",
        "it does not answer within {} s",
        "celery_lives",
        lambda m: (m.ERROR_SECONDS,),
    ),
    (
        "docs/operating.md",
        "A file has at most {} lines there and a task {}",
        "run_diff",
        lambda m: (m.MOST_OF_FILE, m.MOST_OF_TASK),
    ),
    (
        "docs/operating.md",
        "waits for it, for {} at most: one run at a time changes a host",
        f"{UTILS}celery_metal",
        lambda m: (WORDS[m.LOCK_SECONDS],),
    ),
    (
        "docs/operating.md",
        "The last {} versions of the app that worked stay on each host",
        f"{UTILS}celery_kept",
        lambda m: (WORDS[m.KEPT_VERSIONS],),
    ),
    (
        "README.md",
        "goes to any of the last {} versions",
        f"{UTILS}celery_kept",
        lambda m: (WORDS[m.KEPT_VERSIONS],),
    ),
    (
        "docs/queues.md",
        "is interrupted (SIGTERM, {:g} s later SIGKILL)",
        f"{RUNTIME}health",
        lambda m: (m.INTERRUPT_SECONDS,),
    ),
    (
        "docs/queues.md",
        "| + {} s | Podman's `StopTimeout`",
        "celery_worker",
        lambda m: (m.drain_chain(0)["stop_timeout"],),
    ),
    (
        "docs/queues.md",
        "| + {} s | systemd's `TimeoutStopSec`",
        "celery_worker",
        lambda m: (m.drain_chain(0)["timeout_stop_seconds"],),
    ),
    (
        "docs/queues.md",
        "and not below {}",
        "celery_worker",
        lambda m: (WORDS[m.LEAST_VISIBILITY_SECONDS],),
    ),
    (
        "docs/queues.md",
        "When such files fill {} of what was free",
        f"{RUNTIME}leftovers",
        lambda m: (WORDS[m.SHARE],),
    ),
    (
        "docs/queues.md",
        "the oldest running task began, and {:g} s ago or more",
        f"{RUNTIME}leftovers",
        lambda m: (m.QUIET_SECONDS,),
    ),
    (
        "docs/queues.md",
        "lead to the same after {:g} minutes",
        f"{RUNTIME}leftovers",
        lambda m: (m.REST_SECONDS / 60,),
    ),
    (
        "docs/queues.md",
        "as memory_per_process_mb, {} MB at most",
        "capacity",
        lambda m: (m.TMP_MB,),
    ),
    (
        "docs/queues.md",
        "automatic sizes shrink down to {} MB",
        "capacity",
        lambda m: (m.LEAST_TMP_MB,),
    ),
    (
        "docs/queues.md",
        "of tasks ahead, about {} KB each",
        f"{RUNTIME}ahead",
        lambda m: (m.BYTES_PER_TASK >> 10,),
    ),
    (
        "docs/queues.md",
        "`capacity_main_process_mb`; {} tasks at least",
        f"{RUNTIME}ahead",
        lambda m: (m.LEAST,),
    ),
    (
        "docs/queues.md",
        "it looks at each of them about {} times a second",
        f"{RUNTIME}transport",
        lambda m: (WORDS[1 / m.SEVERAL_SECONDS],),
    ),
]


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize(("page", "words", "name", "numbers"), NUMBERS)
def test_a_number_of_a_page_is_that_of_the_code(
    monkeypatch: pytest.MonkeyPatch,
    page: str,
    words: str,
    name: str,
    numbers: Callable[[Any], tuple[object, ...]],
) -> None:
    monkeypatch.syspath_prepend(ROOT / "app/runtime")
    promise = words.format(*numbers(module(name)))
    assert promise in " ".join((ROOT / page).read_text().split())
