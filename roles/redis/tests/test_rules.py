"""Whom the rules of Redis's port admit."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from redis_rules import elements

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
