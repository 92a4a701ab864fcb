"""A bundle made where there is a network deploys, and updates, a site where there is none."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest
from kit_fixtures import ROOT, Played

CONTROLLER = "air"
HOSTS = ["air", "gap"]
QUEUES = ["add_queue", "multiply_queue"]
SITE = "/srv/site"
BUNDLE = "celery-metal-bundle"


class Away:
    """The kit as it is used on the controller of the site, from an unpacked bundle."""

    def __init__(self, lab, directory):
        self.lab = lab
        self.directory = f"{directory}/{BUNDLE}"

    def play(self, playbook="site.yml", *, words="", fails=False):
        line = f".venv/bin/ansible-playbook -i {SITE} -e @../bundle.yml {words} {playbook} 2>&1"
        # One stream with the status last: what a failed run has said is wanted, too.
        output = self.lab.run(
            CONTROLLER, f"cd {self.directory}/kit; {line}; echo status $?", timeout=600
        )
        status = int(output.split()[-1])
        assert bool(status) == fails, output
        return Played(status, output)


@pytest.fixture(scope="session")
def inventory(kit, lab, tmp_path_factory):
    """The site's inventory as the builder sees it: its hosts cannot be reached from there."""
    directory = tmp_path_factory.mktemp("inventory")
    known = json.loads(pathlib.Path(kit.inventory, "hosts.yml").read_text())["all"]["hosts"]
    deaf = {name: {"ansible_host": "192.0.2.1"} for name in HOSTS}
    groups = {"redis": {"hosts": {"air": {}}}, "celery": {"hosts": {"air": {}, "gap": {}}}}
    hosts = {"hosts": {**deaf, "builder": known["builder"]}, "children": groups}
    (directory / "hosts.yml").write_text(json.dumps({"all": hosts}))
    shutil.copytree(pathlib.Path(kit.inventory, "group_vars"), directory / "group_vars")
    return directory


@pytest.fixture(scope="session")
def key(tmp_path_factory):
    """The key that signs all bundles."""
    path = tmp_path_factory.mktemp("key") / "key"
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path]
    subprocess.run(words, check=True)
    return path


@pytest.fixture(scope="session")
def bundle(kit, lab, inventory, key, tmp_path_factory):
    """The archive that playbooks/bundle.yml makes; it is carried to the site."""
    path = tmp_path_factory.mktemp("bundle") / "shop.tar"
    played = make(kit, inventory, path, bundle_signing_key=str(key))
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    assert digest.stdout.split()[0] in played.output
    assert [one.name for one in path.parent.iterdir()] == ["shop.tar"]
    carry(lab, path, "/srv/first")
    return Away(lab, "/srv/first")


def make(kit, inventory, path, *words, **variables):
    return kit.play(
        *words,
        playbook="playbooks/bundle.yml",
        inventory=str(inventory),
        bundle_host="builder",
        bundle_path=str(path),
        **variables,
    )


def carry(lab, path, directory):
    lab.run(CONTROLLER, f"mkdir -p {directory}")
    lab.send(path, CONTROLLER, f"{directory}/bundle.tar")
    lab.run(CONTROLLER, f"tar -x -C {directory} -f {directory}/bundle.tar")


@pytest.fixture(scope="session")
def site(kit, lab, bundle, key):
    """The whole site, from two hosts that have no container engine: the first run of site.yml."""
    hosts = {
        "redis": {"hosts": {"air": {"ansible_connection": "local"}}},
        "celery": {"hosts": {"air": {}, "gap": {"ansible_host": lab.address("gap")}}},
    }
    # Without a route out a host has no default address.
    variables = {"redis_address": lab.address("air")}
    variables |= {"image_bundle_allowed_signers": f"{SITE}/signers"}
    lab.run(CONTROLLER, f"mkdir -p {SITE}/group_vars ~/.ssh")
    lab.run(
        CONTROLLER,
        f"cat > {SITE}/hosts.yml",
        stdin=json.dumps({"all": {"children": hosts, "vars": variables}}),
    )
    known = pathlib.Path(kit.inventory, "group_vars", "all.yml").read_text()
    lab.run(CONTROLLER, f"cat > {SITE}/group_vars/all.yml", stdin=known)
    signer = f"ops@example.com {key.with_suffix('.pub').read_text()}"
    lab.run(CONTROLLER, f"cat > {SITE}/signers", stdin=signer)
    lab.run(CONTROLLER, "ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519 <<< y")
    lab.run("gap", "cat >> ~/.ssh/authorized_keys", stdin=public_key(lab))
    lab.run(CONTROLLER, f"ssh-keyscan {lab.address('gap')} > ~/.ssh/known_hosts")
    lab.run(CONTROLLER, f"{bundle.directory}/install.sh", timeout=300)
    bundle.first = bundle.play()
    return bundle


