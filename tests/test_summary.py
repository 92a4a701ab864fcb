"""The summary at the end of a run."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import celery_metal
import pytest

ROOT = pathlib.Path(__file__).parents[1]
UNIT = "/etc/containers/systemd/celery-metal/celery-mail@.container"


def changed(diff: Any) -> list[str]:
    return celery_metal.phrases(list(celery_metal.changes("Do it", {"diff": diff})))


def test_a_changed_unit_is_reported_with_the_settings_that_differ() -> None:
    before = "Label=celery-metal.generation=1\nImage=a:1\nEnvironment=A=1\n# old\nMemoryMax=1\n"
    after = before.replace("=1\n", "=2\n").replace("a:1", "a:2").replace("old", "new")
    header = {"before_header": UNIT, "after_header": UNIT}
    one = {**header, "before": before, "after": after.replace("MemoryMax=2", "MemoryMax=1")}
    assert changed([one]) == ["change celery-mail@.container (A, Image)"]
    secret = {"before": "Label=celery-metal.secret.x=1", "after": "Label=celery-metal.secret.x=2"}
    assert changed([{**header, **secret}]) == ["change celery-mail@.container (secret)"]


def test_units_are_counted_and_other_tasks_keep_their_names() -> None:
    lines = "".join(
        f"restart celery-mail@{n}.service, celery-mail@surge{n} beside\n" for n in "123"
    )
    assert changed({"prepared": f"{lines}start celery.target\n"}) == [
        "restart celery-mail@ (3)",
        "start celery.target",
    ]
    many = "".join(f"remove image here/app:{n}\n" for n in range(20))
    assert changed({"prepared": many})[0].endswith("here/app:7, 12 more")
    for diff in (None, [], "text", {"before": "x"}, [{"prepared": "no verb"}]):
        assert changed(diff) == ["Do it"]


def test_the_same_on_many_hosts_is_one_line_and_the_remedy_is_last() -> None:
    done = {host: [("restart", "celery-mail@1.service")] for host in ("web1", "web2")}
    message = "\n".join(["web3: it failed\x1b", *("a line" for _ in range(30)), "  Fix: mend it."])
    failed = {"web3": [message], "web4": ["no route"], "web5": ["no route"]}
    assert celery_metal.summary(done, failed) == [
        "web1, web2: restart celery-mail@",
        "FAILED web3: it failed?",
        *["a line"] * 3,
        "  ...",
        "  Fix: mend it.",
        "FAILED web4, web5: no route",
    ]
    assert celery_metal.summary({}, {}) == ["nothing changed"]


def test_it_fits_a_screen() -> None:
    done = {f"web{n}": [("start", f"celery-{n}.service")] for n in range(50)}
    lines = celery_metal.summary(done, {f"web{n}": ["x\n" * 99] for n in range(50)})
    assert len(lines) < 24
    assert lines[16] == "... and 34 more changes, see above"
    assert lines[17] == "FAILED web0, web1, web10, web11 and 46 more hosts: x"
    failed = {f"web{n}": [f"reason {n}"] for n in range(50)}
    assert celery_metal.summary({}, failed)[-1] == "... and 42 more failures, see above"


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
    assert [one for one in end if one] == ["localhost: Do it", *(reason if fails else [])]
