"""What --check says is what the same run then says and does; and --check itself writes nothing."""

import dataclasses
import functools
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import changes
import pytest

HOST = "metal"
SAMPLE = Path(__file__).resolve().parents[3] / "app/sample"
# Stand in declarations for a directory with other code, and for a file with a certificate.
CODE, CERTIFICATE = "other-code", "a-certificate"
ADD = {"name": "add_queue", "concurrency": 1}
MULTIPLY = {"name": "multiply_queue", "concurrency": 1, "secrets": []}
LARGER = {**MULTIPLY, "concurrency": 2, "quadlet": {"Container": {"ShmSize": "32m"}}}
MAIL = {"name": "mail", "concurrency": 1, "secrets": []}
FIRST = {"TOKEN": "hush-the-first", "KEY": "hush-the-key"}
SECOND = {"TOKEN": "hush-the-second", "PIN": "hush-the-pin"}
# Of no version that is kept: the next version removes it.
OLD = "localhost/celery-metal/app:old"
DRAINED = "/etc/celery-metal/drained"
BARE = "a host without package lists"

OF_ADD = {"celery-add_queue.target", "celery-add_queue@1.service"}
OF_MULTIPLY = {"celery-multiply_queue.target", "celery-multiply_queue@1.service"}
OF_MAIL = {"celery-mail.target", "celery-mail@1.service"}
WORKERS = {"celery-add_queue@1.service", "celery-multiply_queue@1.service"}
REDIS = {"celery-redis.service"}
NETWORK = {"celery-egress.service", "celery-network.service"}
TIMERS = {"celery-redis-backup.timer", "celery-redis-memory.timer"}
NEW = {
    "start": {"celery.target", *NETWORK, *TIMERS, *REDIS, *OF_ADD, *OF_MULTIPLY},
    "keep secret": {
        *(f"celery-redis-{name}" for name in ("acl", "admin", "monitor", "producer", "worker")),
        *("celery-app-TOKEN", "celery-app-KEY"),
    },
}


@dataclasses.dataclass(frozen=True)
class Situation:
    """What is declared besides what was before, or done on the host first; what that concerns."""

    declares: dict[str, Any] = dataclasses.field(default_factory=dict)
    prepared: str = ""
    concerns: dict[str, set[str]] = dataclasses.field(default_factory=dict)


