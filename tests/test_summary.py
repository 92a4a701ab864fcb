"""The summary at the end of a run."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import run_summary
from test_refusals import Site

ROOT = pathlib.Path(__file__).parents[1]
UNIT = "/etc/containers/systemd/celery-metal/celery-mail@.container"
SERVICES = "celery_services"


def changed(diff: Any, action: str = "", **result: Any) -> list[str]:
    found = run_summary.changes("role : Do it", {"diff": diff, **result}, action)
    return run_summary.phrases(run_summary.with_reasons(found))


def unit(before: str, after: str) -> list[str]:
    return changed(
        [{"before_header": UNIT, "after_header": UNIT, "before": before, "after": after}]
    )


def made(*changes: tuple[str, ...]) -> list[run_summary.Change]:
    return [run_summary.Change(*one) for one in changes]


def test_a_changed_unit_is_reported_with_the_settings_that_differ() -> None:
    before = "Label=celery-metal.generation=1\nImage=localhost/a:1\nEnvironment=A=1\n# old\n"
    after = before.replace("=1\n", "=2\n").replace("a:1", "a:2").replace("old", "new")
    assert unit(before, after) == ["change celery-mail@.container (A, Image a:1 -> a:2)"]
    secret = "Label=celery-metal.secret.TOKEN="
    assert unit(f"{secret}1", f"{secret}2") == ["change celery-mail@.container (secret TOKEN)"]
    own = "Environment=CELERY_METAL_PLAN_CONCURRENCY={}\nMemoryMax={}M\n"
    assert unit(own.format(1, 278), own.format(2, 428)) == [
        "change celery-mail@.container (concurrency 1 -> 2, MemoryMax 278M -> 428M)"
    ]


@pytest.mark.parametrize(
    "line",
    [
        'Environment="TOKEN={}"',
        "Environment=CELERY_METAL_BROKER=redis://user:{}@here/0",
        "PodmanArgs=--env=TOKEN={}",
        "Annotation={}",
        "Exec=--password {}",
    ],
)
def test_a_value_that_may_be_a_secret_is_not_in_the_summary(line: str) -> None:
    told = unit(f"{line.format('hush')}\n", f"{line.format('hush2')}\n")
    assert "hush" not in str(told)
    assert told[0].startswith("change celery-mail@.container (")


def test_units_are_counted_and_other_tasks_keep_their_names() -> None:
    lines = "".join(
        f"restart celery-mail@{n}.service, celery-mail@surge{n} beside\n" for n in "123"
    )
    assert changed({"prepared": f"{lines}start celery.target\n"}) == [
        "restart celery-mail@ (3)",
        "start celery.target",
    ]
    many = "".join(f"remove image here/app:{n}\n" for n in range(20))
    assert changed({"prepared": many})[0].endswith("here/app:4 and 15 more")
    for diff in (None, [], "text", {"before": "x"}, [{"prepared": "no verb"}]):
        assert changed(diff) == ["Do it"]
    # What the project notes for itself is no news.
    assert changed({"prepared": "write /var/lib/celery-metal/images.json\n"}) == []


def test_a_unit_is_touched_for_a_reason() -> None:
    words = {"prepared": "restart celery-mail@1.service\nstart celery-b@1.service\n"}
    assert changed([words], SERVICES) == [
        "restart celery-mail@ (ran an earlier version)",
        "start celery-b@ (was not up)",
    ]
    file = {"before_header": UNIT, "after_header": UNIT, "before": "MemoryMax=1M\n"}
    assert changed([words, {**file, "after": "MemoryMax=2M\n"}], SERVICES)[0] == (
        "restart celery-mail@"
    )


def test_images_and_packages_are_named_and_the_build_s_own_files_are_not() -> None:
    assert changed(None, actions=["Built image here/app:1 from /x"]) == ["build image here/app:1"]
    said = "The following NEW packages will be installed:\n  crun podman\n0 upgraded"
    assert changed(None, stdout=said) == ["install package crun, podman"]
    foretold = "podman_host : Say which packages a run without --check would install"
    found = run_summary.changes(foretold, {"msg": "crun, podman, and what they depend on"})
    assert run_summary.phrases(found) == ["install package crun, podman"]
    assert changed(None, path="/var/lib/celery-metal/image/environment") == []
    assert changed(None, path="/var/lib/celery-metal/images.json") == ["Do it"]


def test_the_same_on_many_hosts_is_one_line_and_the_remedy_is_last() -> None:
    done = {host: made(("restart", "celery-mail@1.service")) for host in ("web1", "web2")}
    message = "\n".join(["web3: it failed\x1b", *("a line" for _ in range(30)), "  Fix: mend it."])
    failed = {"web3": [message], "web4": ["no route"], "web5": ["no route"]}
    notes = {"web1": ["WARNING app:1 is damaged"], "web2": ["web2 is drained"]}
    assert run_summary.summary(done, failed, notes) == [
        "web1, web2: restart celery-mail@",
        "web1: WARNING app:1 is damaged",
        "web2 is drained",
        "FAILED web3: it failed?",
        *["a line"] * 3,
        "  ...",
        "  Fix: mend it.",
        "FAILED web4, web5: no route",
    ]


@pytest.mark.parametrize(
    "empty",
    [
        "Task failed: Action failed: A 'failed_when' expression evaluated to 'True'.",
        "One or more items failed",
        "Failed to build image localhost/celery-metal/app:1: STEP 1/13: FROM b",
    ],
)
def test_a_task_that_another_explains_is_no_reason(empty: str) -> None:
    assert run_summary.summary({}, {"web1": [empty, "no image"]}) == ["FAILED web1: no image"]
    assert run_summary.summary({}, {"web1": [empty]}) == [f"FAILED web1: {empty}"]


def test_check_reports_what_would_change_and_what_to_do() -> None:
    last = "--check changed nothing: the same command without it does this"
    done = {"web1": made(("change", "celery-mail@.container", "prefetch 1 -> 2"))}
    told = "web1: would change celery-mail@.container (prefetch 1 -> 2)"
    assert run_summary.summary(done, {}, check=True) == [told, last]
    assert run_summary.summary(done, {"web1": ["no"]}, check=True) == [told, "FAILED web1: no"]
    assert run_summary.summary({}, {}) == ["nothing changed"]
    assert run_summary.summary({}, {}, check=True) == ["nothing would change"]


def rows(lines: list[str], columns: int) -> int:
    return sum(run_summary.height(line, columns) for line in lines)


@pytest.mark.parametrize("columns", [79, 200])
def test_it_fits_a_screen(columns: int) -> None:
    done = {f"web{n}": made(("start", f"celery-{n}.service")) for n in range(50)}
    remedy = f"  Fix: {'mend it ' * 20}"
    long = "\n".join(["x" * 999, *["y" * 999] * 9, remedy])
    for failed in (
        {f"web{n}": ["x\n" * 99] for n in range(50)},
        {f"web{n}": [f"reason {n}"] for n in range(50)},
        {f"web{n}": [f"{n}{long}"] for n in range(50)},
        {},
    ):
        for notes in ({}, {f"web{n}": [f"{n}{long}", "note"] for n in range(50)}):
            for all_done in ({}, done):
                found = run_summary.summary(all_done, failed, notes, columns=columns)
                assert rows(found, columns) <= run_summary.MOST_ROWS == 22
                assert not failed or any(line.startswith("FAILED") for line in found)
                if f"0{long}" in failed.get("web0", []):
                    assert remedy.rstrip() in found
    lines = run_summary.summary(done, {f"web{n}": ["x\n" * 99] for n in range(50)})
    assert lines[16] == "... and 34 more changes, see above"
    assert lines[17] == "FAILED web0, web1, web10, web11 and 46 more hosts: x"
    failed = {f"web{n}": [f"reason {n}"] for n in range(50)}
    assert run_summary.summary({}, failed)[-1] == "... and 29 more failures, see above"


PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - block:
        - ansible.builtin.fail: {msg: rescued}
      rescue:
        - ansible.builtin.debug: {msg: well}
    - name: Do it
      ansible.builtin.command: echo
    - name: Report that it is drained
      ansible.builtin.debug: {msg: localhost is drained}
    - ansible.builtin.debug:
        msg: "queue \U0001f600\\nline 2"
    - ansible.builtin.fail:
        msg: "queue x: it fails\\n  Fix: mend it."
      when: fails
"""


