"""Images: a base, layers over it, an environment and a user, described as one JSON document in the store.

What others publish (an image by digest, Debian packages, wheels, archives) is fetched first, each in an action of its
own, so that the image itself is made of stored bytes alone.
"""

import platform
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from mrp.cache.canonical import Json, parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.errors import TreeError
from mrp.cache.store import Entry
from mrp.rules.action import Action, ActionKind, make_action, put_description
from mrp.rules.docker_context import docker_context
from mrp.rules.fetching import Fetch, fetch_preimage
from mrp.rules.locks import (
    Deb,
    DebLock,
    Requirement,
    applicable,
    canonical_name,
    parse_deb_lock,
    parse_requirements,
)
from mrp.rules.rule import ImageValue, NoAction, Rule, RuleContext, Settled, needed
from mrp.specs.errors import BuildFailed, InfraError
from mrp.specs.ir import FetchSpec, Files, ImageTask, LayerSpec
from mrp.specs.results import Result

IMAGE_VERSION = 1
"""Raising it makes all images anew; for when the same layers come to mean other trees."""

PULL_VERSION = 1
WHEEL_VERSION = 1
DOCKERFILE_VERSION = 1

SOURCES = ("modal:///", "snapshot:///")
"""Bases that only one provider has, and shows by that name."""

_LATER_LAYERS = {"npm", "run"}
_BASE = "base"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PINNED_IMAGE = re.compile(r"(?:registry:///)?([^\s@]+)@(sha256:[0-9a-f]{64})\Z")
_PYTHON = re.compile(r"usr/(local/)?lib/python(3\.[0-9]+)/os\.py\Z")
_OLDEST_LIBC = "2.28"
"""Taken where an image does not tell which C library it has."""


@dataclass(frozen=True)
class Layer:
    """A layer whose inputs are digests: `tree` holds files at guest paths, or what is unpacked; `value` the rest.

    kind: copy, tar, dirs, links, deb, pip, or `base` for a layer of a base image, which is taken as it is.
    """

    kind: str
    tree: Digest
    value: Json = None

    def to_json(self) -> Json:
        return {"kind": self.kind, "tree": self.tree, "value": self.value}


@dataclass(frozen=True)
class MakeImage:
    """Work: lay `layers` over `base` and write the image's description."""

    base: Json
    layers: tuple[Layer, ...]
    env: dict[str, str]
    user: str


@dataclass(frozen=True)
class PullImage:
    """Work: an image of a registry, by digest; the result has a tree for each layer, and `config`, its settings."""

    name: str
    digest: str
    platform: str


@dataclass(frozen=True)
class BuildDockerfile:
    """Work: the image that a Dockerfile makes of `context`, which holds it too; the result is as PullImage's."""

    context: Digest
    dockerfile: str
    platform: str


@dataclass(frozen=True)
class FetchWheel:
    """Work: the wheel of a requirement that fits a Python and a C library; the result is a tree of one file."""

    name: str
    version: str
    sha256: tuple[str, ...]
    python: str
    libc: str
    machine: str


ImageWork: TypeAlias = MakeImage | PullImage | BuildDockerfile | FetchWheel


def image_rule(task: ImageTask, context: RuleContext) -> Rule:
    """Raises InfraError for layers that nothing here builds."""
    if task.label.startswith("builtin:"):
        description = {"base": context.host(task.toolchain), "layers": [], "env": {}, "user": task.user}
        return NoAction(ImageValue(put_description(context.store, description)))
    for layer in task.layers:
        if layer.kind in _LATER_LAYERS:
            raise InfraError(
                f"{task.label} has a `{layer.kind}` layer, which this version cannot build; use copy, tar, deb, pip,"
                " dirs or links",
                retryable=False,
            )
    return ImageRule(task, context)


