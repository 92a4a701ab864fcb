"""The parts of run.py that need no hosts."""

from __future__ import annotations

import json

import pytest
import run

OUTPUT = """
PLAY [Look] ********************************************************************

TASK [podman_host : Write celery.target, [sic] and the plan] *******************
ok: [few] =>
    msg: TASK [not a heading]

TASK [Skipped] *****************************************************************
skipping: [few]

PLAY RECAP *********************************************************************
few                        : ok=19   changed=5    unreachable=0    failed=0    skipped=5
localhost                  : ok=1    changed=2    unreachable=0    failed=0    skipped=0
"""


def a_run(seconds: float, *names: str, changed: int = 0) -> run.Run:
    tasks = [run.Task(name, seconds / (len(names) + 1)) for name in (run.STARTING, *names)]
    return run.Run(seconds, tuple(tasks), changed)


def results(
    few: list[run.Run], many: list[run.Run], restarted: list[str], commit: float = 20
) -> run.Results:
    floor = [a_run(2.0) for _ in few]
    deployments = {4: a_run(30, "image : Build"), 100: a_run(90, "image : Build", "Start")}
    idle, rates = {4: 0.01, 100: 0.14}, {"4 queues": 812.4}
    commits = [a_run(commit, "a")] * 3
    return run.Results(100, floor, few, many, deployments, commits, restarted, idle, rates)


def test_headings_of_tasks_are_found_in_order():
    names = [run.task_name(line) for line in OUTPUT.splitlines()]
    assert [name for name in names if name is not None] == [
        "podman_host : Write celery.target, [sic] and the plan",
        "Skipped",
    ]


def test_a_handler_counts_as_a_task():
    assert run.task_name("RUNNING HANDLER [Restart] ****") == "Restart"


def test_changes_are_summed_over_hosts():
    assert run.changed(OUTPUT) == 7


def test_no_recap_is_an_error_with_the_output():
    with pytest.raises(run.BenchError, match="half of it"):
        run.changed("half of it")


def test_many_queues_begin_with_the_few():
    many = run.queues(100)
    assert many[:4] == run.queues(4)
    assert len({queue["name"] for queue in many}) == 100


def test_inventory_has_one_host_with_its_queues_in_both_groups():
    lab = json.dumps({"all": {"hosts": {"few": {"ansible_host": "10.0.0.1"}, "many": {}}}})
    found = json.loads(run.inventory(lab, "few", run.queues(4)))["all"]
    assert list(found["hosts"]) == ["few"]
    assert found["hosts"]["few"]["ansible_host"] == "10.0.0.1"
    assert len(found["hosts"]["few"]["celery_queues"]) == 4
    assert [*found["children"]] == ["celery", "redis"]


def test_ratios_are_within_a_turn():
    assert run.ratios([a_run(3), a_run(8)], [a_run(2), a_run(4)]) == [1.5, 2.0]


def test_equal_tasks_have_no_differences():
    assert run.differences(["a", "b"], ["a", "b"]) == []


def test_differences_name_place_and_both_tasks():
    found = run.differences(["a", "b"], ["a", "c", "d"])
    assert found == ["task 2: 'b' / 'c'", "task 3: '-' / 'd'"]


def test_table_is_aligned_and_judges_targets():
    rows = [run.Row("a", "1.00 s", "0.90 .. 2.00"), run.Row("ratio", "3.10", "", "<= 3.0", False)]
    assert run.table(rows) == (
        "       median    min .. max  target\n"
        "a      1.00 s  0.90 .. 2.00\n"
        "ratio    3.10                <= 3.0  MISSED"
    )


def test_ratio_is_judged_by_its_median():
    assert run.ratio_row("r", [1.1, 1.2, 9.0], 1.3).passed
    assert not run.ratio_row("r", [1.1, 1.4, 9.0], 1.3).passed


def test_tasks_of_one_name_are_summed_before_the_median():
    assert run.task_seconds([a_run(6, "a", "a"), a_run(12, "a", "a")])["a"] == 6


def verdicts(results: run.Results) -> list[bool]:
    return [row.passed for row in run.result_rows(results) if row.passed is not None]


def test_good_results_meet_all_targets():
    good = results([a_run(4, "a", "b")] * 3, [a_run(5, "a", "b")] * 3, [])
    assert verdicts(good) == [True] * 6


def test_each_target_can_be_missed():
    many = [a_run(10, "a", "b", changed=1)] * 3
    slow = results([a_run(7, "a")] * 3, many, ["few: x.service"], commit=60)
    assert verdicts(slow) == [False] * 6


def test_a_task_that_only_one_run_has_is_noticed():
    runs = [a_run(4, "a"), a_run(4, "a", "b"), a_run(4, "a")]
    assert False in verdicts(results(runs, [a_run(4, "a")] * 3, []))


def test_the_page_holds_tables_and_versions():
    page = run.markdown("2030-01-02", "python 3.14.0", ["a  1", "b  2"], "bench/run.py")
    assert "```text\na  1\n```" in page
    assert "python 3.14.0" in page
    assert "2030-01-02" in page


def test_slowest_tasks_come_first_and_the_rest_is_summed():
    names = [f"task {number}" for number in range(20)]
    text = run.slowest_table([a_run(2.1, *names)], [a_run(4.2, *names)], 100)
    assert text.splitlines()[-1].split() == ["13", "others", "1.30", "s", "2.60", "s"]
