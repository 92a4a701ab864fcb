"""Files of a host, made of templates."""

import pytest
from jinja2 import TemplateNotFound, UndefinedError
from rendered import differing, rendered, sha1

LINES = "{% if on %}\nOn={{ name }}\n{% endif %}\n"


@pytest.fixture
def templates(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "one.j2").write_text(LINES)
    whole = "{% set one %}\n{% include 'etc/one.j2' %}\n{% endset %}\n{{ one | sha1 }}\n"
    (tmp_path / "etc" / "hash.j2").write_text(whole)
    return str(tmp_path)


def test_a_file_is_what_ansible_s_own_template_makes_of_it(templates):
    assert rendered({"on": True, "name": "x"}, templates, ["/etc/one"]) == {"/etc/one": "On=x\n"}
    assert rendered({"on": False}, templates, ["/etc/one"]) == {"/etc/one": ""}


def test_a_file_can_name_another_one_by_its_content(templates):
    found = rendered({"on": True, "name": "{{ x }}"}, templates, ["/etc/hash"])
    assert found == {"/etc/hash": "0bb61b0f24596dacc20994db5c03e34f8e5ad5b7\n"}


def test_what_a_template_lacks_is_an_error(templates):
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        rendered({"on": True}, templates, ["/etc/one"])
    with pytest.raises(TemplateNotFound, match="etc/two"):
        rendered({}, templates, ["/etc/two"])


@pytest.mark.parametrize(
    ("found", "files", "links", "paths"),
    [
        ({"/a": sha1("é"), "/l": "-> /a"}, {"/a": "é"}, {"/l": "/a"}, []),
        ({"/a": sha1("old")}, {"/a": "new"}, {}, ["/a"]),
        ({}, {"/a": ""}, {"/l": "/a"}, ["/a", "/l"]),
        ({"/ca/gone.crt": sha1("x")}, {}, {}, ["/ca/gone.crt"]),
        ({"/l": "-> /b"}, {}, {"/l": "/a"}, ["/l"]),
        ({"/l": sha1("-> /a")}, {}, {"/l": "/a"}, ["/l"]),
    ],
)
def test_what_a_host_has_is_compared_with_what_it_should_have(found, files, links, paths):
    assert differing(found, files, links) == paths
