"""Which images are whole, in stores as Podman writes them; Podman itself is for the scenarios."""

import base64
import gzip
import json
import shutil

import pytest
from ansible.module_utils import podman_images
from ansible.module_utils.celery_metal import HostError

APP, BASE, OTHER = "localhost/celery-metal/app:1", "localhost/celery-metal/app_base:1", "other:1"
MANIFEST = b"{}"


class Made:
    """A store of Podman: layers with files, images on them."""

    def __init__(self, root):
        self.root = root
        self.layers, self.images = [], []
        for name in ("overlay", "overlay-layers", "overlay-images"):
            (root / name).mkdir()

    def layer(self, name, files, parent="", **entries):
        top = self.root / "overlay" / name
        (top / "diff").mkdir(parents=True)
        (top / "link").write_text(f"LINK{name}")
        if parent:
            (top / "lower").write_text(f"l/LINK{parent}")
        lines = [b'{"type":2,"payload":"AAAA","position":0}']
        for path, content in files.items():
            (top / "diff" / path).parent.mkdir(parents=True, exist_ok=True)
            (top / "diff" / path).write_bytes(content)
            lines.append(self.entry({"name": path, "size": len(content)}))
        lines += [self.entry(one) for one in entries.pop("recorded", [])]
        record = self.root / f"overlay-layers/{name}.tar-split.gz"
        record.write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
        self.layers.append({"id": name, "parent": parent, "diff-digest": "sha256:0", **entries})
        self.write()

    def entry(self, one):
        return json.dumps({"type": 1, **one}, separators=(",", ":")).encode()

    def image(self, image, layer, *names, labels=None):
        config = json.dumps({"config": {"Labels": labels}}).encode()
        own = f"sha256:{image}"
        folder = self.root / "overlay-images" / image
        folder.mkdir()
        (folder / "manifest").write_bytes(MANIFEST)
        (folder / f"={base64.b64encode(own.encode()).decode()}").write_bytes(config)
        sizes = {"manifest": len(MANIFEST), own: len(config)}
        digests = {"manifest": f"sha256:of-{image}"}
        self.images.append(
            {
                "id": image,
                "names": list(names),
                "layer": layer,
                "big-data-sizes": sizes,
                "big-data-digests": digests,
            }
        )
        self.write()

    def write(self):
        (self.root / "overlay-layers/layers.json").write_text(json.dumps(self.layers))
        (self.root / "overlay-images/images.json").write_text(json.dumps(self.images))

    def read(self):
        return podman_images.read(self.root, "overlay")


@pytest.fixture
def made(tmp_path):
    made = Made(tmp_path)
    made.layer("base", {"usr/bin/python": b"elf", "etc/empty": b"", "usr/lib/x": b"lib"})
    made.layer("app", {"app/tasks.py": b"import celery\n"}, parent="base")
    made.layer("foreign", {"bin/sh": b"elf"})
    made.image("ii-base", "base", BASE)
    made.image("ii-app", "app", APP)
    made.image("ii-other", "foreign", OTHER)
    return made


def damage(made, *images):
    return podman_images.damage(made.read(), images or ("ii-base", "ii-app", "ii-other"))


def test_a_store_as_podman_leaves_it_is_whole(made):
    assert damage(made) == {}
    assert podman_images.removable(made.read(), {"ii-app"}) == ({}, [])


def truncate(path):
    return lambda root: (root / path).write_bytes(b"")


def without(path):
    return lambda root: shutil.rmtree(root / path)


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (truncate("overlay/app/link"), "{root}/overlay/app/link is empty"),
        (truncate("overlay/app/lower"), "{root}/overlay/app/lower is empty"),
        (lambda root: (root / "overlay/app/link").unlink(), "{root}/overlay/app/link is empty"),
        (
            truncate("overlay/app/diff/app/tasks.py"),
            "layer app: /app/tasks.py has 0 of 14 bytes",
        ),
        (without("overlay/app/diff/app"), "layer app: /app/tasks.py is missing"),
        (without("overlay/app/diff"), "layer app has no files"),
        (
            truncate("overlay-layers/app.tar-split.gz"),
            "{root}/overlay-layers/app.tar-split.gz is empty",
        ),
        (truncate("overlay-images/ii-app/manifest"), "its manifest has 0 of 2 bytes"),
        (without("overlay-images/ii-app"), "its manifest is missing"),
    ],
)
def test_what_a_power_cut_empties_is_damage(made, cut, reason):
    cut(made.root)
    assert damage(made) == {"ii-app": reason.format(root=made.root)}


