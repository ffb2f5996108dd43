"""Layout: which file system a process finds, as steps, from its image and its mounts."""

import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mrp.cache.canonical import Json, parse_canonical
from mrp.cache.checkout import CHECKOUT_TIME
from mrp.cache.digest import Digest
from mrp.cache.folders import ENTRY_BYTES
from mrp.cache.store import Store
from mrp.runtime.images.host import SEARCH_PATH, host_env, host_program, host_steps, lay_out_host
from mrp.runtime.images.portable import read_portable
from mrp.runtime.sandbox.guest_root import guest_program, guest_root, guest_steps, in_the_way
from mrp.runtime.sandbox.materials import Materials
from mrp.runtime.sandbox.roots import laid_out_root
from mrp.runtime.sandbox.steps import Step
from mrp.specs.errors import InfraError
from mrp.specs.work import OPERATOR_DIR, OUT, SDK_DIR, WORK, Mount, Process

DEFAULT_ENV = {
    "HOME": WORK,
    "LANG": "C.UTF-8",
    "PATH": SEARCH_PATH,
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
}
"""What every process finds in its environment unless its image, sandbox or own environment says otherwise."""

CODE = (OPERATOR_DIR, SDK_DIR)
"""Mounts that are the same for all items of an operator."""

_ROOT_FOLDERS = ("/tmp", "/run", "/home", "/opt", "/srv", "/mnt")
# Root's sandboxes have root's id outside, which may write these although it has no privilege.
_READ_ONLY_PROC = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi", "pressure")
_HIDDEN_PROC = ("kcore", "keys", "key-users", "timer_list", "sched_debug", "latency_stats")
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/services", "/etc/protocols", "/etc/gai.conf", "/etc/ssl/certs")


@dataclass(frozen=True)
class ImageView:
    """An image as this machine shows it: `steps` of its own files, and facts that processes in it need.

    root: the files of a portable image, which shows nothing of this machine; None for a host image. python: the path
    in the sandbox, and for a host image on this machine too, of the image's python3; None when it has none.
    """

    steps: tuple[Step, ...]
    layers: Path | None
    env: Mapping[str, str]
    uid: int
    gid: int
    python: str | None
    root: Path | None = None

    @property
    def needs_walls(self) -> bool:
        """Whether it holds files that are not where processes look for them without a sandbox."""
        return self.layers is not None or self.root is not None


@dataclass(frozen=True)
class Folders:
    """The folders of one process on this machine: guest path -> folder; `steps` bind them, shallow ones first.

    `base` is what the writable ones hold at first, as mrp.runtime.sandbox.supervise.folder_bytes counts.
    """

    writable: Mapping[str, Path]
    read_only: Mapping[str, Path]
    steps: tuple[Step, ...]
    base: int = 0

    def all(self) -> dict[str, Path]:
        return {**self.writable, **self.read_only}


def view_image(digest: Digest, store: Store, materials: Materials, stack: ExitStack) -> ImageView:
    """Read an image's description and lay out what it adds; `stack` holds on to the folders.

    Raises InfraError for bases that only other backends can show.
    """
    description: Json = parse_canonical(store.get_bytes(digest))
    base = description["base"]
    if "host" not in base:
        return _view_portable(digest, store, materials, stack)
    root = stack.enter_context(materials.use(f"host-{digest}", lambda folder: lay_out_host(base, folder)))
    layers = None
    if description["layers"]:
        layers = stack.enter_context(materials.tree(store.merge_trees(description["layers"]), store))
    uid, gid = (int(part) for part in description["user"].split(":"))
    env = {**host_env(base), **description["env"]}
    return ImageView(tuple(host_steps(base, root)), layers, env, uid, gid, host_program(base, "python3"))


