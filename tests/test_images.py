"""Stories of portable images: made of layers over nothing, the same everywhere, and read by other tools."""

import hashlib
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.debs import Files, lock_of, make_deb
from support.images import image, image_digest, layout_digest, rootfs
from support.kinds import policy, workspace
from support.places import Place
from support.serving import served

from mrp.cache.store import Store
from mrp.runtime.images.oci import write_rootfs
from mrp.runtime.images.portable import read_portable
from mrp.specs.errors import InfraError

ROOT = Path(__file__).parents[1]

LIBC: Files = {"lib/libc.so": b"libc\n", "lib64/ld.so": "../lib/libc.so", "usr/share/doc/libc/copyright": b"free\n"}
SHELL: Files = {"bin/dash": b"dash\n", "bin/sh": "dash", "usr/bin/tool": b"tool\n"}
AUTHORITIES: Files = {
    "usr/share/ca-certificates/mozilla/B.crt": b"second",
    "usr/share/ca-certificates/mozilla/A.crt": b"first\n",
}
PACKAGES = {
    "dash": (make_deb(SHELL), ("libc6",)),
    "libc6": (make_deb(LIBC), ()),
    "ca-certificates": (make_deb(AUTHORITIES), ()),
}


def with_debs(folder: Path, address: str, **fields: Any) -> Place:
    """A workspace with an image of the packages above, and a file copied over them."""
    layers = [
        {"deb": ["dash"], "lock": "debs.lock"},
        {"deb": ["dash", "ca-certificates"], "lock": "debs.lock"},
        {"copy": {"run.sh": "/bin/run"}},
    ]
    targets = {"img": {"kind": "image", "base": "scratch", "layers": layers, **fields}}
    place = workspace(folder, targets, {"debs.lock": lock_of(address, PACKAGES), "run.sh": "#!/bin/sh\n"})
    (place.folder / "run.sh").chmod(0o755)
    return place


def served_debs() -> dict[str, bytes]:
    return {f"/{name}.deb": data for name, (data, _) in PACKAGES.items()}


def test_debian_packages_become_a_file_system(tmp_path: Path) -> None:
    with served(served_debs()) as (address, asked):
        place = with_debs(tmp_path, address)
        place.build("//:img")
        assert sorted(asked) == ["/ca-certificates.deb", "/dash.deb", "/libc6.deb"]
        kinds = [kind for kind, _, _ in place.executed()]
        assert kinds == ["fetch", "fetch", "fetch", "image"]
    assert place.build("//:img")["executed"] == 0
    assert place.build("//:img", "--offline", "--rebuild", "//:img", code=4)["status"] == "infra"
    found = rootfs(place)
    assert {name: found[name] for name in ("bin", "lib", "lib64")} == {
        "bin": "usr/bin",
        "lib": "usr/lib",
        "lib64": "usr/lib64",
    }
    assert found["usr/lib/libc.so"] == b"libc\n"
    assert found["usr/bin/sh"] == "dash"
    # The folder that it was copied to is a link of a lower layer, which stays one.
    assert found["usr/bin/run"] == b"#!/bin/sh\n"
    assert found["etc/ssl/certs/ca-certificates.crt"] == b"first\nsecond\n"
    assert b"mrp:x:1000:1000:" in bytes(found["etc/passwd"])  # type: ignore[arg-type]
    assert "solution" not in found
    assert found["tmp"].mode == 0o1777  # type: ignore[union-attr]


