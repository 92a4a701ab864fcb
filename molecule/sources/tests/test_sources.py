"""The same site from a registry and from archives, on a host that builds nothing."""

import base64
from pathlib import Path

import pytest

TARGET = "target"
REGISTRY = "builder:5000"
QUEUES = ["add_queue", "multiply_queue"]
CERTIFICATES = """
set -e
cd /etc/docker/registry
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj '/CN=Private authority of the tests' \
  -keyout ca.key -out ca.crt
openssl req -newkey rsa:2048 -nodes -subj /CN=builder -keyout server.key -out server.csr
printf 'subjectAltName=DNS:builder\\n' > extensions
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
  -extfile extensions -out server.crt
chown docker-registry server.key
cat > config.yml <<END
version: 0.1
storage:
  filesystem:
    rootdirectory: /var/lib/docker-registry
http:
  addr: :5000
  tls:
    certificate: /etc/docker/registry/server.crt
    key: /etc/docker/registry/server.key
END
systemctl restart docker-registry
"""


@pytest.fixture(scope="session")
def built(kit, lab, tmp_path_factory):
    """Images built on the builder: in its registry, and as archives on the controller."""
    folder = tmp_path_factory.mktemp("images")
    inventory = kit.inventory_of(tmp_path_factory.mktemp("builder"), "builder")
    kit.play(inventory=inventory, celery_queues=[{"name": "add_queue"}])
    install = "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends"
    lab.run("builder", f"{install} docker-registry openssl", timeout=300)
    lab.run("builder", CERTIFICATES)
    (folder / "authority.crt").write_text(lab.run("builder", "cat /etc/docker/registry/ca.crt"))
    found = {"authority": str(folder / "authority.crt")}
    for name, kind in (("app", "oci-archive"), ("redis", "docker-archive")):
        listed = f"podman images -f reference=localhost/celery-metal/{name} --format '{{{{.ID}}}}'"
        image = lab.run("builder", listed).split()[0]
        lab.run("builder", f"podman tag {image} {REGISTRY}/metal/{name}:1.0")
        # The digest is the registry's: Podman compresses layers on their way there.
        options = f"--tls-verify=false --digestfile /tmp/{name}.digest"
        push = f"podman push {options} {REGISTRY}/metal/{name}:1.0"
        lab.wait_for(
            lambda push=push: lab.succeeds("builder", push),
            60,
            "push to the registry",
            host="builder",
            unit="docker-registry.service",
        )
        lab.run("builder", f"podman save --format {kind} -o /tmp/{name}.tar {image}", timeout=120)
        archive = folder / f"{name}.tar"
        archive.write_bytes(base64.b64decode(lab.run("builder", f"base64 /tmp/{name}.tar")))
        found[name] = str(archive)
    return found


@pytest.fixture
def clean_target(kit):
    """Whatever an earlier test deployed is gone, the trusted authority included."""
    kit.play(playbook="playbooks/remove.yml", remove_confirmed=True)


def site_works(kit, lab, **variables):
    """Deploy, let tasks flow, and deploy again to no effect."""
    kit.play(**variables)
    reports = kit.smoke(TARGET, "celery-add_queue-1", *QUEUES)
    assert all(r["done"] == r["sent"] and not r["wrong"] for r in reports.values()), reports
    before = lab.invocation_ids(TARGET, "celery*")
    assert kit.play(**variables).changed == {TARGET: 0}
    assert lab.invocation_ids(TARGET, "celery*") == before


def test_a_registry_that_is_not_trusted_is_refused(kit, lab, built, clean_target):
    played = kit.play(
        fails=True,
        image_source="registry",
        image_app=f"{REGISTRY}/metal/app:1.0",
        image_redis=f"{REGISTRY}/metal/redis:1.0",
    )
    assert "certificate signed by unknown authority" in played.output
    said = played.said
    assert f"{TARGET} did not get {REGISTRY}/metal/app:1.0 and {REGISTRY}/metal/redis:1.0: " in said
    assert "Its workers run on with the image they have. Check image_app, image_redis" in said
    assert kit.services(TARGET) == set()


