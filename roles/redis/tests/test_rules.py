"""Hosts that the rules of Redis's port admit, and keys that the rules of its users match."""

import fnmatch
import ipaddress
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from redis_rules import RESERVED, complement, elements, user_rules

ACL = Path(__file__).parents[1] / "files/users.acl"
CLIENTS = {"web1": ["10.0.0.8"], "web2": ["10.0.0.9", "fd00::9"], "nat": ["10.0.0.8"]}
SOURCES = ["10.1.0.0/16", "10.0.0.9/32", "fd01::/64"]


def test_each_network_is_there_once_with_all_whose_it_is():
    assert elements(CLIENTS, SOURCES, 4) == {
        "10.0.0.8": ["nat", "web1"],
        "10.0.0.9": ["redis_allowed_sources", "web2"],
        "10.1.0.0/16": ["redis_allowed_sources"],
    }
    assert elements(CLIENTS, SOURCES, 6) == {
        "fd00::9": ["web2"],
        "fd01::/64": ["redis_allowed_sources"],
    }


def test_nobody_is_an_empty_set():
    assert elements({}, [], 4) == elements({"web1": []}, ["::1"], 4) == {}


ADDRESSES = st.ip_addresses().map(str)


@given(st.dictionaries(st.sampled_from("abc"), st.lists(ADDRESSES)), st.lists(ADDRESSES))
def test_no_address_is_lost_and_none_is_added(clients, sources):
    found = {*elements(clients, sources, 4), *elements(clients, sources, 6)}
    wanted = {one for some in [*clients.values(), sources] for one in some}
    assert found == {str(ipaddress.ip_address(one)) for one in wanted}


WORDS = st.lists(st.text("ab-._", min_size=1, max_size=5), min_size=1, max_size=4)


def matches(patterns, key):
    """Whether one of them matches, by Python's rules, which differ from Redis's in one sign."""
    return any(fnmatch.fnmatchcase(key, one.replace("[^", "[!")) for one in patterns)


@given(WORDS, st.text("ab-._c", min_size=1, max_size=8))
def test_patterns_match_all_keys_but_those_that_begin_with_a_word(words, key):
    assert matches(complement(words), key) is not key.startswith(tuple(words))


def test_a_producer_reaches_no_reserved_key_under_a_declared_prefix():
    rules = user_rules(ACL.read_text(), ["shop:", "web"], ["producer", "monitor"])
    assert "<" not in re.sub(r"^\s*#.*$", "", rules, flags=re.M)
    (queues,) = re.findall(r"^  (%W~.*) \+wait", rules, re.M)
    patterns = [one.removeprefix("%W~") for one in queues.split()]
    for prefix in ("", "shop:", "web", "web_"):
        for word in RESERVED:
            assert not matches(patterns, f"{prefix}{word}x")
        assert matches(patterns, f"{prefix}celery")
        assert f"~{prefix}celery-task-meta-*" in rules
    assert matches(patterns, "other_celery-metal.nodes")


def test_rights_of_control_go_to_users_that_are_named():
    text = "user a\n  +get\n  <control> (&x\n    +publish)\nuser b\n  <control> (&y +publish)\n"
    assert " ".join(user_rules(text, [], ["b"]).split()) == "user a +get user b (&y +publish)"
    text += "  <replies> (&z +publish)\n"
    for replies, rights in ((False, ""), (True, " (&z +publish)")):
        found = user_rules(text, [], ["b"], replies=replies)
        assert " ".join(found.split()) == f"user a +get user b (&y +publish){rights}"
        assert " ".join(user_rules(text, [], [], replies=replies).split()) == "user a +get user b"
    rules = ACL.read_text()
    for users in ([], ["producer"], ["monitor"], ["producer", "monitor"]):
        found = user_rules(rules, [], users, replies=True)
        blocks = {one.split()[0]: one for one in re.split(r"^user ", found, flags=re.M)[1:]}
        assert ("/*.*.pidbox +publish" in blocks["producer"]) is ("producer" in users)
        assert ("+brpop" in blocks["producer"]) is ("producer" in users)
        assert (".celery.pidbox" in blocks["monitor"]) is ("monitor" in users)
