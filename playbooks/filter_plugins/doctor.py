"""What hurts a fleet, or soon will: what an operator asks for, and what is found."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Beside this file, and rules that are no plugins; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "declared"))
sys.path.insert(0, str(Path(__file__).parents[1] / "rules"))
import findings
import fleet
import of_apps
import of_hosts
import of_redis
import report
import reported
from arguments import OPTIONS
from texts import FALSE, TRUE, shown

if TYPE_CHECKING:
    from celery_metal_types import Backlog, FleetRedis, HostStatus, NoAnswer

RULES = findings.RULES
# They fill RULES.
AREAS = (of_hosts, of_redis, of_apps)
KNOWN = OPTIONS["doctor"]
FORMATS = ("table", "json")
CLOSE = 0.75


def accepted(value: Any) -> list[str]:
    """The names of rules in a list, or in a text with commas between them."""
    words = value.split(",") if isinstance(value, str) else value
    some = words if isinstance(words, (list, tuple)) else [words]
    return [one for one in (str(word).strip() for word in some) if one]


def problems(variables: Mapping[str, Any]) -> str:
    """What is wrong with the variables of ``playbooks/doctor.yml``; empty when nothing is.

    :param variables: all of a host.
    """
    found = _problem({one: variables[one] for one in variables if one.startswith("doctor_")})
    return f"{found[0]}.\n  Fix: {found[1]}. Nothing was looked at." if found else ""


def _problem(given: Mapping[str, Any]) -> tuple[str, str] | None:
    # An inventory may have others of its own.
    for name in sorted(given.keys() - {*KNOWN}):
        if near := difflib.get_close_matches(name, KNOWN, 1, CLOSE):
            return f"{name} is an unknown variable", f"write {near[0]}"
    if (form := given.get("doctor_format", "table")) not in FORMATS:
        return f"doctor_format is {shown(form)}", f"write one of {', '.join(FORMATS)}"
    strict = given.get("doctor_strict", False)
    if str(strict).lower() not in TRUE + FALSE:
        return f"doctor_strict is {shown(strict)}", "write true or false"
    for name in accepted(given.get("doctor_accept", [])):
        if name not in RULES:
            near = difflib.get_close_matches(name, RULES, 1)
            remedy = f"write {near[0]}" if near else "write names of the table in docs/doctor.md"
            return f"doctor_accept has {shown(name)}, which is no finding", remedy
    return None


def answers(variables: Mapping[str, Any]) -> dict[str, Any]:
    """What the two modules of ``playbooks/doctor.yml`` have registered for a host."""
    return {
        "doctor": variables.get("doctor_host", {}),
        "state": variables.get("doctor_state", {}),
    }


def site_of(
    hosts: Mapping[str, Mapping[str, Any]],
    status: tuple[Mapping[str, HostStatus | NoAnswer], Backlog | NoAnswer, FleetRedis, bool],
    redis: Sequence[str],
    now: float,
) -> findings.Site:
    """All that is known.

    :param hosts: host to ``doctor`` and ``state``, what the modules ``celery_doctor`` and
        ``celery_host`` returned.
    :param status: what ``fleet`` takes.
    :param redis: the group.
    :param now: the controller's clock.
    """
    whole = fleet.fleet(*status)
    known = {name: _host(said, now) for name, said in hosts.items()}
    for name, answer in whole["hosts"].items():
        if answer["state"] != "ok" and name in known and not known[name].why:
            known[name] = known[name]._replace(why=answer["why"] or answer["state"])
    return findings.Site(known, whole, redis, now)


def _host(said: Mapping[str, Any], now: float) -> findings.Host:
    doctor, state = (said.get(key) or {} for key in ("doctor", "state"))
    facts = findings.Given(doctor.get("facts"))
    why = "its report is invalid"
    if facts.number("format") == findings.FORMAT:
        why = ""
    elif "facts" not in doctor:
        why = reported.shown(str(doctor.get("msg", "no answer")).strip(), fleet.MAX_WHY)
    if not why and "podman" not in state:
        why = reported.shown(str(state.get("msg", "no answer")).strip(), fleet.MAX_WHY)
    asked = facts.raw.get("asked")
    is_number = isinstance(asked, (int, float)) and not isinstance(asked, bool)
    return findings.Host(
        facts, findings.Given(state), why, float(asked or 0) if is_number else 0.0, now
    )


def examined(
    hosts: Mapping[str, Mapping[str, Any]],
    status: tuple[Mapping[str, HostStatus | NoAnswer], Backlog | NoAnswer, FleetRedis, bool],
    redis: Sequence[str],
    variables: Mapping[str, Any],
    now: float,
) -> dict[str, str]:
    """The ``text`` for an operator, and ``failure``: what ends a strict run, or nothing.

    :param variables: those of ``playbooks/doctor.yml``; the other parameters are those of
        ``site_of``.
    """
    accept = accepted(variables.get("doctor_accept", []))
    site = site_of(hosts, status, redis, now)
    found = findings.examine(site, accept)
    show = report.as_json if variables.get("doctor_format") == "json" else report.table
    is_strict = str(variables.get("doctor_strict", False)).lower() in TRUE
    failure = f"doctor_strict is true, and there is: {report.headline(site, found, accept)}"
    return {"text": show(site, found, accept), "failure": failure if is_strict and found else ""}


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "doctor_answers": answers,
            "doctor_examined": examined,
            "doctor_problems": problems,
        }