def test_images_from_a_registry_with_a_private_authority(kit, lab, built, clean_target):
    site_works(
        kit,
        lab,
        podman_host_ca_certificates=[built["authority"]],
        image_source="registry",
        image_app=f"{REGISTRY}/metal/app:1.0",
        image_redis=f"{REGISTRY}/metal/redis:1.0",
    )
    # What runs the app is put on top of it here.
    label = '{{index .Config.Labels "celery-metal.base"}}'
    base = lab.run(TARGET, ["podman", "inspect", "-f", label, "celery-add_queue-1"])
    assert base.strip() == f"{REGISTRY}/metal/app:1.0"
    used = lab.run(TARGET, "podman inspect -f '{{.ImageName}}' celery-redis")
    assert used.strip() == f"{REGISTRY}/metal/redis:1.0"


def test_the_image_of_the_app_and_that_of_redis_come_from_places_of_their_own(kit, lab, built):
    """From the target as the test before has left it: each run changes one of the two."""

    def names():
        inspect = "podman inspect -f '{{.ImageName}}' celery-redis celery-add_queue-1"
        redis, app = lab.run(TARGET, inspect).split()
        label = "podman inspect -f '{{index .Labels \"celery-metal.base\"}}' "
        return redis, lab.run(TARGET, label + app).strip()

    trusted = {"podman_host_ca_certificates": [built["authority"]]}
    own, redis = (f"{REGISTRY}/metal/{name}:1.0" for name in ("app", "redis"))
    # A base of the user's own; what it is made of is none of Redis's business.
    site_works(kit, lab, image_source="registry", image_app=own, **trusted)
    of_redis, of_app = names()
    assert of_redis.startswith("localhost/celery-metal/redis:")
    assert of_app == own
    site_works(kit, lab, image_redis=redis, image_redis_source="registry", **trusted)
    of_redis, of_app = names()
    assert of_redis == redis
    assert of_app.startswith("localhost/celery-metal/app_base:")


def test_images_by_digest(kit, lab, built, clean_target):
    digests = {
        name: f"{REGISTRY}/metal/{name}@{lab.run('builder', f'cat /tmp/{name}.digest')}"
        for name in ("app", "redis")
    }
    site_works(
        kit,
        lab,
        podman_host_ca_certificates=[built["authority"]],
        image_source="registry",
        image_app=digests["app"],
        image_redis=digests["redis"],
    )


def test_images_from_archives(kit, lab, built, clean_target):
    site_works(kit, lab, image_source="archive", image_app=built["app"], image_redis=built["redis"])
    used = lab.run(TARGET, "podman inspect -f '{{.ImageName}}' celery-add_queue-1").strip()
    assert used.startswith("localhost/celery-metal/app:")
    assert "latest" not in used


def test_an_archive_that_is_cut_off_is_refused_before_anything_changes(kit, lab, built, tmp_path):
    broken = tmp_path / "app.tar"
    broken.write_bytes(Path(built["app"]).read_bytes()[:5000])
    before = lab.invocation_ids(TARGET, "celery*")
    played = kit.play(
        fails=True, image_source="archive", image_app=str(broken), image_redis=built["redis"]
    )
    assert "image_app" in played.output
    assert "podman save" in played.output
    assert lab.invocation_ids(TARGET, "celery*") == before


def test_the_authority_is_trusted_only_while_it_is_declared(kit, lab, built):
    def trusted():
        pem = Path(built["authority"]).read_text().splitlines()[1]
        return pem in lab.run(TARGET, "cat /etc/ssl/certs/ca-certificates.crt")

    archives = {
        "image_source": "archive",
        "image_app": built["app"],
        "image_redis": built["redis"],
    }
    kit.play(podman_host_ca_certificates=[built["authority"]], **archives)
    assert trusted()
    kit.play(**archives)
    assert not trusted()
