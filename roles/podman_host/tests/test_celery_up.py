"""celery_up: units that would not start again, and units that do not reach Redis."""

import pytest
from ansible.module_utils import celery_up
from ansible.module_utils.celery_metal import HostError

MAIL, LONG = "celery-mail@1.service", "celery-long@1.service"
AWAY = "mail: waiting for the broker since 12 s (Timeout connecting to server)"
SHOWN = f"""Id={MAIL}
LoadState=loaded
ActiveState=active
StatusText={AWAY}

Id={LONG}
LoadState=masked
ActiveState=active
StatusText=long: 2 processes, 0 busy, 0 done

Id=celery-idle@1.service
LoadState=loaded
ActiveState=inactive
StatusText=idle: waiting for the broker since 3 s
"""
ERRORS = """quadlet-generator[81]: Loading source unit file /etc/containers/systemd/a.container
quadlet-generator[81]: converting "celery-mail@1.container": unsupported key 'Nope'
"""


def test_what_runs_and_does_not_reach_redis():
    looked = celery_up.parsed(SHOWN)
    assert celery_up.waiting(looked.statuses) == {MAIL: AWAY}
    assert celery_up.waiting(looked.statuses, 12) == {MAIL: AWAY}
    assert celery_up.waiting(looked.statuses, 13) == {}
    assert looked.loaded == {
        MAIL: "loaded",
        LONG: "masked",
        "celery-idle@1.service": "loaded",
    }


def test_a_status_line_forges_neither_a_unit_nor_a_terminal():
    shown = f"Id={MAIL}\nActiveState=active\nStatusText=a\x1b[2J\x85Id={LONG}\n"
    assert celery_up.parsed(shown).statuses == {MAIL: f"a?[2J?Id={LONG}"}


def test_all_that_starts_again_is_no_refusal():
    assert celery_up.refusals([MAIL], {MAIL, LONG}, ERRORS, {MAIL: "loaded"}) == []


def test_a_unit_that_the_generator_drops_is_named_with_its_words_and_the_remedy():
    (text,) = celery_up.refusals([MAIL, LONG], {LONG}, ERRORS, {})
    what, why, fix = text.splitlines()
    assert MAIL in what
    assert LONG not in what
    assert why == """  converting "celery-mail@1.container": unsupported key 'Nope'"""
    assert fix.startswith("  Fix: correct or remove the drop-in")


def test_a_unit_that_is_masked_fails_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(celery_up, "generated", lambda: ({MAIL, LONG}, ""))
    looked = celery_up.parsed(SHOWN)
    celery_up.require([MAIL], {MAIL}, looked)
    with pytest.raises(HostError, match=f"{LONG} is masked") as refused:
        celery_up.require([MAIL, LONG], {MAIL}, looked)
    assert f"Fix: run 'systemctl unmask {LONG}'" in str(refused.value)


def test_units_that_are_not_there_yet_need_no_generator(monkeypatch):
    def generated():
        raise AssertionError("no Podman is there yet")

    monkeypatch.setattr(celery_up, "generated", generated)
    celery_up.require([MAIL], set(), celery_up.Looked({}, {}))
