"""Nobody reaches Redis but by TLS and with a certificate; certificates are replaced in time."""

import json
import pathlib
import shutil
import socket
import ssl
import subprocess
import time

import pytest
from programs import BROKER, PATIENCE, ROTATE, WORKER, Load, add
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

SERVER = "celery-redis-certificate-server"
RENEW = "celery-redis-certificate.service"


def presented(lab):
    """The certificate that Redis shows, to whoever asks."""
    return ssl.get_server_certificate((lab.address(BROKER), 6379), timeout=10)


def running(lab):
    return {host: lab.invocation_ids(host, "celery-*@*.service") for host in (BROKER, WORKER)}


def redis(lab):
    return lab.invocation_ids(BROKER, "celery-redis.service")


def certificate(folder, name, *words, signed_by=None):
    """A new certificate of somebody else, with its key; the path of the file with both."""
    path, key = folder / f"{name}.pem", folder / f"{name}.key"
    by = ["-CA", signed_by, "-CAkey", signed_by] if signed_by else []
    # Without the distribution's, which makes an authority of each.
    settings = folder / "settings"
    settings.write_text("[req]\ndistinguished_name = any\n[any]\n")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    made += ["-nodes", "-days", "90", "-subj", f"/CN={name}", "-keyout", key, "-out", path]
    made += ["-config", settings]
    subprocess.run([*made, *by, *words], check=True, capture_output=True)
    path.write_text(path.read_text() + key.read_text())
    return str(path)


@pytest.fixture
def others(lab, tmp_path_factory):
    """An authority of the user's own, and what it has issued."""
    folder = tmp_path_factory.mktemp("others")
    usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    ca = certificate(folder, "ca", "-addext", "basicConstraints=critical,CA:TRUE", *usage)
    names = f"subjectAltName=IP:{lab.address(BROKER)}"
    return {
        "ca": ca,
        "server": certificate(folder, "server", "-addext", names, signed_by=ca),
        "worker": certificate(folder, "worker", signed_by=ca),
    }


@pytest.fixture
def logged(lab):
    """Wait for a line of Redis's with this in it, since the test began."""
    since = f"@{time.time():.3f}"

    def wait(text):
        command = ["journalctl", "-u", "celery-redis", "-o", "cat", "--since", since, "-g", text]
        lab.wait_for(lambda: lab.run(BROKER, command), 10, text, host=BROKER)

    return wait


def test_plain_text_is_refused_and_logged(lab, logged):
    with socket.create_connection((lab.address(BROKER), 6379), 5) as connection:
        port = connection.getsockname()[1]
        connection.sendall(b"PING\r\n")
        try:
            answer = connection.recv(100)
        except ConnectionResetError:
            answer = b""
    assert answer == b""
    logged(f"Error accepting a client connection: .*:{port} ")


def test_who_shows_no_certificate_or_a_wrong_one_is_refused_and_logged(
    client_of, lab, logged, others
):
    assert client_of("producer").ping()
    for tls, reason in (
        ({"ssl_certfile": None, "ssl_keyfile": None}, "did not return a certificate"),
        (
            {"ssl_certfile": others["worker"], "ssl_keyfile": others["worker"]},
            "certificate verify failed",
        ),
    ):
        with pytest.raises(RedisConnectionError):
            client_of("producer", **tls).ping()
        logged(f"Error accepting a client connection: .*{reason}")


def test_a_client_refuses_a_redis_of_another_authority(client_of, others):
    with pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        client_of("producer", ssl_ca_certs=others["ca"]).ping()


def test_a_certificate_that_ends_is_replaced_by_the_timer(kit, lab, app_of):
    assert lab.show(BROKER, "celery-redis-certificate.timer", "ActiveState") == "active"
    workers, before, shown = running(lab), redis(lab), presented(lab)
    lab.run(BROKER, f"systemctl start {RENEW}")
    assert (redis(lab), presented(lab)) == (before, shown)
    kit.make_it_end_soon(BROKER, SERVER)
    lab.run(BROKER, f"systemctl start {RENEW}")
    assert redis(lab) != before
    assert presented(lab) != shown
    # Workers have waited, and know its authority.
    assert add(app_of("producer"), 1, 2).apply_async().get(timeout=PATIENCE) == 3
    assert running(lab) == workers


def test_a_certificate_that_ends_is_replaced_by_a_run(kit, lab, app_of):
    workers, before, shown = running(lab), redis(lab), presented(lab)
    kit.make_it_end_soon(BROKER, SERVER)
    # It is all that changes: by the timer above, too, nothing was left to do.
    assert kit.play().changed == {BROKER: 2, WORKER: 0}
    assert redis(lab) != before
    assert presented(lab) != shown
    assert add(app_of("producer"), 1, 2).apply_async().get(timeout=PATIENCE) == 3
    assert running(lab) == workers
    assert set(kit.play().changed.values()) == {0}