def test_a_configuration_that_is_empty_is_damage(made):
    next((made.root / "overlay-images/ii-app").glob("=*")).write_bytes(b"")
    assert damage(made, "ii-app")["ii-app"].startswith("its configuration has 0 of ")


def test_a_record_that_is_cut_off_is_damage(made):
    record = made.root / "overlay-layers/app.tar-split.gz"
    record.write_bytes(record.read_bytes()[:-12])
    assert "app.tar-split.gz cannot be read" in damage(made)["ii-app"]
    record.write_bytes(b"no gzip at all")
    assert "app.tar-split.gz cannot be read" in damage(made)["ii-app"]


def test_a_layer_below_damages_all_on_top_of_it(made):
    for name in ("usr/bin/python", "usr/lib/x"):
        (made.root / "overlay/base/diff" / name).write_bytes(b"")
    reason = "layer base: /usr/bin/python has 0 of 3 bytes, and so on, 2 files"
    assert damage(made) == {"ii-base": reason, "ii-app": reason}


def test_a_layer_that_podman_has_lost_is_damage(made):
    del made.layers[0]
    made.write()
    assert damage(made) == dict.fromkeys(("ii-base", "ii-app"), "layer base is missing")
    (made.root / "overlay-layers/layers.json").write_text("")
    assert set(damage(made)) == {"ii-base", "ii-app", "ii-other"}


@pytest.mark.parametrize(
    "recorded",
    [
        # The last entry of a name counts; a link has no size; names may begin so.
        [{"name": "./again", "size": 9}, {"name": "./again"}],
        [{"name": "hard"}],
        [{"name_raw": base64.b64encode(b"\xff").decode()}],
        # Behind a link, which leads elsewhere than in a container; and out of the layer.
        [{"name": "lib/libc.so", "size": 7}],
        [{"name": "../../x", "size": 7}],
    ],
)
def test_what_the_record_has_in_another_way_is_no_damage(made, recorded):
    made.layer("odd", {"usr/lib/libc.so": b"1"}, recorded=recorded)
    (made.root / "overlay/odd/diff/lib").symlink_to("/usr/lib")
    made.image("ii-odd", "odd")
    assert damage(made, "ii-odd") == {}


def test_names_that_are_no_text_are_compared_and_shown(made):
    raw = base64.b64encode(b"\xff\x1b[2J\n").decode()
    made.layer("odd", {}, recorded=[{"name_raw": raw, "size": 1}])
    made.image("ii-odd", "odd")
    assert damage(made, "ii-odd") == {"ii-odd": r"layer odd: /\xff\x1b[2J\n is missing"}


def test_without_a_record_of_its_files_a_layer_counts_as_whole(made):
    (made.root / "overlay-layers/app.tar-split.gz").unlink()
    assert damage(made) == {}


def test_parents_in_a_circle_end(made):
    made.layers[0]["parent"] = "app"
    made.write()
    assert list(made.read().chain("ii-app")) == ["app", "base"]


def test_of_others_only_what_shares_a_damaged_layer_of_ours_is_removed(made):
    made.image("ii-tagged", "app", "mine:1")
    made.image("ii-step", "base", labels={podman_images.LABEL: "1"})
    (made.root / "overlay/app/diff/app/tasks.py").write_bytes(b"")
    (made.root / "overlay/foreign/diff/bin/sh").write_bytes(b"")
    found, layers = podman_images.removable(made.read(), {"ii-app"})
    assert (set(found), layers) == ({"ii-app", "ii-tagged"}, [])
    # One from a registry is ours because it is wanted.
    assert set(podman_images.removable(made.read(), {"ii-other"})[0]) == {*found, "ii-other"}
    (made.root / "overlay/base/link").write_bytes(b"")
    assert set(podman_images.removable(made.read(), ())[0]) == {*found, "ii-base", "ii-step"}


def test_a_damaged_layer_that_has_no_image_yet_is_removed_too(made):
    # As a load that was cut off leaves it.
    made.layer("alone", {"a": b"1"})
    made.layer("coming", {"a": b"1"}, flags={"incomplete": True})
    made.layer("container", {"a": b"1"}, **{"diff-digest": ""})
    for name in ("alone", "coming", "container"):
        (made.root / "overlay" / name / "diff/a").write_bytes(b"")
    assert podman_images.removable(made.read(), ()) == ({}, ["alone"])


def test_a_store_that_cannot_be_read_is_named_with_a_remedy(made):
    path = made.root / "overlay-images/images.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(HostError, match=rf"(?s){path} cannot be read .*Fix: mv {path} "):
        made.read()


