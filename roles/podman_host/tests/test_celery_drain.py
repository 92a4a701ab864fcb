"""celery_drain: which units are meant, without a host."""

import subprocess

import celery_drain
import pytest
from ansible.module_utils.celery_metal import HostError

CONDITION = f"[Unit]\n{celery_drain.CONDITION}\n\n[Container]\nImage=a\n"


@pytest.fixture
def quadlets(tmp_path):
    for name, instances in {"mail": "12", "a.b": "1", "old": ""}.items():
        (tmp_path / f"celery-{name}@.container").write_text(CONDITION)
        for number in instances:
            link = tmp_path / f"celery-{name}@{number}.container"
            link.symlink_to(f"celery-{name}@.container")
    (tmp_path / "celery-redis.container").write_text("[Container]\nImage=b\n")
    return tmp_path


def test_the_templates_are_the_queues(quadlets):
    names = [path.name for path in celery_drain.templates(quadlets)]
    assert names == [f"celery-{name}@.container" for name in ("a.b", "mail", "old")]
    assert celery_drain.templates(quadlets / "nowhere") == []


def test_declared_is_what_has_a_link(quadlets):
    assert celery_drain.declared(quadlets) == {
        "celery-a.b@1.service",
        "celery-mail@1.service",
        "celery-mail@2.service",
    }


def test_beat_is_meant_as_well(quadlets, monkeypatch):
    (quadlets / "celery-beat.container").write_text(CONDITION)
    (quadlets / "celery-beat@.container").write_text(CONDITION)
    files = celery_drain.templates(quadlets)
    assert "celery-beat.container" in [path.name for path in files]
    assert "celery-beat.service" in celery_drain.declared(quadlets)
    asked = []

    def run(*argv):
        asked.extend(argv)
        return subprocess.CompletedProcess(argv, 0, "", "")

    monkeypatch.setattr(celery_drain, "run", run)
    celery_drain.states(files)
    assert {"celery-beat.service", "celery-beat@*.service"} < set(asked)


def test_a_template_that_the_marker_does_not_stop_is_named(quadlets):
    assert celery_drain.without_condition(celery_drain.templates(quadlets)) == []
    (quadlets / "celery-mail@.container").write_text(f"# {CONDITION}[Container]\nImage=a\n")
    (quadlets / "celery-old@.container").write_text(CONDITION.replace("Cond", "# Cond"))
    assert celery_drain.without_condition(celery_drain.templates(quadlets)) == [
        "celery-old@.container"
    ]


def test_systemd_is_asked_for_the_instances_of_our_templates_only(quadlets, monkeypatch):
    asked = []

    def run(*argv):
        asked.append(argv)
        listed = (
            "celery-mail@1.service loaded active     running      Queue mail\n"
            "celery-mail@9.service loaded activating auto-restart Queue mail\n"
            "celery-a.b@1.service  loaded inactive   dead         Queue a.b\n"
        )
        return subprocess.CompletedProcess(argv, 0, listed, "")

    monkeypatch.setattr(celery_drain, "run", run)
    found = celery_drain.states(celery_drain.templates(quadlets))
    assert celery_drain.up(found) == ["celery-mail@1.service", "celery-mail@9.service"]
    ((*_, one, two, three),) = asked
    assert (one, two, three) == (
        "celery-a.b@*.service",
        "celery-mail@*.service",
        "celery-old@*.service",
    )
    assert celery_drain.states([]) == {}
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("state", "runs"),
    [
        ("active", True),
        ("activating", True),
        ("deactivating", True),
        ("reloading", True),
        ("failed", False),
        ("inactive", False),
    ],
)
def test_what_counts_as_running(state, runs):
    assert celery_drain.up({"celery-mail@1.service": state}) == ["celery-mail@1.service"] * runs


@pytest.mark.parametrize(
    ("text", "playbook", "stays"),
    [
        (
            celery_drain.TEXT.format(playbook="playbooks/restore.yml"),
            "playbooks/restore.yml",
            False,
        ),
        (celery_drain.TEXT.format(playbook=celery_drain.DRAIN), "playbooks/restore.yml", True),
        ("", "playbooks/restore.yml", True),
        ("", celery_drain.DRAIN, False),
        (celery_drain.TEXT.format(playbook="playbooks/restore.yml"), celery_drain.DRAIN, False),
        (None, "playbooks/restore.yml", False),
    ],
)
def test_a_restore_brings_back_only_what_it_took_out(tmp_path, monkeypatch, text, playbook, stays):
    marker = tmp_path / "drained"
    monkeypatch.setattr(celery_drain, "MARKER", marker)
    if text is not None:
        marker.write_text(text)
    assert celery_drain.others(playbook) == stays


def test_a_host_stays_drained_while_an_image_is_gone(quadlets, tmp_path, monkeypatch):
    marker = tmp_path / "drained"
    marker.write_text("")
    monkeypatch.setattr(celery_drain, "MARKER", marker)
    monkeypatch.setattr(celery_drain, "QUADLETS", quadlets)
    monkeypatch.setattr(celery_drain, "states", lambda files: {})

    class Module:
        params = {"drained": False, "playbook": celery_drain.DRAIN}  # noqa: RUF012
        check_mode = False

    asked = []

    def images_gone(references):
        asked.append(list(references))
        return [{"a": ""}, {"a": "layer x is missing"}, {}][len(asked) - 1]

    monkeypatch.setattr(celery_drain, "images_gone", images_gone)
    with pytest.raises(HostError, match=r"(?s)need a, .*Fix: run .*site\.yml.*undrain"):
        celery_drain.work(Module)
    with pytest.raises(HostError, match=r"(?s)need a, .*\n  a is damaged: layer x is miss.*Fix: "):
        celery_drain.work(Module)
    assert marker.exists()
    assert celery_drain.work(Module)["start"] == sorted(celery_drain.declared(quadlets))
    assert not marker.exists()
    # Redis's is another unit's business; and where nothing is drained, nobody asks.
    assert asked == [["a"], ["a"], ["a"]]
    celery_drain.work(Module)
    assert len(asked) == 3