# Each begins where the one before has ended.
SITUATIONS = {
    BARE: Situation(
        {"celery_queues": [ADD, MULTIPLY], "celery_worker_secrets": FIRST},
        concerns=NEW,
    ),
    # The only one whose run is that of the one before, too.
    "a clean host": Situation(prepared="apt-get update", concerns=NEW),
    "nothing to do": Situation(),
    "a worker that is down": Situation(
        prepared="systemctl stop celery-add_queue@1",
        concerns={"start": {"celery-add_queue@1.service"}},
    ),
    "a queue that changes": Situation(
        {"celery_queues": [ADD, LARGER]},
        concerns={"restart": {"celery-multiply_queue@1.service"}},
    ),
    "one more queue": Situation(
        {"celery_queues": [ADD, LARGER, MAIL]},
        concerns={"start": OF_MAIL},
    ),
    "one queue less": Situation(
        {"celery_queues": [ADD, LARGER]},
        concerns={"stop": OF_MAIL},
    ),
    "other secrets": Situation(
        {"celery_worker_secrets": SECOND},
        concerns={
            "restart": {"celery-add_queue@1.service"},
            "keep secret": {"celery-app-TOKEN", "celery-app-PIN"},
            "remove secret": {"celery-app-KEY"},
        },
    ),
    "other code": Situation(
        {"image_app_source": CODE},
        prepared=f"podman tag $(podman images -q localhost/celery-metal/app) {OLD}",
        concerns={"restart": WORKERS, "remove image": {OLD}},
    ),
    "Redis, and a certificate": Situation(
        {
            "redis_extra_config": {"loglevel": "warning"},
            "podman_host_ca_certificates": [CERTIFICATE],
        },
        concerns={"restart": REDIS, "renew": {changes.TRUST}},
    ),
    "a drained host": Situation(
        {"celery_worker_log_level": "warning"},
        prepared=f"touch {DRAINED} && systemctl stop 'celery-*@*.service'",
    ),
    "much at once": Situation(
        {
            "celery_queues": [MULTIPLY, MAIL],
            "celery_worker_secrets": FIRST,
            "redis_extra_config": {},
            "podman_host_ca_certificates": [],
        },
        prepared=f"rm {DRAINED} && systemctl start celery-add_queue@1 celery-multiply_queue@1",
        concerns={
            "start": OF_MAIL,
            "restart": {"celery-multiply_queue@1.service", *REDIS},
            "stop": OF_ADD,
            "keep secret": {"celery-app-TOKEN", "celery-app-KEY"},
            "remove secret": {"celery-app-PIN"},
            "renew": {changes.TRUST},
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Seen:
    """A situation: what --check and the run said, and what the host was like around them."""

    name: str
    checked: str
    played: str
    before: dict[str, Any]
    between: dict[str, Any]
    after: dict[str, Any]

    @property
    def foretold(self) -> changes.Changes:
        """What --check said."""
        return changes.unmarked(changes.said(self.checked, HOST))

    def as_far_as_foretold(self, found: changes.Changes) -> changes.Changes:
        """Changes without the packages that cannot be known without package lists."""
        found = changes.unmarked(found)
        if self.name == BARE:
            found["install package"] &= self.foretold["install package"]
        return found


class Site:
    """The host, from one situation to the next."""

    def __init__(self, kit, lab, paths):
        self.kit, self.lab, self.paths = kit, lab, paths
        self.seen = {}
        # The situation that the host is in, and what it was like when it came into that.
        self.now = ""
        self.after = None

    @functools.cached_property
    def password(self):
        return self.kit.password(HOST)

    def declared(self, name):
        """All that is declared in a situation."""
        names = list(SITUATIONS)
        found = {}
        for one in names[: names.index(name) + 1]:
            found |= SITUATIONS[one].declares
        text = json.dumps(found)
        for word, path in self.paths.items():
            text = text.replace(word, path)
        return json.loads(text)

    def look(self):
        return json.loads(self.lab.run(HOST, "python3 -", stdin=changes.SNAPSHOT))

    def foresee(self, name):
        """What --check says in a situation, and what the host is like before and after it."""
        before = self.after
        if SITUATIONS[name].prepared or not before:
            self.lab.run(HOST, SITUATIONS[name].prepared)
            before = self.look()
        checked = self.kit.play("--check", "--diff", **self.declared(name)).output
        return {"checked": checked, "before": before, "between": self.look()}

    def go_through(self, name):
        """See a situation; from the one before it, where the host is not in that."""
        names = list(SITUATIONS)
        first, clean = names[:2]
        if name in (first, clean):
            assert not self.now, "the host is not clean any more: create it anew"
            foreseen = {first: self.foresee(first), clean: self.foresee(clean)}
        else:
            earlier = names[names.index(name) - 1]
            if self.now != earlier:
                self.after = None
                self.kit.play(**self.declared(earlier))
            foreseen = {name: self.foresee(name)}
        self.now = "on its way"
        played = self.kit.play("--diff", **self.declared(name)).output
        self.after = self.look()
        for one, found in foreseen.items():
            self.seen[one] = Seen(one, played=played, after=self.after, **found)
        self.now = list(foreseen)[-1]


@pytest.fixture(scope="module")
def site(kit, lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("declared")
    paths = {CODE: folder / "app", CERTIFICATE: folder / "check.crt"}
    shutil.copytree(SAMPLE, paths[CODE])
    with (paths[CODE] / "metal_sample/tasks.py").open("a") as file:
        file.write(f"\n# {uuid.uuid4()}\n")  # an image that no earlier test has left
    new = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=check -keyout /dev/null 2>&-"
    paths[CERTIFICATE].write_text(lab.run(HOST, new))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANSIBLE_STDOUT_CALLBACK", "ansible.posix.json")
        yield Site(kit, lab, {word: str(path) for word, path in paths.items()})


@pytest.fixture(scope="module", params=SITUATIONS)
def seen(request, site):
    if request.param not in site.seen:
        site.go_through(request.param)
    return site.seen[request.param]


def test_check_writes_nothing(seen):
    assert changes.touched(seen.before, seen.between) == []


def test_check_says_what_the_run_says(seen):
    assert seen.foretold == seen.as_far_as_foretold(changes.said(seen.played, HOST))


def test_the_run_does_what_check_said(seen):
    assert seen.foretold == seen.as_far_as_foretold(changes.done(seen.between, seen.after))


def test_check_names_what_the_situation_concerns(seen):
    told = seen.foretold
    found = {kind: told[kind] for kind in changes.KINDS if told[kind]}
    if "install package" in found:
        assert found.pop("install package") >= {"podman", "crun"}
        assert {one.rpartition(":")[0].rpartition("/")[2] for one in found.pop("bring image")} == {
            *("app", "app_base", "redis")
        }
    elif SITUATIONS[seen.name].declares.get("image_app_source"):
        assert len(found.pop("bring image")) == 1
    assert found == SITUATIONS[seen.name].concerns


def test_no_secret_is_shown(seen, site):
    for word in (*FIRST.values(), *SECOND.values(), site.password):
        assert word not in seen.checked
        assert word not in seen.played