@pytest.mark.playbook
@pytest.mark.parametrize("fails", [True, False])
def test_a_run_ends_with_it(tmp_path: pathlib.Path, fails: bool) -> None:
    path = tmp_path / "play.yml"
    path.write_text(PLAY)
    play = pathlib.Path(sys.executable).with_name("ansible-playbook")
    options = ["-i", "localhost,", "-c", "local", "-e", json.dumps({"fails": fails})]
    line = [play, *options, path]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert bool(run.returncode) == fails
    assert "        queue \U0001f600\n        line 2\n" in run.stdout
    # Its message, and no second time as Ansible's own error.
    assert run.stdout.count("queue x: it fails") == (2 if fails else 0)
    end = run.stdout.partition("SUMMARY ")[2].splitlines()[1:]
    # What a rescue has mended is a reason only where the host failed.
    reason = [
        "FAILED localhost: rescued",
        "FAILED localhost: queue x: it fails",
        "  Fix: mend it.",
    ]
    assert [one for one in end if one] == [
        "localhost: Do it",
        "localhost is drained",
        *(reason if fails else []),
    ]


DIFF = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Write it
      ansible.builtin.copy:
        dest: "{{ folder }}/x.conf"
        content: "{{ lines }}"
"""


@pytest.mark.playbook
def test_diff_shows_the_lines_that_change_once_for_all_hosts(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "play.yml"
    path.write_text(DIFF)
    play = pathlib.Path(sys.executable).with_name("ansible-playbook")
    lines = "".join(f"line {n}\n" for n in range(100))
    (tmp_path / "x.conf").write_text(lines)
    variables = {"folder": str(tmp_path), "lines": lines.replace("line 50", "other")}

    def run(*options: str) -> list[str]:
        words = ["-i", "a,b,", "-c", "local", "-e", json.dumps(variables), "--check", "--diff"]
        done = subprocess.run(
            [play, *words, *options, path], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    shown = run()
    start = shown.index(f"change {tmp_path}/x.conf")
    middle = ["@@ -50,3 +50,3 @@", " line 49", "-line 50", "+other", " line 51"]
    assert shown[start + 1 : start + 6] == middle
    assert [line for line in shown if "line " in line] == [middle[1], middle[2], middle[4]]
    assert any(line in shown for line in ("a: the same as on b", "b: the same as on a"))
    assert [line for line in shown if line][-2:] == [
        "a, b: would change x.conf",
        "--check changed nothing: the same command without it does this",
    ]
    # Three lines around it, as Ansible itself, and for each host.
    assert run("-v").count(" line 47") == 2


@pytest.mark.playbook
@pytest.mark.parametrize("name", ["doctor", "queues"])
def test_a_playbook_without_a_host_does_not_end_well(tmp_path, name):
    site = Site(tmp_path)
    site.hosts(celery=["web1"], redis=["web2"], celery_producers=["shop"])
    run = site.run("--limit", "shop", "-e", "doctor_format=json", playbook=f"playbooks/{name}.yml")
    assert run.status == 2
    assert f'FAILED playbooks/{name}.yml: --limit is "shop", and no host of celery' in run.said
    assert "Fix: run it without --limit, or limit it to a host of celery" in run.said
