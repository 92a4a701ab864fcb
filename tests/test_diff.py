"""What --diff prints."""

from __future__ import annotations

import json
from typing import Any

import pytest
import run_diff

FOLDER = "/etc/containers/systemd/celery-metal"


def file(name: str, before: str, after: str, folder: str = FOLDER) -> dict[str, Any]:
    path = f"{folder}/{name}"
    gone = path if after else "/dev/null"
    return {"before_header": path, "after_header": gone, "before": before, "after": after}


def unit(queue: str, level: str, generation: str) -> str:
    around = "".join(f"Environment=A{n}=1\n" for n in range(90))
    return (
        f"[Container]\nLabel=celery-metal.generation={generation}\nContainerName=celery-{queue}-%i\n"
        f"{around}Environment=LEVEL={level}\nEnvironment=QUEUE={queue}\nExec={'x' * 400}\n"
    )


def test_units_that_change_alike_are_shown_once_with_little_around_them() -> None:
    diff = [
        file(
            f"celery-q{n}@.container",
            unit(f"q{n}", "info", f"1{n}"),
            unit(f"q{n}", "debug", f"2{n}"),
        )
        for n in range(30)
    ]
    shown = run_diff.shown(diff)
    assert shown[:-1] == [
        f"change {FOLDER}/celery-q0@.container",
        "@@ -93,3 +93,3 @@",
        " Environment=A89=1",
        "-Environment=LEVEL=info",
        "+Environment=LEVEL=debug",
        " Environment=QUEUE=q0",
    ]
    assert shown[-1].startswith("... and 29 more change alike: celery-q1@.container, celery-q2@")
    assert shown[-1].endswith(" and 21 more")


def test_the_name_of_the_queue_makes_no_difference_and_another_value_does() -> None:
    before, after = "Label=queue={}\nExec=-\n", "Label=queue={}:1\nExec=-\n"
    names = [f"celery-{one}@.container" for one in ("mail", "web")]
    alike = [
        file(name, before.format(one), after.format(one))
        for name, one in zip(names, ("mail", "web"), strict=True)
    ]
    assert any("1 more change alike: celery-web@" in line for line in run_diff.shown(alike))
    other = [alike[0], file(names[1], before.format("web"), after.format("mail"))]
    assert "alike" not in str(run_diff.shown(other))


def test_a_generation_alone_is_shown() -> None:
    shown = run_diff.shown(file("a@.container", unit("a", "x", "1"), unit("a", "x", "2")))
    assert "+Label=celery-metal.generation=2" in shown


def test_of_json_the_values_that_differ_are_shown_by_their_names() -> None:
    plan = {"queues": [{"name": f"q{n}", "numbers": [n, 2], "why": {}} for n in range(500)]}
    before = json.dumps(plan, indent=4)
    plan["queues"][3] |= {"numbers": [3, 9], "new": None}
    shown = run_diff.shown(file("plan.json", before, json.dumps(plan, indent=4), "/etc/kit"))
    assert shown == [
        "change /etc/kit/plan.json",
        "-queues.q3.numbers.1: 2",
        "+queues.q3.numbers.1: 9",
        "+queues.q3.new: null",
    ]
    layout = file("plan.json", before, json.dumps(json.loads(before)))
    assert run_diff.shown(layout)[1:] == ["only its layout changes"]
    for text in ("{", "[" * 100000, '{"a": 1, "a": 2}'):
        assert run_diff.shown(file("a.json", text, "{}"))


def test_new_files_and_those_that_go_are_named() -> None:
    diff = [file(f"celery-q{n}@.container", "", unit("q", "x", "1")) for n in range(30)]
    diff += [file("one.nft", "", "a\nb\n", "/etc/kit"), file("two.nft", "a\n", "", "/etc/kit")]
    first, *rest = run_diff.shown(diff)
    assert first.startswith(f"write 30 files in {FOLDER}: celery-q0@.container, ")
    assert first.endswith(" and 22 more")
    assert rest == ["write /etc/kit/one.nft (2 lines)", "remove /etc/kit/two.nft (1 line)"]


def test_directories_of_ansible_are_named_without_what_is_in_them() -> None:
    there = {"path": "/x", "state": "directory", "path_content": {"files": ["a"] * 1000}}
    gone = {"path": "/x", "state": "absent"}
    assert run_diff.shown({"before": there, "after": gone}) == ["remove /x"]
    assert run_diff.shown({"before": gone, "after": there}) == ["write /x"]
    moved = run_diff.shown(
        {"before": {**there, "mode": "0755"}, "after": {**there, "mode": "0700"}}
    )
    assert moved == ["change /x", '-mode: "0755"', '+mode: "0700"']


def test_words_of_one_verb_are_bounded_and_others_stay() -> None:
    words = "".join(f"restart a@{n}.service\n" for n in range(60))
    shown = run_diff.shown({"prepared": f"{words}stop b.target\n"})
    assert shown[7:] == [
        "restart a@7.service",
        "restart ... and 52 more; -v shows all of it",
        "stop b.target",
    ]


def test_a_task_is_bounded_whatever_changes() -> None:
    long = "\n".join(f"{n}: {'x' * 10000}\x1b[31m" for n in range(100))
    diff = [file(f"{n}.conf", long, long.replace("x", str(n % 10))) for n in range(50)]
    shown = run_diff.shown(diff)
    assert len(shown) <= run_diff.MOST_OF_TASK + 5
    assert max(map(len, shown)) < 600
    assert all(line.isprintable() for line in shown)
    assert "-v shows all of it" in shown[-1]


@pytest.mark.parametrize(
    "diff", [None, "", [], "text", {"before": "x"}, [None], {"prepared": ""}, {"before": None}]
)
def test_what_is_no_difference_shows_nothing(diff: Any) -> None:
    assert run_diff.shown(diff) == []


def test_a_file_that_is_no_text_is_told() -> None:
    assert len(run_diff.shown({"dst_binary": 1})) == 1
