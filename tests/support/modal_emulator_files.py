"""What the Modal emulator keeps: uploaded bytes, mounts, images, volumes, and the plain HTTP that moves bytes."""

import base64
import gzip
import hashlib
import json
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from aiohttp import web

_BLOCK = 8 * 2**20


class BuildError(Exception):
    """A Dockerfile that the emulator cannot follow."""


@dataclass
class Files:
    """All that is kept, below one folder. `registry`: images by name, as folders, that a FROM may name.

    built: how often each image was built, by id. ran: RUN lines, which are noted and not executed.
    """

    folder: Path
    registry: dict[str, Path] = field(default_factory=dict)
    objects: dict[str, Path] = field(default_factory=dict)
    mounts: dict[str, dict[str, Path]] = field(default_factory=dict)
    images: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    volumes: dict[str, Path] = field(default_factory=dict)
    built: dict[str, int] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        for name in ("objects", "layers", "volumes"):
            (self.folder / name).mkdir(parents=True)

    def keep(self, name: str, data: bytes) -> Path:
        """Keep bytes under a name; `uploads` says what came in, in order."""
        path = self.objects[name] = self.folder / "objects" / name
        path.write_bytes(data)
        self.uploads.append(name)
        return path

    # -- images ------------------------------------------------------------------------------------------------

    def build(
        self, lines: list[str], bases: Mapping[str, str], context: Mapping[str, Path], files: Mapping[str, bytes]
    ) -> str:
        """Follow a Dockerfile; gives the image's id, which is its content's."""
        said = [lines, sorted(bases.items()), sorted((name, _sha256(path)) for name, path in context.items())]
        said.append(sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items()))
        identity = "im-" + hashlib.sha256(json.dumps(said).encode()).hexdigest()[:22]
        if identity not in self.images:
            self.images[identity] = self._follow(identity, _joined(lines), bases, context, files)
            self.built[identity] = self.built.get(identity, 0) + 1
        return identity

    def _follow(
        self,
        identity: str,
        lines: list[str],
        bases: Mapping[str, str],
        context: Mapping[str, Path],
        files: Mapping[str, bytes],
    ) -> tuple[Path, ...]:
        layers: tuple[Path, ...] = ()
        for number, line in enumerate(lines):
            word, _, rest = line.partition(" ")
            match word.upper():
                case "FROM":
                    layers = self._base(rest.split()[0], bases)
                case "COPY" | "ADD":
                    layer = self.folder / "layers" / f"{identity}-{number}"
                    layer.mkdir()
                    self._copy(layer, rest.split(), context, files, unpack=word.upper() == "ADD")
                    layers = (layer, *layers)
                case "RUN":
                    self.ran.append(rest)
                case "ENV" | "WORKDIR" | "CMD" | "ENTRYPOINT" | "USER" | "ARG" | "LABEL":
                    pass
                case _:
                    raise BuildError(f"the emulator does not know {word}")
        return layers

    def _base(self, name: str, bases: Mapping[str, str]) -> tuple[Path, ...]:
        if name in bases:
            return self.images[bases[name]]
        if name == "scratch":
            empty = self.folder / "layers" / "scratch"
            empty.mkdir(exist_ok=True)
            return (empty,)
        for known, folder in self.registry.items():
            if name == known or (known.endswith("*") and name.startswith(known[:-1])):
                return (folder,)
        raise BuildError(f"the emulator's registry has no {name}")

    def _copy(
        self,
        layer: Path,
        words: list[str],
        context: Mapping[str, Path],
        files: Mapping[str, bytes],
        *,
        unpack: bool,
    ) -> None:
        *sources, target = words
        for source in sources:
            name = source.removeprefix("./").strip("/")
            if name in files or f"/{name}" in files:
                inlined = self.folder / "objects" / "inlined"
                inlined.write_bytes(files.get(name) or files[f"/{name}"])
                found = {name: inlined}
            else:
                found = {
                    path: kept
                    for path, kept in ((entry.lstrip("/"), kept) for entry, kept in context.items())
                    if name == "." or path == name or path.startswith(f"{name}/")
                }
            if not found:
                raise BuildError(f"the context has no {source}")
            for path, kept in found.items():
                if unpack and tarfile.is_tarfile(kept):
                    with tarfile.open(kept) as archive:
                        archive.extractall(layer / target.strip("/"), numeric_owner=True, filter="fully_trusted")
                    continue
                inner = PurePosixPath(path).relative_to(name) if name != "." else PurePosixPath(path)
                if inner == PurePosixPath(".") and target.endswith("/"):
                    inner = PurePosixPath(PurePosixPath(path).name)
                place = layer / target.strip("/") / inner
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(kept, place)

    # -- volumes -----------------------------------------------------------------------------------------------

    def volume(self, name: str) -> str:
        """The id of the volume with this name, which is made when it is not there."""
        identity = "vo-" + hashlib.sha256(name.encode()).hexdigest()[:22]
        if identity not in self.volumes:
            self.volumes[identity] = self.folder / "volumes" / identity
            self.volumes[identity].mkdir(exist_ok=True)
        return identity

    def place(self, volume: str, path: str) -> Path:
        place = self.volumes[volume] / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def block_urls(self, path: Path) -> list[str]:
        """Where the blocks of a file can be got."""
        size = path.stat().st_size
        name = base64.urlsafe_b64encode(str(path).encode()).decode()
        return [f"{self.url}/file/{name}/{start}" for start in range(0, size, _BLOCK)]

    # -- plain HTTP --------------------------------------------------------------------------------------------

    def application(self) -> web.Application:
        """The HTTP server that presigned addresses point to."""
        application = web.Application(client_max_size=2**32)
        application.router.add_put("/blob/{name}", self._put)
        application.router.add_put("/block/{name}", self._put)
        application.router.add_get("/file/{name}/{start}", self._get)
        return application

    async def _put(self, request: web.Request) -> web.Response:
        data = await request.read()
        if request.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        self.keep(request.match_info["name"], data)
        etag = hashlib.md5(data).hexdigest()
        return web.Response(body=request.match_info["name"].encode(), headers={"ETag": f'"{etag}"'})

    async def _get(self, request: web.Request) -> web.Response:
        path = Path(base64.urlsafe_b64decode(request.match_info["name"]).decode())
        with path.open("rb") as file:
            file.seek(int(request.match_info["start"]))
            return web.Response(body=file.read(_BLOCK))


def _joined(lines: list[str]) -> list[str]:
    """The instructions of a Dockerfile, one a line."""
    text = "\n".join(lines).replace("\\\n", " ")
    return [line.strip() for line in text.split("\n") if line.strip() and not line.strip().startswith("#")]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
