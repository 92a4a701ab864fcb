"""Reading apt's list of what it would download."""

import debian_layers
import pytest

LINE = "'http://mirror.example/pool/{file}' {file} 2846580 SHA256:00ff"


@pytest.mark.parametrize(
    ("file", "package"),
    [
        ("libc6_2.41-12_amd64.deb", "libc6"),
        ("libssl3t64_3.5.1-1_amd64.deb", "libssl3t64"),
        ("redis-server_5%3a8.0.2-3_amd64.deb", "redis-server"),
        ("libstdc++6_14.2.0-19_amd64.deb", "libstdc++6"),
        ("tzdata_2025b-4+deb13u1_all.deb", "tzdata"),
    ],
)
def test_packages_and_their_files(file, package):
    assert debian_layers.archives(LINE.format(file=file)) == {package: file}


def test_what_is_no_package_is_passed_over():
    text = "\n".join(
        [
            "Reading package lists...",
            "Building dependency tree...",
            "The following NEW packages will be installed:",
            "  busybox libc6",
            LINE.format(file="busybox_1.37_amd64.deb"),
            LINE.format(file="libc6_2.41_amd64.deb"),
            "'http://mirror.example/dists/InRelease' InRelease 100",
        ]
    )
    assert debian_layers.archives(text) == {
        "busybox": "busybox_1.37_amd64.deb",
        "libc6": "libc6_2.41_amd64.deb",
    }
    assert debian_layers.archives("") == {}


def test_packages_of_a_release_without_links_into_usr_are_merged(tmp_path):
    for name in ("bin/busybox", "lib/x/libc.so.6", "usr/lib/x/libz.so.1", "etc/group"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "lib/x/libc.so").symlink_to("libc.so.6")
    debian_layers.merge(tmp_path, is_first=True)
    for name in ("bin/busybox", "usr/bin/busybox", "lib/x/libc.so", "usr/lib/x/libc.so.6"):
        assert (tmp_path / name).read_text() in ("bin/busybox", "lib/x/libc.so.6")
    assert (tmp_path / "lib/x/libz.so.1").read_text() == "usr/lib/x/libz.so.1"
    assert {path.name for path in tmp_path.iterdir() if path.is_symlink()} == {"bin", "lib"}
    before = sorted(tmp_path.rglob("*"))
    debian_layers.merge(tmp_path, is_first=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_layer_on_top_has_no_links_of_its_own(tmp_path):
    (tmp_path / "lib/x").mkdir(parents=True)
    (tmp_path / "lib/x/libcrypt.so.1").write_text("")
    debian_layers.merge(tmp_path, is_first=False)
    assert (tmp_path / "usr/lib/x/libcrypt.so.1").exists()
    assert not (tmp_path / "lib").exists()
