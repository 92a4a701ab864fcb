"""What is refused, and that a refused or a --check run leaves a host exactly as it was."""

import json
import pathlib

import pytest

LISTING = (
    "find / -xdev -newer /root/mark -not -path '/var/log/*' -not -path '/root/.ansible*' -type f"
)


@pytest.fixture
def untouched(lab):
    """Fails when the test has left a new or changed file on one of the hosts."""
    for host in lab.hosts:
        lab.run(host, "touch /root/mark")
    yield
    for host in lab.hosts:
        found = lab.run(host, LISTING).split()
        # What any login, also one that does nothing, makes systemd and apt write.
        ours = [path for path in found if "celery" in path or path.startswith("/etc")]
        assert ours == [], host
        assert not lab.succeeds(host, "command -v podman"), host


def test_an_old_podman_is_refused(kit, lab, tmp_path, untouched):
    # The host has no podman yet, and its distribution would install one that is too old.
    lab.run("old", "apt-get update", timeout=120)
    lab.run("old", "touch /root/mark")
    played = kit.play(
        inventory=kit.inventory_of(tmp_path, "old"),
        fails=True,
        celery_queues=[{"name": "add_queue"}],
    )
    assert "old: podman 4." in played.output
    assert "5.0 or newer is needed" in played.output
    assert "Nothing was changed" in played.output


def test_a_plan_that_does_not_fit_is_refused(kit, untouched):
    played = kit.play(
        fails=True,
        celery_queues=[{"name": "add_queue", "concurrency": 4, "memory_per_process_mb": 400}],
    )
    for words in ("host clean: celery_queues needs", "4 x 400 +", "sum", "1024 MB"):
        assert words in played.output, words


def test_a_number_beyond_the_cap_is_refused(kit, untouched):
    played = kit.play(
        fails=True,
        celery_queues=[{"name": "add_queue", "concurrency": 5, "memory_per_process_mb": 16}],
    )
    assert "capacity_process_factor 4 = 4 processes" in played.output


def test_one_host_that_does_not_fit_stops_all(kit, lab, tmp_path, untouched):
    # The other host would do; it must not be changed while its neighbour cannot follow.
    inventory = kit.inventory_of(tmp_path, "clean", "old")
    played = kit.play(inventory=inventory, fails=True, celery_queues=[{"name": "add_queue"}])
    assert "exactly one in the group redis" in played.output


def test_packages_that_cannot_be_installed_are_named(kit, untouched):
    played = kit.play(fails=True, podman_host_packages=["podman", "no-such-package"])
    said = played.said
    assert "clean: these packages could not be installed: no-such-package, podman: " in said
    assert "What runs there goes on. Look at the mirror ('apt-get update')" in said.replace(
        "''", "'"
    )


def test_a_host_alone_is_refused_before_redis_has_run(kit, tmp_path, untouched):
    known = json.loads(pathlib.Path(kit.inventory, "hosts.yml").read_text())["all"]["hosts"]
    groups = {"celery": {"hosts": {"clean": {}}}, "redis": {"hosts": {"old": {}}}}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(json.dumps({"all": {"hosts": known, "children": groups}}))
    played = kit.play(
        "--limit", "clean", inventory=str(tmp_path), fails=True, celery_queues=[{"name": "a"}]
    )
    said = played.said
    assert "clean needs Redis, and old has no password for it yet. Nothing was changed." in said
    assert "Run site.yml without --limit." in said


def test_a_check_of_a_clean_host_prints_the_plan_and_changes_nothing(kit, untouched):
    # New files whole.
    played = kit.play("--check", "--diff", "-v")
    assert "host clean: 1 vCPU, 1024 MB memory" in played.output
    assert "+[Container]" in played.output
