"""Odd inventories: each is refused in words, or read as it is written; no host is contacted.

Whole runs of site.yml, as in test_refusals.py: a run that gets as far as a connection says
UNREACHABLE.
"""

from __future__ import annotations

import json
import pathlib
import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import test_fuzz as fuzz
from test_refusals import DEAF, Run, Site

pytestmark = pytest.mark.playbook
QUEUES = "celery_queues: [{name: emails}]\n"
LONG = "h" * 250
# Each with groups in which a run gets as far as the hosts.
GOOD_HOSTS: dict[str, dict[str, list[str]]] = {
    "other scripts": {"celery": ["日本", "größe.example"], "redis": ["日本"]},
    "very long": {"celery": [LONG], "redis": [LONG]},
    "quotes and signs": {"celery": ["it's", "a%b$c", "x;y", '"q"'], "redis": ["it's"]},
    "the groups' names": {"celery": ["celery", "redis"], "redis": ["redis"]},
    "blanks": {"celery": ["a b"], "redis": ["a b"]},
    "like an option": {"celery": ["--help"], "redis": ["--help"]},
    "upper and lower case": {"celery": ["web", "WEB"], "redis": ["web"]},
    "composed and not": {"celery": ["\u00e9", "e\u0301"], "redis": ["\u00e9"]},
}


@pytest.fixture
def sites(tmp_path: pathlib.Path) -> list[Site]:
    """Inventories side by side."""
    found = []
    for number in range(40):
        directory = tmp_path / str(number)
        directory.mkdir()
        found.append(Site(directory))
    return found


@pytest.fixture
def fuzzed(tmp_path: pathlib.Path) -> dict[str, fuzz.Verdict]:
    """What the fuzzing says of some of its cases, but for those of which a whole run knows more."""
    # A set is shown in another order each time.
    left_out = re.compile("image_|deploy_|hosts|overrides|!!set")
    known = [host for host, case in fuzz.CASES.items() if not left_out.search(case.text)]
    chosen = random.Random(fuzz.SEED).sample(known, 24)
    directory = tmp_path / "fuzzed"
    directory.mkdir()
    fuzz.write_inventory(directory, {host: fuzz.CASES[host].text for host in chosen})
    return fuzz.judge(directory)


def runs(sites: list[Site]) -> list[Run]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(Site.run, sites))


def test_any_host_name_is_taken_as_it_is(sites: list[Site]) -> None:
    chosen = sites[: len(GOOD_HOSTS)]
    for site, groups in zip(chosen, GOOD_HOSTS.values(), strict=True):
        site.variables(QUEUES)
        site.hosts(**groups)
    for groups, run in zip(GOOD_HOSTS.values(), runs(chosen), strict=True):
        for host in groups["celery"]:
            assert f"{host} cannot be reached: " in run.said, (host, run.said[-3000:])


GROUPS = "A host may be in both. Nothing was changed."
# The text of an inventory, and what a run says of it.
BAD_INVENTORIES = {
    "": "at least one host in the group celery (it has 0)",
    "{}": "at least one host in the group celery (it has 0)",
    "all: {hosts: {web1: }}": "at least one host in the group celery (it has 0)",
    "celery: {hosts: {web1: }}": "exactly one in the group redis (it has 0)",
    "redis: {hosts: {web1: }}": "at least one host in the group celery (it has 0)",
    "{celery: {hosts: {a: }}, redis: {hosts: {b: , c: }}}": "redis (it has 2: b, c)",
    "{celery: {hosts: {a: }}, redis: {children: {r: {hosts: {b: , c: }}}}}": "(it has 2: b, c)",
    "{celery: {hosts: {}}, redis: {hosts: {b: }}}": "the group celery (it has 0)",
    "{Celery: {hosts: {a: }}, REDIS: {hosts: {a: }}}": "the group celery (it has 0)",
}


def test_groups_that_do_not_fit_are_refused(sites: list[Site]) -> None:
    chosen = sites[: len(BAD_INVENTORIES)]
    for site, text in zip(chosen, BAD_INVENTORIES, strict=True):
        (site.directory / "hosts.yml").write_text(text)
    for (text, said), run in zip(BAD_INVENTORIES.items(), runs(chosen), strict=True):
        assert run.status != 0, text
        assert said in run.said, (text, run.said)
        assert GROUPS in run.said, text
        assert "UNREACHABLE" not in run.said, text


def test_a_host_in_a_group_twice_and_groups_in_groups_are_one_host(site_of: Any) -> None:
    run = site_of(
        "celery: {hosts: {a: }, children: {more: {hosts: {a: , b: }}}}\nredis: {hosts: {a: }}\n"
        f"all: {{vars: {json.dumps(DEAF)}}}\n"
    )
    assert len(re.findall(r"fatal: \[a\]: UNREACHABLE", run.said)) == 1
    assert "b cannot be reached" in run.said


