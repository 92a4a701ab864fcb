"""Root in a directory where code in a container has chosen names and kinds."""

import os
import socket
import subprocess
import sys
import threading

import pytest
from container_files import Folder, RefusedError
from hypothesis import given
from hypothesis import strategies as st

VICTIM = "root's\n"


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_text(VICTIM)
    yield path
    assert path.read_text() == VICTIM
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.fixture
def place(tmp_path):
    path = tmp_path / "place"
    path.mkdir()
    return path


def planted(kind, path, victim):
    """Put something there that is no file of Redis's."""
    match kind:
        case "symlink":
            path.symlink_to(victim)
        case "dangling":
            path.symlink_to(victim.with_name("new"))
        case "hard link":
            path.hardlink_to(victim)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            (path / "deep").mkdir(parents=True)
            (path / "deep/link").symlink_to(victim)
        case "socket":
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(path))
        case "device":
            made = subprocess.run(["mknod", path, "c", "1", "3"], capture_output=True, check=False)
            if made.returncode:  # without the right to: one that is there
                path.symlink_to("/dev/null")


KINDS = ["symlink", "dangling", "hard link", "fifo", "directory", "socket", "device"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_file_with_one_name_is_opened(kind, place, victim):
    planted(kind, place / "a.aof", victim)
    with Folder(place) as folder:
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            with pytest.raises(RefusedError) as error:
                folder.open("a.aof", flags)
    said = str(error.value)
    assert said.startswith(f"{place}/a.aof ")
    assert "Fix: " in said
    assert "\n" not in said
    assert not victim.with_name("new").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["elected.conf", "elected.conf.new"])
def test_a_file_is_written_whatever_has_its_name(kind, name, place, victim):
    planted(kind, place / name, victim)
    with Folder(place) as folder:
        folder.write("elected.conf", "mine")
    found = place / "elected.conf"
    assert found.read_text() == "mine"
    assert not found.is_symlink()
    assert found.stat().st_mode & 0o777 == 0o600
    assert os.listdir(place) == ["elected.conf"]
    assert not victim.with_name("new").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_removed_and_not_what_it_leads_to(kind, place, victim):
    planted(kind, place / "dump.rdb", victim)
    with Folder(place) as folder:
        folder.remove("dump.rdb")
        folder.remove("dump.rdb")
    assert os.listdir(place) == []


NAMES = ["", ".", "..", "../victim", "a/../../victim", "/etc/passwd", ".x", "a\n", "a\0", "ä", "-n"]


@pytest.mark.parametrize("name", [*NAMES, "x" * 200])
def test_a_name_that_leads_elsewhere_is_refused(name, place, victim):
    with Folder(place) as folder:
        for act in (folder.open, folder.remove, lambda one: folder.write(one, "x")):
            with pytest.raises(RefusedError) as error:
                act(name)
            assert str(error.value).isprintable()
        with pytest.raises(RefusedError):
            Folder(name, folder)
    assert os.listdir(place) == []


@given(st.text(max_size=8) | st.text("./a-_ ", max_size=8))
def test_a_name_that_is_taken_is_one_entry_of_its_directory(name):
    try:
        Folder.bare(name, "/d")
    except RefusedError:
        return
    assert os.path.normpath(f"/d/{name}") == f"/d/{name}"
    assert os.path.dirname(f"/d/{name}") == "/d"


def test_a_directory_is_one_by_itself(place, victim, tmp_path):
    (place / "link").symlink_to(tmp_path)
    (tmp_path / "top").symlink_to(place)
    with pytest.raises(RefusedError, match="is no directory"):
        Folder(tmp_path / "top")
    with Folder(place) as folder, pytest.raises(RefusedError, match="is no directory"):
        Folder("link", folder)


def test_a_directory_that_was_exchanged_is_the_one_that_was_opened(place, tmp_path):
    (place / "dump.rdb").write_text("mine")
    other = tmp_path / "other"
    other.mkdir()
    (other / "dump.rdb").write_text("root's")
    with Folder(place) as folder:
        place.rename(tmp_path / "away")
        place.symlink_to(other)
        assert folder.read("dump.rdb", 9) == b"mine"
        folder.write("elected.conf", "x")
        folder.remove("dump.rdb")
    assert sorted(os.listdir(other)) == ["dump.rdb"]
    assert os.listdir(tmp_path / "away") == ["elected.conf"]


def test_no_exchange_of_a_file_is_quick_enough(place, victim):
    """The container swaps file and link as fast as it can; what is opened is never the link's."""
    mine, link = place / "mine", place / "link"
    mine.write_text("mine")
    ended = threading.Event()

    def exchange():
        while not ended.is_set():
            link.symlink_to(victim)
            os.rename(link, place / "a.aof")
            (place / "new").write_text("mine")
            os.rename(place / "new", place / "a.aof")

    swapping = threading.Thread(target=exchange)
    swapping.start()
    read = refused = 0
    try:
        with Folder(place) as folder:
            while read < 200 or refused < 20:
                try:
                    assert folder.read("a.aof", 100) == b"mine"
                    read += 1
                except RefusedError:
                    refused += 1
                except FileNotFoundError:
                    assert not read + refused  # it has not begun
    finally:
        ended.set()
        swapping.join()


def test_what_is_read_has_a_limit(place):
    with (place / "huge").open("wb") as file:
        file.truncate(1 << 40)
    (place / "odd").write_bytes(b"\xff\xfe")
    with Folder(place) as folder:
        with pytest.raises(RefusedError, match="has more than 1000 bytes"):
            folder.read("huge", 1000)
        with pytest.raises(RefusedError, match="is not UTF-8"):
            folder.text("odd", 1000)
        with pytest.raises(FileNotFoundError):
            folder.read("none", 1000)


def test_names_have_a_limit(place, monkeypatch):
    for number in range(20):
        (place / f"{number}").touch()
    monkeypatch.setattr("container_files.NAMES", 7)
    with Folder(place) as folder:
        assert len(folder.names()) == 7


def test_no_handle_is_left_open(place, victim):
    before = os.listdir("/proc/self/fd")
    planted("symlink", place / "a", victim)
    with Folder(place) as folder:
        for name in ("a", "b", "../c"):
            with pytest.raises((RefusedError, FileNotFoundError)):
                folder.open(name)
    assert os.listdir("/proc/self/fd") == before


def test_it_needs_nothing_but_python():
    path = sys.modules["container_files"].__file__
    load = f"import runpy; runpy.run_path({path!r})"
    subprocess.run([sys.executable, "-I", "-S", "-c", load], check=True)
