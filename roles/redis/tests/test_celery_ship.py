"""celery_ship: which host keys are pinned, and the key that is made once."""

import shutil
import types

import celery_ship
import pytest

FACTS = {
    "ansible_ssh_host_key_ed25519_public": "AAAAed",
    "ansible_ssh_host_key_ed25519_public_keytype": "ssh-ed25519",
    "ansible_ssh_host_key_ecdsa_public": "AAAAec",
    "ansible_ssh_host_key_ecdsa_public_keytype": "ecdsa-sha2-nistp256",
    "ansible_hostname": "other",
}
PINNED = "10.0.0.9 ecdsa-sha2-nistp256 AAAAec\n10.0.0.9 ssh-ed25519 AAAAed\n"


def module(*, check_mode=False, **params):
    return types.SimpleNamespace(
        check_mode=check_mode, params={"address": "10.0.0.9", "port": 22, "facts": FACTS, **params}
    )


@pytest.fixture
def keys(tmp_path, monkeypatch):
    assert shutil.which("ssh-keygen"), "these tests need openssh-client"
    monkeypatch.setattr(celery_ship, "KEYS", tmp_path / "ship")
    return tmp_path / "ship"


def test_all_host_keys_of_the_facts_are_pinned():
    assert celery_ship.known_hosts("10.0.0.9", 22, FACTS) == PINNED
    assert celery_ship.known_hosts("h", 2222, FACTS) == PINNED.replace("10.0.0.9", "[h]:2222")


def test_a_key_is_made_once(keys):
    made = celery_ship.bring(module())
    assert made["changed"]
    assert made["public_key"].startswith("ssh-ed25519 ")
    assert (keys / "key").stat().st_mode & 0o077 == 0
    assert (keys / "known_hosts").read_text() == PINNED
    assert "PRIVATE" not in str(made)
    again = celery_ship.bring(module())
    assert not again["changed"]
    assert again["public_key"] == made["public_key"]
    # Another address is pinned; the key stays.
    moved = celery_ship.bring(module(address="10.0.0.10"))
    assert moved["changed"]
    assert moved["public_key"] == made["public_key"]
    assert (keys / "known_hosts").read_text() == PINNED.replace("10.0.0.9", "10.0.0.10")


def test_check_makes_nothing_and_says_so(keys):
    said = celery_ship.bring(module(check_mode=True))
    assert said["changed"]
    assert said["diff"][0] == {"prepared": f"keep secret {keys}/key\n"}
    assert said["diff"][1]["after"] == PINNED
    assert not keys.exists()


def test_a_host_whose_keys_are_not_known_is_refused(keys):
    with pytest.raises(celery_ship.HostError, match="its facts have none"):
        celery_ship.bring(module(facts={"ansible_hostname": "other"}))
    assert not keys.exists()


@pytest.mark.parametrize("change", [{"": "AAAA\n10.0.0.1 ssh-ed25519 BB"}, {"_keytype": "a b"}])
def test_a_host_key_is_one_word(change):
    name = "ansible_ssh_host_key_ed25519_public"
    facts = {**FACTS, **{name + end: value for end, value in change.items()}}
    with pytest.raises(celery_ship.HostError, match="that is none"):
        celery_ship.known_hosts("10.0.0.9", 22, facts)
