"""The parts of pools.py that need no workers."""

from __future__ import annotations

import pathlib

import pools


def one(tasks: int, cpu: float, concurrency: int = 20) -> pools.Measured:
    return pools.Measured("gevent", concurrency, tasks, 2.0, cpu, cpu)


def test_a_worker_that_stalls_misses_its_target():
    stalled = one(tasks=14, cpu=0.01)
    assert round(stalled.ratio, 3) == 0.018
    assert pools.missed([stalled, one(tasks=780, cpu=1.0)]) == ["gevent 20"]


def test_a_main_process_without_time_left_counts_as_the_limit():
    busy = one(tasks=1600, cpu=1.9, concurrency=100)
    assert busy.allowed == 2000
    assert round(busy.ratio, 2) == 0.95
    assert one(tasks=1, cpu=0.0).possible == float("inf")


def test_the_machine_is_a_limit_too():
    full = pools.Measured("prefork", 100, 900, 1.0, 0.5, 1.0 * pools.CPUS)
    assert full.ratio == 1.0


def test_the_table_has_a_line_for_each_worker():
    assert "gevent            20    390.0      400           780   0.97" in pools.table(
        [one(tasks=780, cpu=1.0)]
    )


def test_a_page_keeps_what_another_program_writes(tmp_path: pathlib.Path):
    page = tmp_path / "bench.md"
    assert pools.kept(page) == ""
    page.write_text("# Runs\n\nOne.\n")
    for number in ("1", "2"):
        new = pools.section(number, "pools.py", "today", "this")
        page.write_text(pools.merged(page.read_text(), new))
    text = page.read_text()
    assert text.startswith("# Runs\n\nOne.\n\n<!--")
    assert "```text\n2\n```" in text
    assert "```text\n1\n```" not in text
    assert text == f"# Runs\n\nOne.\n{pools.kept(page)}"
