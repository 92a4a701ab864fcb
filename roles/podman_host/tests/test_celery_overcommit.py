"""celery_overcommit: what is set, recorded and given back, without a kernel."""

import celery_overcommit
import pytest


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Write the kernel's value and, if there is one, what the host's own sysctl.d declares."""
    setting, record = tmp_path / "setting", tmp_path / "state/record"
    monkeypatch.setattr(celery_overcommit, "SETTING", setting)
    monkeypatch.setattr(celery_overcommit, "RECORD", record)

    def made(value, declared=None):
        def output(*argv):
            assert argv[1:] == ("--prefix=/vm/overcommit_memory",)
            if declared is not None:
                setting.write_text(f"{declared}\n")

        monkeypatch.setattr(celery_overcommit, "output", output)
        setting.write_text(f"{value}\n")
        return lambda: (int(setting.read_text()), record.read_text() if record.exists() else None)

    return made


@pytest.mark.parametrize("before", [0, 2])
def test_what_was_there_before_comes_back(host, before):
    seen = host(before)
    assert celery_overcommit.apply(check_mode=True)
    assert seen() == (before, None)
    assert celery_overcommit.apply(check_mode=False)
    assert seen() == (1, f"{before}\n")
    assert not celery_overcommit.apply(check_mode=False)
    assert celery_overcommit.give_back(check_mode=True)
    assert seen() == (1, f"{before}\n")
    assert celery_overcommit.give_back(check_mode=False)
    assert seen() == (before, None)
    assert not celery_overcommit.give_back(check_mode=False)


def test_a_value_that_the_role_did_not_set_stays(host):
    seen = host(1)
    assert not celery_overcommit.apply(check_mode=False)
    assert not celery_overcommit.give_back(check_mode=False)
    assert seen() == (1, None)


def test_a_value_that_somebody_has_set_since_stays(host):
    seen = host(0)
    celery_overcommit.apply(check_mode=False)
    celery_overcommit.SETTING.write_text("2\n")
    assert not celery_overcommit.give_back(check_mode=False)
    assert seen() == (2, None)


@pytest.mark.parametrize(("declared", "changed"), [(1, False), (2, True)])
def test_what_the_host_declares_itself_wins(host, declared, changed):
    seen = host(0, declared)
    celery_overcommit.apply(check_mode=False)
    assert celery_overcommit.give_back(check_mode=False) == changed
    assert seen() == (declared, None)


def test_the_first_value_counts_and_a_damaged_record_is_none(host):
    seen = host(2)
    celery_overcommit.apply(check_mode=False)
    celery_overcommit.SETTING.write_text("0\n")
    celery_overcommit.apply(check_mode=False)
    assert seen() == (1, "2\n")
    celery_overcommit.RECORD.write_text("x")
    assert not celery_overcommit.give_back(check_mode=False)
    assert seen() == (1, None)