def _view_portable(digest: Digest, store: Store, materials: Materials, stack: ExitStack) -> ImageView:
    image = read_portable(digest, store, "local")
    if image.source is not None:
        service = image.source.partition(":")[0]
        raise InfraError(
            f"this image starts from {image.source}, which only the `{service}` service has; run it with the sandbox "
            "backend of that service, or use `base: scratch` or an image by digest",
            retryable=False,
        )
    uid, gid = (int(part) for part in image.user.split(":"))
    tree = guest_root(image.layers, system_files(uid, gid), store)
    root = stack.enter_context(laid_out_root(tree, store, materials))
    python = guest_program(root, "python3", image.env.get("PATH", SEARCH_PATH))
    return ImageView((), None, image.env, uid, gid, python, root)


def environment(
    process: Process, view: ImageView, secrets: Mapping[str, str], doors: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The whole environment of a process; the later of image, sandbox, process, `doors` and secrets wins.

    Sorted, since programs see the order, and keys do not. Raises InfraError for a NUL: what stands before it would be
    taken for the whole.
    """
    env = {**DEFAULT_ENV, **view.env, **process.box.env, **process.env, **(doors or {}), **secrets, "PWD": process.cwd}
    if process.entry is not None:
        env |= {"MRP_ENTRY": process.entry, "MRP_ROLE": process.role}
    if any("\0" in name or "\0" in value for name, value in env.items()):
        raise InfraError("a variable or path holds a NUL character, which no process can be given", retryable=False)
    return dict(sorted(env.items()))


def lay_out(
    process: Process,
    new_folder: Callable[[str], Path],
    store: Store,
    materials: Materials,
    stack: ExitStack,
    *,
    execute: bool,
) -> Folders:
    """Make the folders of a process: fresh copies where it may write, shared ones elsewhere.

    `new_folder` gives an empty folder for a name, with mode 0755 and the time of a checkout.

    `execute` tells whether programs in them can be run. Raises InfraError for mounts that cannot be made.
    """
    mounts: dict[str, Mount | None] = dict.fromkeys((WORK, OUT, *process.outputs))
    mounts.update((mount.path, mount) for mount in process.mounts)
    for path in mounts:
        check_mount(path)
    writable: dict[str, Path] = {"/tmp": new_folder("tmp")}
    read_only: dict[str, Path] = {}
    base = 0
    for number, (path, mount) in enumerate(sorted(mounts.items())):
        if mount is not None and not mount.writable:
            read_only[path] = stack.enter_context(materials.tree(mount.tree, store))
            continue
        folder = writable[path] = new_folder(f"w{number}")
        if mount is not None:
            base += store.checkout(mount.tree, folder, writable=True)
    steps = []
    for path, folder in sorted({**writable, **read_only}.items()):
        base += _make_mount_point(path, writable, read_only)
        steps.append(Step("bind", path, str(folder), writable=path in writable, execute=execute))
    return Folders(writable, read_only, tuple(steps), base)


def process_points(process: Process) -> list[str]:
    """The guest paths that lay_out makes folders for, sorted."""
    return sorted({"/tmp", WORK, OUT, *process.outputs, *(mount.path for mount in process.mounts)})


def is_nested(paths: Iterable[str]) -> bool:
    """Whether one of the paths lies in another."""
    known = sorted(paths)
    return any(inner.startswith(f"{outer}/") for outer in known for inner in known)


def root_steps(
    view: ImageView, private: Path, points: Iterable[str], network: bool, shared_memory: int, *, execute: bool
) -> list[Step]:
    """The steps for all that is the same for every process in an image; `private` is where system_files wrote.

    `points` are the paths that will be mounted on. `shared_memory` is the size of /dev/shm in bytes,
    and `execute` whether programs in there can be run.
    """
    points = set(points)
    steps = [Step("dir", path) for path in _ROOT_FOLDERS]
    if view.root is not None:
        steps = guest_steps(view.root, points, _ROOT_FOLDERS)
    else:
        steps += [Step("link", "/var/tmp", "/tmp"), *view.steps]
    steps += [Step("proc", "/proc")]
    for sources, hidden in ((_READ_ONLY_PROC, False), (_HIDDEN_PROC, True)):
        present = [f"/proc/{name}" for name in sources if os.path.exists(f"/proc/{name}")]
        steps += [Step("bind", path, "/dev/null" if hidden else path) for path in present]
    steps += [Step("dev", "/dev", size=shared_memory, execute=execute)]
    if view.root is None:
        steps += [Step("bind", f"/etc/{name}", str(private / name)) for name in sorted(os.listdir(private))]
    if network:
        taken = {step.path for step in steps}
        files = _NETWORK_FILES if view.root is None else _NETWORK_FILES[:1]
        steps += [Step("bind", path, path) for path in files if path not in taken and os.path.exists(path)]
    if view.layers is not None:
        steps += _split(view.layers, "", points)
    return steps


def write_system_files(folder: Path, uid: int, gid: int) -> None:
    """Write what system_files gives into a new folder."""
    folder.mkdir(parents=True)
    for name, text in system_files(uid, gid).items():
        (folder / name).write_text(text, encoding="utf-8")


def system_files(uid: int, gid: int) -> dict[str, str]:
    """The files of /etc that mrp makes, by name: who is who, and how names are looked up."""
    people = f"root:x:0:0:root:/nonexistent:/bin/sh\nmrp:x:{uid}:{gid}:mrp:{WORK}:/bin/sh\n"
    people += "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    return {
        "passwd": people,
        "group": f"root:x:0:\nmrp:x:{gid}:\nnogroup:x:65534:\n",
        "hosts": "127.0.0.1 localhost mrp\n::1 localhost\n",
        "hostname": "mrp\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }


def _split(folder: Path, guest: str, points: set[str]) -> list[Step]:
    """Bind what a layer holds, in pieces where something else will be mounted within it. Raises InfraError."""
    steps = []
    for name in sorted(os.listdir(folder)):
        path, source = f"{guest}/{name}", folder / name
        outer = path in _ROOT_FOLDERS or any(point.startswith(f"{path}/") for point in points)
        if (outer or path in points) and (source.is_symlink() or not source.is_dir()):
            raise in_the_way(path)
        if source.is_symlink():
            steps.append(Step("link", path, str(source.readlink())))
        elif outer:
            steps.append(Step("dir", path))
            steps += _split(source, path, points)
        else:
            steps.append(Step("bind", path, str(source)))
    return steps


def check_mount(path: str) -> None:
    """Raises InfraError for a place that nothing can be mounted at."""
    reserved = ("/usr", "/bin", "/lib", "/lib64", "/sbin", "/etc", "/proc", "/dev")
    if (
        not path.startswith("/")
        or path == "/"
        or posixpath.normpath(path) != path
        or any(path == place or path.startswith(f"{place}/") for place in reserved)
    ):
        raise InfraError(f"nothing can be mounted at {path} in a sandbox; use another folder", retryable=False)


def _make_mount_point(path: str, writable: Mapping[str, Path], read_only: Mapping[str, Path]) -> int:
    """Make the folder that `path` is mounted on when it lies in another mount, following no symlink out of it.

    Gives what was added to the other mount.
    """
    outer = max((other for other in {**writable, **read_only} if path.startswith(f"{other}/")), key=len, default=None)
    if outer is None:
        return 0
    added = 0
    if outer in read_only:
        raise InfraError(f"{path} cannot be mounted within {outer}, which is read-only", retryable=False)
    folder = writable[outer]
    for part in path[len(outer) + 1 :].split("/"):
        folder = folder / part
        try:
            mode = folder.lstat().st_mode
        except FileNotFoundError:
            folder.mkdir()
            os.utime(folder, (CHECKOUT_TIME, CHECKOUT_TIME))
            added += ENTRY_BYTES
            continue
        if not stat.S_ISDIR(mode):
            raise InfraError(f"{path} cannot be mounted: {outer} holds something else there", retryable=False)
    return added
