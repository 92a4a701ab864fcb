"""A program outside the kit that sends tasks to whichever Redis is the primary."""

import pathlib
import sys

import pytest
from celery import Celery

REDIS = ["red1", "red2", "red3"]
RUNTIME = pathlib.Path(__file__).parents[3] / "app/runtime"


@pytest.fixture(scope="session")
def new_app(kit, lab, tmp_path_factory):
    """Makes an app with the runtime's configure, as docs/failover.md gives it to producers."""
    sys.path.append(str(RUNTIME))
    from celery_metal_runtime import configure

    apps = []

    def make():
        folder = tmp_path_factory.mktemp("producer")
        files = kit.certificates(REDIS[0], folder)
        password = folder / "password"
        password.write_text(kit.password(REDIS[0], "producer"))
        hosts = ",".join(f"{lab.address(host)}:26379" for host in REDIS)
        apps.append(Celery("outside", backend="redis://here", set_as_current=False))
        environ = {
            "CELERY_METAL_BROKER": f"sentinels://producer@{hosts}/0?master_name=celery&replicas=1",
            "CELERY_METAL_PASSWORD_FILE": str(password),
            "CELERY_METAL_TLS_CA_FILE": files["ssl_ca_certs"],
            "CELERY_METAL_TLS_CERTIFICATE_FILE": files["ssl_certfile"],
        }
        configure(apps[-1], environ)
        return apps[-1]

    yield make
    for app in apps:
        app.close()


@pytest.fixture(scope="session")
def app(new_app):
    """One with the password and the certificate of before all tests."""
    return new_app()