@pytest.fixture
def site_of(tmp_path: pathlib.Path) -> Any:
    def run(inventory: str, variables: str = QUEUES) -> Run:
        site = Site(tmp_path)
        (tmp_path / "hosts.yml").write_text(inventory)
        site.variables(variables)
        return site.run()

    return run


# What Ansible cannot read, it refuses itself: in its own words, before any host is contacted.
UNREADABLE = [
    "a: [1, 2",
    'a: "x',
    "a: 1\n\tb: 2",
    "a: *nope",
    "a: !!python/object:os.system x",
    "a: 1\n b: 2",
    "- x",
    'celery_app: "\\ud800"',
    "text",
    "a: b: c",
    "a: @x",
    "\x00",
]


def test_yaml_that_cannot_be_read_is_refused_by_ansible(sites: list[Site]) -> None:
    chosen = sites[: len(UNREADABLE)]
    for site, text in zip(chosen, UNREADABLE, strict=True):
        site.variables(QUEUES)
        (site.directory / "host_vars").mkdir()
        (site.directory / "host_vars" / "web1.yml").write_text(text)
    for text, run in zip(UNREADABLE, runs(chosen), strict=True):
        assert run.status != 0, text
        assert re.search(r"\[ERROR\]: (YAML parsing failed|Could not process)", run.said), run.said
        assert "UNREACHABLE" not in run.said, text
        assert "Traceback" not in run.said, text


def test_ten_thousand_queues_are_told_from_too_many(site_of: Any) -> None:
    hosts = json.dumps({"hosts": {"a": None}})
    inventory = f"all: {{vars: {json.dumps(DEAF)}}}\ncelery: {hosts}\nredis: {hosts}\n"
    queues = json.dumps([{"name": f"q{number}"} for number in range(10_000)])
    assert "a cannot be reached" in site_of(inventory, f"celery_queues: {queues}\n").said


# Each for the first host, which decides for all.
BAD_IMAGES = {
    "image_source: archive\nimage_app: !unsafe '{{ x }}'": "image_app: {{ x }} cannot be read as",
    "image_source: archive\nimage_app: ''": "image_app is empty: with image_source 'archive'",
    'image_source: archive\nimage_app: "a\\nb"': 'image_app is "a\\nb": it holds a control',
    "image_source: registry\nimage_app: '%i/a:1'": "image_app ('%i/a:1') is no image with its reg",
    "image_source: registry\nimage_app: 'r/$(id):1'": "image_app ('r/$(id):1') is no image with",
    "image_source: registry\nimage_app: 'r/日本:1'": "image_app ('r/日本:1') is no image with its",
    "image_source: registry\nimage_app: no": "image_app is False: it must be text",
    "image_source: registry\nimage_app: r/a:1 \nimage_redis: r/b:latest": "names no version",
    "image_app_version: 'a b'": 'image_app_version is "a b", which cannot be used: write the',
    "image_app_source: !unsafe '{% x'": "image_app_source: {% x is not a directory",
    "image_build_host: ' web1 '": "image_build_host is ' web1 ', which is no host of the groups",
    "image_build_host: '{{ nope }}'": "image_build_host names something that is not defined",
    "image_registry_auth_file: [1]": "image_registry_auth_file is [1]: it must be text",
    "image_wanted: [app]": "image_wanted is ['app'] here, but it is given by the playbook: remove",
}


def test_odd_images_are_refused(sites: list[Site]) -> None:
    chosen = sites[: len(BAD_IMAGES)]
    for site, text in zip(chosen, BAD_IMAGES, strict=True):
        site.variables(f"{QUEUES}{text}\n")
    for (text, said), run in zip(BAD_IMAGES.items(), runs(chosen), strict=True):
        assert said in run.said.replace("\\\\n", "\\n"), (text, run.said)
        assert "Nothing was changed" in run.said, text
        assert "UNREACHABLE" not in run.said, text


def test_whole_runs_say_what_the_fuzzing_said(
    sites: list[Site], fuzzed: dict[str, fuzz.Verdict]
) -> None:
    chosen = dict(zip(fuzzed, sites, strict=False))
    for host, site in chosen.items():
        site.hosts(celery=[host], redis=[host])
        (site.directory / "host_vars").mkdir()
        (site.directory / "host_vars" / f"{host}.yml").write_text(fuzz.CASES[host].text + "\n")
    for host, run in zip(chosen, runs(list(chosen.values())), strict=True):
        refusal = fuzzed[host].refusal
        assert run.status != 0
        if refusal:
            assert "UNREACHABLE" not in run.said, host
            for line in refusal.splitlines():
                assert " ".join(line.split())[:60] in run.said, (host, line, run.said)
        else:
            assert f"{host} cannot be reached" in run.said, (host, run.said)