def test_images_are_known_by_tag_and_digest(made):
    made.image("ii-pulled", "app", "registry.example:5000/shop@sha256:of-ii-pulled")
    made.image("ii-both", "app", "registry.example:5000/both:1")
    store = made.read()
    assert store.id_of(APP) == "ii-app"
    assert store.id_of("registry.example:5000/shop@sha256:of-ii-pulled") == "ii-pulled"
    assert store.id_of("registry.example:5000/both@sha256:of-ii-both") == "ii-both"
    assert store.id_of("registry.example:5000/bo@sha256:of-ii-both") == ""
    assert store.id_of("localhost/celery-metal/app:2") == ""


def test_images_by_tag_and_digest(monkeypatch):
    listed = [
        {"Id": "aa", "Names": ["localhost/celery-metal/app:1"], "RepoDigests": None},
        {"Id": "bb", "Names": None, "RepoDigests": ["registry.example/redis@sha256:00"]},
        {"Id": "cc"},
    ]
    monkeypatch.setattr(podman_images, "output", lambda *_: json.dumps(listed))
    assert podman_images.listed() == {
        "localhost/celery-metal/app:1": "aa",
        "registry.example/redis@sha256:00": "bb",
    }
    monkeypatch.setattr(podman_images, "output", lambda *_: "")
    assert podman_images.listed() == {}


@pytest.fixture
def podman(made, monkeypatch, tmp_path):
    """Podman lists what the store has, unless one of them has no manifest; as the real one."""
    monkeypatch.setattr(podman_images, "RECORD", tmp_path / "record.json")
    asked = []

    def output(*argv):
        asked.append(argv[1])
        if argv[1] == "info":
            return f"{made.root} overlay\n"
        store = made.read()
        if any("bytes" in why for why in damage(made, *store.images).values() if "its " in why):
            raise HostError("unexpected end of JSON input")
        return json.dumps([{"Id": one["id"], "Names": one["names"]} for one in made.images])

    monkeypatch.setattr(podman_images, "output", output)
    return asked


def keep(made, *images):
    kept = {"store": str(made.root), "driver": "overlay", "images": images}
    podman_images.RECORD.write_text(json.dumps(kept))


def test_an_image_is_proven_once_it_is_on_record(made, podman):
    references = [APP, BASE, "localhost/celery-metal/app:2"]
    found = podman_images.look(references)
    assert found.whole == {APP: "ii-app", BASE: "ii-base", OTHER: "ii-other"}
    assert (found.damaged, found.unproven) == ({}, [APP, BASE])
    assert podman == ["images", "info"]
    keep(made, "ii-base", "ii-app")
    assert podman_images.look(references).unproven == []
    # With a record Podman need not say where the store is.
    assert podman == ["images", "info", "images"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"store": 1}', '{"store": "/", "images": 7}'])
def test_a_record_that_is_damaged_proves_nothing(made, podman, text):
    podman_images.RECORD.write_text(text)
    assert podman_images.look([APP]).unproven == [APP]


def test_a_store_that_was_moved_is_found(made, podman, tmp_path_factory):
    keep(Made(tmp_path_factory.mktemp("old")), "ii-app")
    (made.root / "overlay/app/link").write_bytes(b"")
    assert list(podman_images.look([APP]).damaged) == [APP]


def test_a_damaged_image_is_none_that_is_there(made, podman):
    keep(made, "ii-base", "ii-app")
    (made.root / "overlay/app/link").write_bytes(b"")
    found = podman_images.look([APP, BASE])
    assert found.whole == {BASE: "ii-base", OTHER: "ii-other"}
    assert list(found.damaged) == [APP]
    assert found.unproven == []
    # Nobody asks about any.
    assert podman_images.look([]).whole.keys() == {APP, BASE, OTHER}


def test_one_without_its_manifest_keeps_podman_from_listing_any(made, podman):
    (made.root / "overlay-images/ii-app/manifest").write_bytes(b"")
    found = podman_images.look([APP, BASE])
    assert found.whole == {BASE: "ii-base", OTHER: "ii-other"}
    assert found.damaged == {APP: "its manifest has 0 of 2 bytes"}


def test_one_of_others_without_its_manifest_is_named(made, podman):
    (made.root / "overlay-images/ii-other/manifest").write_bytes(b"")
    with pytest.raises(
        HostError, match=r"(?s)^other:1 is damaged.*Fix: podman rmi --force ii-other"
    ):
        podman_images.look([APP])


def test_a_podman_that_fails_for_another_reason_is_reported(made, podman, monkeypatch):
    def output(*argv):
        if argv[1] == "info":
            return f"{made.root} overlay\n"
        raise HostError("no space left")

    monkeypatch.setattr(podman_images, "output", output)
    with pytest.raises(HostError, match="no space left"):
        podman_images.look([APP])
