"""Host images: what of the machine is shown, and that what is shown is what the key covers."""

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mrp.cache.canonical import Json, canonical_text, parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.filestats import FileDigests
from mrp.cache.store import Entry, Store
from mrp.rules.image import Layer, MakeImage
from mrp.runtime.images.host import describe_host, host_program, host_steps, lay_out_host
from mrp.runtime.images.layers import layer_tree, make_image
from mrp.specs.errors import BuildFailed, InfraError


@pytest.fixture
def digests(tmp_path: Path) -> Iterator[FileDigests]:
    with FileDigests.open(tmp_path / "digests.sqlite") as memory:
        yield memory


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


def kinds(description: Json) -> dict[str, str]:
    return {path: kind for path, kind, _ in description["files"]}


def test_without_a_toolchain_all_of_usr_is_shown_and_the_packages_are_the_key(digests: FileDigests) -> None:
    description = describe_host([], digests)
    assert "/usr" in description["visible"]
    assert len(description["release"]) == 64
    assert host_program(description, "sh") is not None
    assert host_program(description, "no-such-program") is None


def test_a_description_is_the_same_whoever_asks_and_whenever(digests: FileDigests, tmp_path: Path) -> None:
    first = canonical_text(describe_host(["sh", "python3"], digests))
    with FileDigests.open(tmp_path / "elsewhere.sqlite") as others:
        assert canonical_text(describe_host(["python3", "sh", "sh"], others)) == first
    assert str(Path.home()) not in first
    assert str(tmp_path) not in first


def test_a_program_comes_with_its_links_loader_and_libraries(digests: FileDigests) -> None:
    found = kinds(describe_host(["sh"], digests))
    program = os.path.realpath("/usr/bin/sh")
    assert found[program] == "x"
    assert any(Path(path).name.startswith("libc.") for path in found)
    assert any(Path(path).name.startswith("ld-") for path in found)
    assert "/usr/bin/sh" in found
    assert "/usr/bin/cat" not in found


def test_an_interpreter_comes_with_its_library_folders(digests: FileDigests) -> None:
    description = describe_host(["python3"], digests)
    trees = [path for path, kind in kinds(description).items() if kind == "t"]
    script = "import os; print(os.path.dirname(os.__file__))"
    library = subprocess.run(["/usr/bin/python3", "-c", script], capture_output=True, text=True, check=True)
    assert library.stdout.strip() in trees
    # Extension modules need libraries that the program itself does not.
    assert any(Path(path).name.startswith("libsqlite3") for path in kinds(description))


def test_a_script_comes_with_its_interpreter(digests: FileDigests, tmp_path: Path) -> None:
    script = tmp_path / "tool"
    script.write_text("#!/usr/bin/env -S sh\n")
    script.chmod(0o755)
    found = kinds(describe_host([str(script)], digests))
    assert {str(script), os.path.realpath("/usr/bin/env")} <= set(found)


def test_an_unknown_program_is_named(digests: FileDigests) -> None:
    with pytest.raises(BuildFailed, match=r"'pyhton3'.*install it here, or take it out of `toolchain`"):
        describe_host(["sh", "pyhton3"], digests)


def test_files_are_read_once(digests: FileDigests) -> None:
    describe_host(["sh"], digests)
    read = digests.files_read
    assert read > 0
    describe_host(["sh"], digests)
    assert digests.files_read == read


def test_the_bytes_of_a_program_are_the_key(digests: FileDigests, tmp_path: Path) -> None:
    program = tmp_path / "tool"
    before = None
    for text in ("#!/bin/sh\necho 1\n", "#!/bin/sh\necho 2\n"):
        program.write_text(text)
        program.chmod(0o755)
        description = describe_host([str(program)], digests)
        assert description != before
        before = description


def test_a_program_that_changes_after_it_was_described_is_not_shown(digests: FileDigests, tmp_path: Path) -> None:
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\necho 1\n")
    program.chmod(0o755)
    description = describe_host([str(program)], digests)
    lay_out_host(description, tmp_path / "shown")
    assert (tmp_path / "shown" / str(program).lstrip("/")).read_text().endswith("echo 1\n")
    program.write_text("#!/bin/sh\necho 2\n")
    with pytest.raises(InfraError, match="changed since this build began; build again"):
        lay_out_host(description, tmp_path / "again")


def test_a_toolchain_is_shown_as_copies_and_library_folders(digests: FileDigests, tmp_path: Path) -> None:
    description = describe_host(["python3"], digests)
    lay_out_host(description, tmp_path / "shown")
    steps = host_steps(description, tmp_path / "shown")
    trees = {path for path, kind in kinds(description).items() if kind == "t"}
    assert {step.path for step in steps if step.source == step.path} == trees
    assert not any(step.writable for step in steps)


# --- Layers -----------------------------------------------------------------------------------------------------