class ImageRule:
    """First what is somewhere else, then the wheels that fit the Python of that, then the image."""

    def __init__(self, task: ImageTask, context: RuleContext) -> None:
        self._task, self._context = task, context
        self._reproducible = context.reproducible(task)
        self._fetched: dict[str, Settled] = {}
        self._outstanding = 0
        self._wheels_asked = False
        self._made: Settled | None = None
        self._debs: dict[int, list[Deb]] = {}
        self._wheels: dict[int, list[Requirement]] = {}

    def start(self) -> Iterator[Action]:
        self._read_locks()
        actions = [*self._base_action()]
        for number, layer in enumerate(self._task.layers):
            if (address := _address(layer)) is not None:
                actions.append(self._fetch(f"layer-{number}", FetchSpec(url=address, sha256=layer.value["sha256"])))
            for deb in self._debs.get(number, ()):
                spec = FetchSpec(url=deb.url, sha256=deb.sha256, size=deb.size)
                actions.append(self._fetch(f"layer-{number}-{deb.name}", spec))
        yield from self._ask(actions)

    def settled(self, settled: Settled) -> Iterator[Action]:
        if settled.action.item == "":
            self._made = settled
            return
        self._fetched[settled.action.item] = settled
        self._outstanding -= 1
        if not self._outstanding and all(fetch.result is not None for fetch in self._fetched.values()):
            yield from self._ask([])

    def value(self) -> ImageValue:
        for settled in self._fetched.values():
            self._brought(settled)
        assert self._made is not None, "value() before the action settled"
        result = needed(self._made, f"{self._task.label} {self._made.outcome.value}")
        outputs = {name: ref for name, ref in result.outputs.items() if not name.startswith("layer-")}
        return ImageValue(outputs["image"].digest, outputs, self._reproducible)

    def _ask(self, actions: list[Action]) -> Iterator[Action]:
        """The next actions: `actions`, or when there are none the wheels, or when all is there the image."""
        if not actions and not self._wheels_asked:
            self._wheels_asked = True
            actions = [
                self._wheel(number, one) for number, found in self._wheels.items() for one in self._fitting(found)
            ]
        self._outstanding = len(actions)
        yield from actions or [self._image()]

    # -- what is fetched -----------------------------------------------------------------------------------------

    def _read_locks(self) -> None:
        """Packages that a lower layer brings already are in no higher one."""
        known: set[str] = set()
        for number, layer in enumerate(self._task.layers):
            if layer.kind == "deb":
                lock = self._lock(layer)
                debs = lock.closure(layer.value["packages"])
                self._debs[number] = [deb for deb in debs if deb.sha256 not in known]
                known.update(deb.sha256 for deb in debs)
            elif layer.kind == "pip":
                self._wheels[number] = parse_requirements(self._content(layer.files))

    def _lock(self, layer: LayerSpec) -> DebLock:
        lock = parse_deb_lock(self._content(layer.files))
        machine = _platform().partition("/")[2]
        if lock.architecture != machine:
            raise BuildFailed(
                f"{layer.value['lock']} holds packages for {lock.architecture}, and this machine makes images for"
                f" {machine}; write it anew here with `mrp image lock`"
            )
        return lock

    def _content(self, files: Files) -> bytes:
        store = self._context.store
        (entry,) = store.read_tree(self._context.files_tree(files)).values()
        assert entry.digest is not None
        return store.get_bytes(entry.digest)

    def _base_action(self) -> Iterator[Action]:
        base = self._task.base
        if isinstance(base, Mapping):
            tree = self._context.files_tree(self._task.context)
            context, name = docker_context(tree, base["context"], base["dockerfile"], self._context.store)
            built = BuildDockerfile(context, name, _platform())
            preimage = {"version": DOCKERFILE_VERSION, "context": context, "dockerfile": name}
            yield self._action(ActionKind.IMAGE, _BASE, {**preimage, "platform": built.platform}, built)
        elif pinned := PINNED_IMAGE.match(base):
            pulled = PullImage(pinned[1], pinned[2], _platform())
            preimage = {"version": PULL_VERSION, "manifest": pulled.digest, "platform": pulled.platform}
            yield self._action(ActionKind.FETCH, _BASE, preimage, pulled)

    def _fetch(self, item: str, spec: FetchSpec) -> Action:
        return self._action(ActionKind.FETCH, item, fetch_preimage(spec, unpack=False), Fetch(spec, unpack=False))

    def _wheel(self, number: int, wanted: Requirement) -> Action:
        python, _ = self._python()
        machine = platform.machine()
        work = FetchWheel(wanted.name, wanted.version, wanted.sha256, python, self._libc(), machine)
        preimage = {
            "version": WHEEL_VERSION,
            "sha256": list(work.sha256),
            "python": work.python,
            "libc": work.libc,
            "machine": machine,
        }
        return self._action(ActionKind.FETCH, f"layer-{number}-{canonical_name(wanted.name)}", preimage, work)

    def _action(self, kind: ActionKind, item: str, preimage: Mapping[str, Json], work: object) -> Action:
        return make_action(kind, self._task.label, item, preimage, work, reproducible=self._reproducible)

    # -- what the image is made of -------------------------------------------------------------------------------

    def _image(self) -> Action:
        task, context = self._task, self._context
        base, lower, env = self._base()
        layers = (*lower, *(self._layer(number, layer) for number, layer in enumerate(task.layers)))
        work = MakeImage(base, layers, {**env, **task.env}, task.user)
        preimage = {
            "version": IMAGE_VERSION,
            "base": put_description(context.store, base),
            "layers": [layer.to_json() for layer in layers],
            "env": work.env,
            "user": task.user,
        }
        return self._action(ActionKind.IMAGE, "", preimage, work)

    def _base(self) -> tuple[Any, list[Layer], Mapping[str, str]]:
        """What the image lies over: the base of its description, layers that come with it, and their variables."""
        base, context = self._task.base, self._context
        if _BASE in self._fetched:
            outputs = self._brought(self._fetched[_BASE]).outputs
            config = parse_canonical(context.store.get_bytes(outputs["config"].digest))
            layers = [Layer("base", outputs[f"layer-{number}"].digest) for number in range(len(outputs) - 1)]
            return {"scratch": {"platform": _platform()}}, layers, config["env"]
        if base == "host":
            return context.host(self._task.toolchain), [], {}
        if base == "scratch":
            return {"scratch": {"platform": _platform()}}, [], {}
        if base.startswith("//"):
            below = context.value(base, ImageValue)
            bill = below.outputs.get("sbom.json")
            return {"image": below.image, **({"sbom": bill.digest} if bill is not None else {})}, [], {}
        if base.startswith(SOURCES):
            return {"source": base}, [], {}
        raise InfraError(f"{self._task.label} has the base {base!r}, which nothing here can bring", retryable=False)

    def _layer(self, number: int, layer: LayerSpec) -> Layer:
        context = self._context
        if layer.kind == "copy":
            return Layer("copy", _copied(layer, context))
        if layer.kind == "deb":
            debs = self._debs[number]
            items = {f"{deb.name}_{deb.version}_{deb.architecture}.deb": f"layer-{number}-{deb.name}" for deb in debs}
            listed = [{"name": d.name, "version": d.version, "sha256": d.sha256, "arch": d.architecture} for d in debs]
            value = {"distribution": self._lock(layer).distribution, "packages": listed}
            return Layer("deb", self._gathered(items), value)
        if layer.kind == "pip":
            wanted = {f"layer-{number}-{canonical_name(one.name)}" for one in self._fitting(self._wheels[number])}
            trees = [self._brought(self._fetched[item]).outputs["files"].digest for item in sorted(wanted)]
            version, folder = self._python()
            return Layer("pip", context.store.merge_trees(trees), {"python": version, "folder": folder})
        if layer.kind != "tar":
            return Layer(layer.kind, context.files_tree(layer.files), layer.value)
        pin = {"sha256": layer.value["sha256"]}
        if _address(layer) is None:
            return Layer("tar", context.files_tree(layer.files), pin)
        return Layer("tar", self._brought(self._fetched[f"layer-{number}"]).outputs["files"].digest, pin)

    def _gathered(self, items: Mapping[str, str]) -> Digest:
        """One tree of the single files that these items brought, each by its name."""
        entries = {}
        for name, item in items.items():
            tree = self._brought(self._fetched[item]).outputs["files"].digest
            (entries[name],) = self._context.store.read_tree(tree).values()
        return self._context.store.put_tree(entries)

    def _brought(self, settled: Settled) -> Result:
        return needed(settled, f"{self._task.label} {settled.outcome.value}")

    # -- Python --------------------------------------------------------------------------------------------------

    def _python(self) -> tuple[str, str]:
        """The version of the image's Python, and the folder that it imports what is installed from."""
        for debs in self._debs.values():
            for deb in debs:
                if found := re.fullmatch(r"libpython(3\.[0-9]+)-minimal", deb.name):
                    return found[1], f"usr/local/lib/python{found[1]}/dist-packages"
        found_in = sorted(filter(None, map(_PYTHON.match, self._lower_paths())), key=lambda match: match[1] is None)
        if not found_in:
            raise BuildFailed(
                f"{self._task.label} has a pip layer and no Python below it; add a layer like `deb: [python3]`, or take"
                " a base that has one"
            )
        local, version = found_in[0].groups()
        return version, f"usr/local/lib/python{version}/{'site' if local else 'dist'}-packages"

    def _libc(self) -> str:
        for debs in self._debs.values():
            for deb in debs:
                if deb.name == "libc6" and (found := re.match(r"([0-9]+\.[0-9]+)", deb.version)):
                    return found[1]
        return _OLDEST_LIBC

    def _lower_paths(self) -> Iterable[str]:
        base, lower, _ = self._base()
        trees = [layer.tree for layer in lower]
        store = self._context.store
        if isinstance(base, Mapping) and "image" in base:
            trees = [Digest(tree) for tree in parse_canonical(store.get_bytes(Digest(base["image"])))["layers"]]
        for tree in trees:
            yield from store.read_tree(tree)

    def _fitting(self, requirements: list[Requirement]) -> list[Requirement]:
        """Those whose markers hold for the image's Python."""
        if not any(one.marker for one in requirements):
            return requirements
        return applicable(requirements, self._python()[0])


def _address(layer: LayerSpec) -> str | None:
    """Where the archive of a tar layer is downloaded from; None when it is a file, or another layer."""
    return layer.value.get("url") if layer.kind == "tar" else None


def _platform() -> str:
    machine = platform.machine()
    return f"linux/{_ARCHITECTURES.get(machine, machine)}"


def _copied(layer: LayerSpec, context: RuleContext) -> Digest:
    entries: dict[str, Entry] = {}
    for destination, files, strip in layer.copy:
        folder = destination.strip("/")
        for path, entry in context.store.read_tree(context.files_tree(files)).items():
            inner = path if not strip else "" if path == strip else path.removeprefix(f"{strip}/")
            entries[posixpath.join(folder, inner) if inner else folder] = entry
    try:
        return context.store.put_tree(entries)
    except TreeError as error:
        raise BuildFailed(f"a `copy` layer cannot be laid out: {error}") from None
