"""What becomes of the secrets that open the broker; Podman's store itself is for the scenarios."""

import json
from types import SimpleNamespace

import celery_broker_secrets
import pytest


@pytest.mark.parametrize("check_mode", [True, False])
def test_they_are_kept_with_their_marks_and_said_alike_under_check(monkeypatch, check_mode):
    kept = {}
    monkeypatch.setattr(
        celery_broker_secrets,
        "keep",
        lambda name, value, _, **labels: kept.update({name: (value, labels)}),
    )
    labels = {"version": "3", "until": "4", "mark": "5"}
    inspected = [{"Spec": {"Name": "celery-redis-ca", "Labels": labels}, "SecretData": "pem\n"}]
    params = {
        "names": ["celery-redis-ca"],
        "inspected": "" if check_mode else json.dumps(inspected),
    }
    done = celery_broker_secrets.bring(SimpleNamespace(params=params, check_mode=check_mode))
    assert done["diff"]["prepared"] == "keep secret celery-redis-ca\n"
    assert kept == ({} if check_mode else {"celery-redis-ca": ("pem\n", {"version": "3"})})


def test_a_secret_that_was_not_asked_for_is_not_kept(monkeypatch):
    monkeypatch.setattr(celery_broker_secrets, "keep", None)
    other = [{"Spec": {"Name": "celery-app-key", "Labels": {"version": "3"}}, "SecretData": "x"}]
    params = {"names": ["celery-redis-ca"], "inspected": json.dumps(other)}
    with pytest.raises(celery_broker_secrets.HostError, match="gives the secret 'celery-app-key'"):
        celery_broker_secrets.bring(SimpleNamespace(params=params, check_mode=False))