def test_a_bill_of_materials_names_each_package_with_its_hash(tmp_path: Path) -> None:
    with served(served_debs()) as (address, _):
        place = with_debs(tmp_path, address)
        place.edit("BUILD.yaml", '"targets": {', '"targets": {"above": {"kind": "image", "base": ":img"},')
        place.build("//:img", "//:above")
    bill = json.loads((image(place) / "sbom.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    listed = {one["name"]: (one["version"], one["purl"], one["hashes"][0]["content"]) for one in bill["components"]}
    assert sorted(listed) == ["ca-certificates", "dash", "libc6"]
    sha256 = hashlib.sha256(PACKAGES["dash"][0]).hexdigest()
    assert listed["dash"] == ("1.0-1", "pkg:deb/debian/dash@1.0-1?arch=amd64", sha256)
    assert "timestamp" not in bill["metadata"]
    above = json.loads((image(place, "above") / "sbom.json").read_text())
    assert above["components"] == bill["components"]


def test_an_image_is_the_same_in_two_folders_and_differs_by_a_byte(tmp_path: Path) -> None:
    with served(served_debs()) as (address, _):
        places = [with_debs(tmp_path / name, address) for name in ("one", "two é")]
        for place in places:
            place.build("//:img")
        assert layout_digest(places[0]) == layout_digest(places[1])
        assert places[0].digests() == places[1].digests()
        places[1].write({"run.sh": "#!/bin/sh\n\n"})
        places[1].build("//:img")
        assert layout_digest(places[0]) != layout_digest(places[1])


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_an_image_is_the_same_by_another_python(version: str, tmp_path: Path) -> None:
    python = ROOT / f".venv-{version}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"there is no .venv-{version}; `make pythons` makes it where python{version} is installed")
    with served(served_debs()) as (address, _):
        here = with_debs(tmp_path / "here", address)
        here.build("//:img")
        there = with_debs(tmp_path / "there", address)
        there = Place(there.folder, python=str(python))
        done = there.mrp("build", "//:img")
        if "pip install 'mrp-build[images]'" in done.stderr:
            pytest.skip(f".venv-{version} lacks the extra `images`")
        assert done.returncode == 0, done.stderr
    assert layout_digest(here) == layout_digest(there)
    assert here.digests() == there.digests()


def test_layers_are_shared_and_change_alone(tmp_path: Path) -> None:
    low = {"kind": "image", "base": "scratch", "layers": [{"copy": {"a.txt": "/data/a"}}]}
    place = workspace(
        tmp_path,
        {
            "low": low,
            "high": {"kind": "image", "base": ":low", "layers": [{"copy": {"b.txt": "/data/b"}}], "env": {"A": "1"}},
        },
        {"a.txt": "a\n", "b.txt": "b\n"},
    )
    place.build("//:low", "//:high")
    low_blobs, high_blobs = (
        {p.name for p in (image(place, n) / "oci/blobs/sha256").iterdir()} for n in ("low", "high")
    )
    assert len(low_blobs & high_blobs) == 2  # the copied layer, and the system's
    place.write({"b.txt": "B\n"})
    place.build("//:low", "//:high")
    assert [label for _, label, _ in place.executed()] == ["//:high"]


@pytest.mark.parametrize(
    ("target", "taken"),
    [
        ("/work/a", "/work"),
        ("/opt/mrp/a", "/opt/mrp"),
        ("/proc/a", "/proc"),
        ("/tmp/a", "/tmp"),
        ("/solution", "/solution"),
    ],
)
def test_a_layer_cannot_add_to_the_contracts_own_places(tmp_path: Path, target: str, taken: str) -> None:
    layers = [{"copy": {"a.txt": target}}]
    place = workspace(tmp_path, {"img": {"kind": "image", "base": "scratch", "layers": layers}}, {"a.txt": ""})
    assert f"into {taken}, which is mrp's own" in place.build("//:img", code=1)["reason"]
    place.edit("BUILD.yaml", target, "/etc/a")
    place.build("//:img")


@pytest.mark.parametrize(
    "layer",
    [{"copy": {"a.txt": "/data", "b.txt": "/data/b"}}, {"links": {"/a": "b", "/a/c": "d"}}, {"links": {"/a": ""}}],
    ids=["copy", "links", "link to nothing"],
)
def test_a_layer_that_is_no_tree_fails_with_its_kind(tmp_path: Path, layer: dict[str, Any]) -> None:
    targets = {"img": {"kind": "image", "base": "scratch", "layers": [layer]}}
    place = workspace(tmp_path, targets, {"a.txt": "", "b.txt": ""})
    done = place.mrp("build", "//:img")
    assert done.returncode == 1
    assert f"a `{next(iter(layer))}` layer cannot be laid out" in done.stderr


def test_packages_that_bring_different_files_to_one_place_are_refused(tmp_path: Path) -> None:
    packages = {"one": (make_deb({"bin/x": b"1"}), ()), "two": (make_deb({"usr/bin/x": b"2"}), ())}
    with served({f"/{name}.deb": data for name, (data, _) in packages.items()}) as (address, _):
        layers = [{"deb": ["one", "two"], "lock": "debs.lock"}]
        targets = {"img": {"kind": "image", "base": "scratch", "layers": layers}}
        place = workspace(tmp_path, targets, {"debs.lock": lock_of(address, packages)})
        assert "both bring /usr/bin/x, and not the same" in place.build("//:img", code=1)["reason"]


def test_a_package_with_other_bytes_than_its_lock_is_refused(tmp_path: Path) -> None:
    files = {**served_debs(), "/dash.deb": make_deb({"bin/dash": b"evil\n"})}
    with served(files) as (address, _):
        place = with_debs(tmp_path, address)
        place.build("//:img", code=1)


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "tag": ({"base": "python:3.12"}, 3, "the image python:3.12 is not pinned"),
    "registry": ({"base": "registry:///python:3.12"}, 3, "the image registry:///python:3.12 is not pinned"),
    "from": ({"base": {"dockerfile": "Dockerfile"}}, 3, "the image debian:12 is not pinned"),
    "copied": ({"base": "dockerfile:///Copied"}, 3, "the image busybox is not pinned"),
    "add": ({"base": "dockerfile:///Add"}, 2, "downloads https://example.org/x"),
    "digest": ({"base": "python@sha256:abc"}, 2, "does not name an image by its whole digest"),
    "scheme": ({"base": "other:///x"}, 2, "is of no kind that is known"),
    "host": ({"base": "host", "layers": [{"deb": ["dash"], "lock": "debs.lock"}]}, 2, "cannot lie over `host`"),
    "absent": (
        {"base": "scratch", "layers": [{"deb": ["git"], "lock": "debs.lock"}]},
        2,
        "the lock has no package git",
    ),
    "lock": ({"base": "scratch", "layers": [{"deb": ["git"], "lock": "new.lock"}]}, 2, "`mrp image lock //:img`"),
    "hashes": ({"base": "scratch", "layers": [{"pip": "requirements.txt"}]}, 2, "has no --hash=sha256:"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_pinned_is_refused_before_anything_runs(tmp_path: Path, case: str) -> None:
    fields, code, words = REFUSED[case]
    files: dict[str, str | bytes] = {
        "Dockerfile": "FROM debian:12\n",
        "Copied": "FROM scratch\nCOPY --from=busybox /bin/sh /bin/sh\n",
        "Add": "FROM scratch\nADD https://example.org/x /x\n",
        "debs.lock": lock_of("http://127.0.0.1:1", PACKAGES),
        "requirements.txt": "six==1.16.0\n",
    }
    place = workspace(tmp_path, {"img": {"kind": "image", **fields}}, files)
    done = place.mrp("build", "//:img")
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert not place.cache.exists() or not place.committed_keys()


def test_a_providers_own_image_is_a_source_that_others_cannot_show(tmp_path: Path) -> None:
    layers = [{"copy": {"a.txt": "/opt/a"}}]
    targets = {"img": {"kind": "image", "base": "modal:///debian_slim", "layers": layers}}
    place = workspace(tmp_path, targets, {"a.txt": "a\n"})
    assert "modal:///debian_slim" in place.mrp("build", "//:img").stderr  # the built-in policy allows none
    policy(place, images=["//...", "modal:///*"])
    place.build("//:img", "--sandbox", "modal")
    assert json.loads((image(place) / "image").read_text())["base"] == {"source": "modal:///debian_slim"}
    assert not (image(place) / "oci").exists()
    refused = place.mrp("image", "export", "//:img", str(tmp_path / "x.tar"))
    assert refused.returncode in (2, 4)
    assert not (tmp_path / "x.tar").exists()
    with Store.open(place.cache) as store, pytest.raises(InfraError, match="only its provider has"):
        write_rootfs(read_portable(image_digest(place), store, "test"), store, io.BytesIO())


# --- Other tools ------------------------------------------------------------------------------------------------


def skopeo(*words: str) -> dict[str, Any]:
    """What skopeo says; the test is skipped where there is none."""
    if shutil.which("skopeo") is None:
        pytest.skip("there is no skopeo here; `apt-get install skopeo` brings it")
    done = subprocess.run(["skopeo", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout) if words[0] == "inspect" else {}
    return found


def test_skopeo_reads_the_layout_and_both_kinds_of_archive(tmp_path: Path) -> None:
    with served(served_debs()) as (address, _):
        place = with_debs(tmp_path, address, env={"A": "b"})
        place.build("//:img")
    file = tmp_path / "img.tar"
    exported = place.mrp("image", "export", "//:img", str(file), "--tag", "team/img:1")
    assert exported.returncode == 0, exported.stderr
    seen = [
        skopeo("inspect", f"oci:{image(place)}/oci"),
        skopeo("inspect", f"oci-archive:{file}"),
        skopeo("inspect", f"docker-archive:{file}"),
    ]
    assert all(one["Env"] == ["A=b"] and one["Layers"] == seen[0]["Layers"] for one in seen)
    assert seen[0]["Digest"] == seen[1]["Digest"] == layout_digest(place)
    skopeo("copy", "--preserve-digests", f"oci-archive:{file}", f"oci:{tmp_path}/copied")
    assert skopeo("inspect", f"oci:{tmp_path}/copied")["Digest"] == layout_digest(place)


def test_an_exported_image_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    with served(served_debs()) as (address, _):
        place = with_debs(tmp_path, address)
        archives = []
        for number, flags in enumerate(([], ["--gzip"], [], ["--gzip"])):
            file = tmp_path / str(number)
            done = place.mrp("image", "export", "//:img", str(file), *flags)
            assert done.returncode == 0, done.stderr
            archives.append(file.read_bytes())
    assert archives[0] == archives[2] != archives[1] == archives[3]