def image(store: Store, digests: FileDigests, *layers: Layer, env: dict[str, str] | None = None) -> Digest:
    base = describe_host([], digests)
    return make_image(MakeImage(base, layers, env or {}, "1000:1000"), store)


def test_an_image_is_its_base_with_the_trees_of_its_layers(store: Store, digests: FileDigests) -> None:
    files = store.put_tree({"opt/agent/run.sh": Entry("x", store.put_bytes(b"#!/bin/sh\n"))})
    folders = Layer("dirs", store.put_tree({}), ["/opt/data", "/srv/x/y"])
    links = Layer("links", store.put_tree({}), {"/opt/bin/run": "../agent/run.sh"})
    made = image(store, digests, Layer("copy", files), folders, links, env={"A": "1"})
    description = parse_canonical(store.get_bytes(made))
    assert description["env"] == {"A": "1"}
    assert description["base"]["host"] == "all"
    assert [sorted(store.read_tree(tree)) for tree in description["layers"]] == [
        ["opt/agent/run.sh"],
        ["opt/data", "srv/x/y"],
        ["opt/bin/run"],
    ]


def test_an_image_over_another_has_the_layers_of_both(store: Store, digests: FileDigests) -> None:
    lower = store.put_tree({"opt/a": Entry("f", store.put_bytes(b"a"))})
    upper = store.put_tree({"opt/b": Entry("f", store.put_bytes(b"b"))})
    below = image(store, digests, Layer("copy", lower), env={"A": "1", "B": "1"})
    above = make_image(MakeImage({"image": below}, (Layer("copy", upper),), {"B": "2"}, "2000:2000"), store)
    description = parse_canonical(store.get_bytes(above))
    assert description["layers"] == [lower, upper]
    assert description["env"] == {"A": "1", "B": "2"}
    assert description["user"] == "2000:2000"


@pytest.mark.parametrize("path", ["usr/bin/x", "bin/x", "etc/passwd", "task/x", "opt/mrp/sdk/x", "proc/x"])
def test_a_layer_cannot_add_to_what_is_the_machines_or_mrps(store: Store, digests: FileDigests, path: str) -> None:
    files = store.put_tree({path: Entry("f", store.put_bytes(b""))})
    with pytest.raises(BuildFailed, match=f"would put /{path} into .*copy to /opt/... instead"):
        image(store, digests, Layer("copy", files))


@pytest.mark.parametrize("path", ["relative", "/opt/../etc", "/", "/opt//x"])
def test_paths_in_layers_are_absolute_and_plain(store: Store, path: str) -> None:
    with pytest.raises(BuildFailed, match="is not an absolute path"):
        layer_tree("dirs", [path], store.put_tree({}), store)


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


def tar_layer(store: Store, data: bytes, sha256: str | None = None) -> Digest:
    files = store.put_tree({"third_party/tool.tgz": Entry("f", store.put_bytes(data))})
    return layer_tree("tar", {"sha256": sha256 or hashlib.sha256(data).hexdigest()}, files, store)


def test_an_archive_becomes_a_tree(store: Store) -> None:
    data = archive(
        (member("./opt/tool/bin/run", mode=0o755), b"#!/bin/sh\n"),
        (member("opt/tool/latest", tarfile.SYMTYPE, "bin/run"), b""),
        (member("opt/tool/same", tarfile.LNKTYPE, "opt/tool/bin/run"), b""),
        (member("opt/tool/empty", tarfile.DIRTYPE), b""),
    )
    entries = store.read_tree(tar_layer(store, data))
    assert {path: entry.kind for path, entry in entries.items()} == {
        "opt/tool/bin/run": "x",
        "opt/tool/empty": "d",
        "opt/tool/latest": "l",
        "opt/tool/same": "x",
    }


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (member("../escape"), "leads out of it"),
        (member("/etc/passwd"), "leads out of it"),
        (member("dev", tarfile.CHRTYPE), "no file, folder or link"),
        (member("x", tarfile.LNKTYPE, "absent"), "does not come before it"),
    ],
)
def test_an_archive_that_reaches_out_is_refused(store: Store, bad: tarfile.TarInfo, words: str) -> None:
    with pytest.raises(BuildFailed, match=words):
        tar_layer(store, archive((bad, b"")))


def test_an_archive_with_other_bytes_or_none_is_refused(store: Store) -> None:
    with pytest.raises(BuildFailed, match="correct one of them"):
        tar_layer(store, archive((member("opt/x"), b"x")), "0" * 64)
    with pytest.raises(BuildFailed, match="no tar archive"):
        tar_layer(store, b"not a tar")


def test_layers_that_nothing_builds_yet_say_so(store: Store) -> None:
    with pytest.raises(InfraError, match="`npm` layer cannot be built by this version") as error:
        layer_tree("npm", None, store.put_tree({}), store)
    assert not error.value.retryable