@pytest.fixture
def left(kit, tmp_path):
    """A host that was deployed, and then left the inventory: the worker by another name."""
    known = json.loads(pathlib.Path(kit.inventory, "hosts.yml").read_text())
    for hosts in (known["all"]["hosts"], known["all"]["children"]["celery"]["hosts"]):
        hosts["web9"] = hosts.pop(WORKER)
    del known["all"]["children"]["celery_producers"]["hosts"][WORKER]
    other = tmp_path / "other"
    shutil.copytree(pathlib.Path(kit.inventory, "group_vars"), other / "group_vars")
    (other / "hosts.yml").write_text(json.dumps(known))
    kit.play(inventory=str(other))
    return "web9"


def test_all_certificates_change_under_load_and_no_task_is_lost(
    kit, lab, app_of, client_of, tmp_path, left
):
    (tmp_path / "earlier").mkdir()
    earlier = kit.certificates(BROKER, tmp_path / "earlier")
    # What that host has, as it has it.
    (tmp_path / "left").mkdir()
    password = kit.password(WORKER)
    its = kit.certificates(WORKER, tmp_path / "left", "worker")
    said = f"{left}: has left the inventory and still has the password of worker and a certificate"
    played = kit.play()
    assert said in played.output
    assert "rotate-secrets.yml -e rotate_certificates=true, then the same with" in played.output
    assert [line.startswith(said) for line in kit.status()["redis_reports"]] == [True]
    assert client_of("worker", password, **its).ping()
    own = kit.secret(BROKER, "celery-redis-certificate-producer")
    load = Load(app_of("producer", tls=earlier))
    load.start()
    try:
        kit.play(playbook=ROTATE, rotate_certificates=True)
    finally:
        counted = load.end(kit, lab)
    print(counted)
    assert counted.sent > 100
    assert (counted.lost, counted.duplicates) == (0, 0)
    assert kit.secret(BROKER, "celery-redis-certificate-producer") != own
    # Both are good until it is said that nobody needs the earlier ones.
    assert client_of("producer", **earlier).ping()
    assert client_of("producer").ping()
    with pytest.raises(AuthenticationError):
        client_of("worker", password, **its).ping()
    (line,) = kit.status()["redis_reports"]
    assert line.startswith(f"{left}: has left the inventory and still has a certificate until ")
    assert "Fix: ansible-playbook playbooks/rotate-secrets.yml -e rotate_finish=true." in line
    kit.play(playbook=ROTATE, rotate_finish=True)
    with pytest.raises(RedisConnectionError):
        client_of("producer", **earlier).ping()
    with pytest.raises(RedisConnectionError):
        client_of("worker", password, **its).ping()
    # Redis refuses its certificate alone, too.
    with pytest.raises(RedisConnectionError):
        client_of("worker", **{**its, "ssl_ca_certs": ca_of(kit, tmp_path)}).ping()
    assert add(app_of("producer"), 1, 2).apply_async().get(timeout=PATIENCE) == 3
    assert kit.status()["redis_reports"] == []
    played = kit.play()
    assert set(played.changed.values()) == {0}
    assert left not in played.output


def ca_of(kit, folder):
    """The authority that Redis has now, in a file."""
    path = folder / "now.pem"
    path.write_text(kit.secret(BROKER, "celery-redis-ca"))
    return str(path)


def test_certificates_of_the_user_s_own_take_the_place_of_ours(kit, lab, client_of, others):
    own = {"ssl_ca_certs": others["ca"]}
    own |= {"ssl_certfile": others["worker"], "ssl_keyfile": others["worker"]}
    ours = {"redis_tls_files": others, "celery_producer_certificate": others["worker"]}
    kit.play(**ours)
    report = kit.smoke(WORKER, "celery-add_queue-1", "add_queue")["add_queue"]
    assert report["done"] == report["sent"]
    assert client_of("worker", **own).ping()
    secrets = lab.run(BROKER, "podman secret ls --noheading --format '{{.Name}}'").split()
    assert "celery-redis-authority" not in secrets
    assert set(kit.play(**ours).changed.values()) == {0}
    lab.run(BROKER, f"systemctl start {RENEW}")
    kit.play()
    with pytest.raises(RedisConnectionError):
        client_of("worker", **own).ping()
    report = kit.smoke(WORKER, "celery-add_queue-1", "add_queue")["add_queue"]
    assert report["done"] == report["sent"]


def test_without_encryption_nothing_of_it_is_left(kit, lab):
    kit.play(redis_tls=False)
    timers = json.loads(lab.run(BROKER, "systemctl list-timers --all --output=json 'celery*'"))
    assert "celery-redis-certificate.timer" not in {timer["unit"] for timer in timers}
    with socket.create_connection((lab.address(BROKER), 6379), 5) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100).startswith(b"-NOAUTH")
    report = kit.smoke(WORKER, "celery-add_queue-1", "add_queue")["add_queue"]
    assert report["done"] == report["sent"]
