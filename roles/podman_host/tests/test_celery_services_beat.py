"""A Beat that fails takes no workers back that have come up."""

from functools import partial
from pathlib import Path
from subprocess import TimeoutExpired

import celery_services
import pytest
from ansible.module_utils import celery_kept
from ansible.module_utils.celery_kept import kept
from ansible.module_utils.celery_metal import HostError, template_of
from ansible.module_utils.celery_up import BEAT

C = "celery-b@1.service"


class FakeHost:
    """Unit files in a directory; a unit comes up unless its file has the word "broken"."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.done, self.kept_images = folder, [], None
        self.state_file = str(folder / "state.json")
        for name in ("bring", "prune"):
            monkeypatch.setattr(celery_services, name, getattr(self, name))
        monkeypatch.setattr(celery_services, "run", lambda *argv: self.done.append(argv[1:]))
        for name, answer in (("inactive", []), ("settle", []), ("memory_mb", {})):
            monkeypatch.setattr(celery_services, name, lambda *_, answer=answer: answer)
        keep = partial(kept, exists=lambda _: True)
        monkeypatch.setattr(celery_services, "kept", keep)
        for name in ("stop", "reload", "said_since"):
            monkeypatch.setattr(celery_services, name, lambda *_: "")

    def write(self, name, version, words="", broker="b1"):
        text = f'Image=here/app:{version}\nEnvironment="CELERY_METAL_BROKER={broker}"\n{words}'
        (self.folder / f"celery-{name}.container").write_text(text)

    def bring(self, verb, units, _lines):
        self.done.append((verb, units))
        files = {one: template_of(one).replace(".service", ".container") for one in units}
        failed = [one for one in units if "broken" in (self.folder / files[one]).read_text()]
        if failed:
            raise celery_services.ServicesError(f"{failed} broken\n", failed)

    def prune(self, _params, images):
        self.kept_images = images
        return []

    def services(self, version, **units):
        lists = ("restart", "start", "reload", "leftover", "retired", "waiting")
        params = {**{name: [] for name in lists}, "surge": {}, "free_mb": 0, "note": "", **units}
        params |= {"journal_lines": 0, "state_file": self.state_file, "base": ""}
        params |= {"owned": [f"{self.folder}/*.container"], "image": f"here/app:{version}"}
        return celery_services.work(params, check_mode=False)

    def state(self):
        return celery_kept.read_state(self.state_file)

    def version(self):
        return celery_kept.snapshot([f"{self.folder}/*.container"])


@pytest.fixture
def fake_host(monkeypatch, tmp_path):
    return FakeHost(monkeypatch, tmp_path)


def test_a_beat_that_fails_goes_back_alone_and_the_next_run_completes(fake_host):
    for name in ("b@", "beat"):
        fake_host.write(name, 1)
    fake_host.services(1, start=[C, BEAT])
    # Its image stays, however many versions of workers there are.
    for number in range(2, 9):
        fake_host.write("b@", number)
        fake_host.write("beat", number, "broken")
        with pytest.raises(HostError) as failed:
            fake_host.services(number, restart=[BEAT, C])
        assert str(failed.value) == (
            f"['{BEAT}'] broken\nThe workers have come up, and stay on app:{number}.\n"
            "Beat alone is back in its previous version, on app:1, its unit file too, and all "
            "units are up.\n  Fix: correct the cause above, then run the same playbook again."
        )
        kept_now = fake_host.state()
        assert kept_now["version"] == fake_host.version()
        texts = list(kept_now["version"]["files"].values())
        assert [text.split()[0] for text in texts] == [
            f"Image=here/app:{number}",
            "Image=here/app:1",
        ]
        assert kept_now["images"][-1] == f"here/app:{number}"
        assert "here/app:1" in fake_host.kept_images
    # A worker that fails takes all back to that, Beat too.
    fake_host.write("b@", 9, "broken")
    fake_host.write("beat", 9)
    with pytest.raises(HostError, match="The previous version is back"):
        fake_host.services(9, restart=[BEAT, C])
    assert fake_host.version() == kept_now["version"]
    fake_host.write("b@", 9)
    fake_host.write("beat", 9)
    assert fake_host.services(9, restart=[BEAT, C])["turns"][-1]["units"] == [BEAT]
    assert fake_host.state()["version"] == fake_host.version()


def test_a_beat_of_no_earlier_version_fails_and_the_workers_stay(fake_host):
    fake_host.write("b@", 1)
    fake_host.write("beat", 1, "broken")
    for units in ({"start": [C, BEAT]}, {"start": [BEAT]}):
        with pytest.raises(HostError, match=r"(?s)stay on app:1.*No earlier version of Beat has"):
            fake_host.services(1, **units)
        assert fake_host.done[-1] == ("start", "--no-block", "--", BEAT)
        recorded = fake_host.state()["version"]["files"]
        assert [Path(path).name for path in recorded] == ["celery-b@.container"]
    # One that has worked and does not now, with the same file.
    fake_host.write("beat", 1)
    fake_host.services(1, start=[BEAT])
    fake_host.write("beat", 1, "broken")
    celery_kept.write_state(
        fake_host.state_file, {**fake_host.state(), "version": fake_host.version()}
    )
    with pytest.raises(HostError, match="the one that has worked before; systemd goes on trying"):
        fake_host.services(1, start=[BEAT])


def test_a_beat_that_fails_is_not_parted_from_its_workers(fake_host):
    def former():
        for name in ("b@", "beat"):
            fake_host.write(name, 1)
        fake_host.services(1, start=[C, BEAT])
        return fake_host.version()

    # It would send to where no worker looks for tasks.
    version = former()
    fake_host.write("b@", 2, broker="b2")
    fake_host.write("beat", 2, "broken", broker="b2")
    with pytest.raises(HostError, match=r"(?s)another broker.*The previous version is back"):
        fake_host.services(2, restart=[C, BEAT])
    assert fake_host.version() == version == fake_host.state()["version"]
    # Where there are no workers, nothing has shown that this version works.
    for path in fake_host.folder.glob("celery-b@*"):
        path.unlink()
    fake_host.services(1, restart=[BEAT])
    fake_host.write("beat", 2, "broken")
    with pytest.raises(HostError, match="The previous version is back"):
        fake_host.services(2, restart=[BEAT])
    assert fake_host.state()["images"] == ["here/app:1"]
    assert version == former()
    # Its own reason is not lost where a worker fails, too.
    fake_host.write("b@", 2, "broken")
    fake_host.write("beat", 2, "broken")
    with pytest.raises(HostError, match=f"(?s){BEAT}'. broken.*{C}'. broken.*previous version is"):
        fake_host.services(2, start=[BEAT], restart=[C])
    assert fake_host.version() == version == former()


def test_a_beat_that_alone_waits_for_redis_keeps_no_other_unit_from_its_start(monkeypatch):
    looks, stopped = iter([TimeoutExpired("systemctl", 2)]), []

    class Process:
        returncode = 1

        def __init__(self, *_words, **_options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def communicate(self, timeout):
            for problem in looks:
                raise problem
            return "", "canceled"

    monkeypatch.setattr(celery_services.subprocess, "Popen", Process)
    monkeypatch.setattr(celery_services, "REDIS_SECONDS", 0)
    monkeypatch.setattr(celery_services, "run", lambda *argv: stopped.append(argv[1:]))
    monkeypatch.setattr(celery_services, "inactive", lambda units: [BEAT])
    monkeypatch.setattr(celery_services, "journal", lambda *_: "")
    monkeypatch.setattr(celery_services, "shown", lambda units: {})
    monkeypatch.setattr(celery_services, "waiting_for_redis", lambda units: {BEAT: "waits"})
    with pytest.raises(celery_services.ServicesError, match=f"start failed for {BEAT}: ") as failed:
        celery_services.bring("start", [BEAT, C, "celery.target"], 0)
    assert failed.value.units == [BEAT]
    assert stopped == [("stop", "--", BEAT)]