def public_key(lab):
    return lab.run(CONTROLLER, "cat ~/.ssh/id_ed25519.pub")


def tasks_flow(kit):
    for host in HOSTS:
        reports = kit.smoke(host, "celery-add_queue-1", *QUEUES)
        assert all(r["done"] == r["sent"] and not r["wrong"] for r in reports.values()), reports


@pytest.mark.parametrize("host", HOSTS)
def test_no_host_of_the_site_has_a_network(lab, host):
    assert not lab.succeeds(host, "ip route get 192.0.2.1")
    # That apt would fail shows that nothing was installed by way of it.
    assert not lab.succeeds(host, "apt-get -o Acquire::Retries=0 install -y --download-only nano")
    assert not lab.succeeds(host, "command -v podman")


def test_a_check_makes_nothing(kit, lab, inventory, tmp_path):
    played = make(kit, inventory, tmp_path / "shop.tar", "--check")
    assert re.search(r"localhost/celery-metal/app_base:\w+, localhost/.*/redis:", played.output)
    assert list(tmp_path.iterdir()) == []
    assert lab.run("builder", "podman images -q") == ""


def test_a_damaged_bundle_is_refused(lab, bundle):
    image = f"{bundle.directory}/images/redis.tar"
    lab.run(CONTROLLER, f"printf x >> {image}")
    said = lab.run(CONTROLLER, f"{bundle.directory}/install.sh 2>&1 || echo refused", timeout=300)
    lab.run(CONTROLLER, f"truncate -s -1 {image}")
    assert "images/redis.tar: FAILED" in said
    assert "this bundle is not whole, as is said above: copy it here again." in said
    assert said.endswith("refused\n")
    assert not lab.succeeds(CONTROLLER, f"ls -d {bundle.directory}/kit/.venv")


def test_the_whole_site_comes_from_it(kit, site):
    tasks_flow(kit)


def test_a_second_run_changes_nothing(lab, site):
    before = [lab.invocation_ids(host, "celery*") for host in HOSTS]
    assert site.play().changed == dict.fromkeys(HOSTS, 0)
    assert [lab.invocation_ids(host, "celery*") for host in HOSTS] == before


def test_a_bundle_that_was_not_signed_is_refused(lab, site):
    signature = f"{site.directory}/SHA256SUMS.sig"
    lab.run(CONTROLLER, f"mv {signature} {SITE}/")
    played = site.play(fails=True)
    lab.run(CONTROLLER, f"mv {SITE}/SHA256SUMS.sig {signature}")
    assert "SHA256SUMS.sig cannot be read there: No such file" in played.said
    assert set(played.changed.values()) == {0}


@pytest.mark.parametrize("host", HOSTS)
def test_apt_knows_nothing_of_it_afterwards(lab, site, host):
    assert lab.run(host, "apt-cache policy podman").count("file:") == 0
    assert not lab.succeeds(host, "ls -d /var/lib/celery-metal/packages")
    assert "podman" in lab.run(host, "apt-mark showmanual")


def test_the_next_bundle_brings_the_next_version_and_the_old_one_can_come_back(
    kit, lab, site, inventory, key, tmp_path
):
    app = tmp_path / "app"
    shutil.copytree(ROOT / "app" / "sample", app)
    (app / "next_version.py").write_text("NEXT = True\n")
    signing = {"bundle_signing_key": str(key)}
    make(kit, inventory, tmp_path / "next.tar", image_app_source=str(app), **signing)
    old = image_of(lab)
    carry(lab, tmp_path / "next.tar", "/srv/next")
    following = Away(lab, "/srv/next")
    lab.run(CONTROLLER, f"{following.directory}/install.sh", timeout=300)
    redis = {host: lab.invocation_ids(host, "celery-redis*") for host in HOSTS}
    following.play()
    assert image_of(lab) != old
    for host in HOSTS:
        lab.run(host, "podman exec celery-add_queue-1 python -c 'import next_version'")
        assert lab.invocation_ids(host, "celery-redis*") == redis[host]
    tasks_flow(kit)
    tag = old.rpartition(":")[2]
    following.play("playbooks/rollback.yml", words=f"-e rollback_version={tag}")
    assert image_of(lab) == old
    tasks_flow(kit)


def image_of(lab):
    used = {
        lab.run(host, "podman inspect -f '{{.ImageName}}' celery-add_queue-1") for host in HOSTS
    }
    assert len(used) == 1
    return used.pop().strip()
