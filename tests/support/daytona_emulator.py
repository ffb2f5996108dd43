"""An emulator of the Daytona service, on loopback, that the real Daytona SDK drives.

The calls, their paths and their answers are those of the SDK and of the service's published sources; commands are run
for real in local sandboxes (daytona_emulator_machine), and faults are injected when a test asks for them. What it
proves is that mrp and the SDK agree, not that the service does.
"""

import asyncio
import contextlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import socketio
from aiohttp import WSMsgType, web
from support.daytona_emulator_machine import Machine

CAPS = {"cpu": 4, "memory": 8, "disk": 10}
START_SECONDS = 0.05

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Fault:
    """What goes wrong with the next `times` calls whose method and path hold `where`, after the first `skip` ones.

    status: the answer; 0 to close the connection without one. after: the call is done first. seconds: before that.
    """

    where: str
    status: int = 0
    times: int = 1
    after: bool = False
    seconds: float = 0
    retry_after: str | None = None
    skip: int = 0


@dataclass
class Box:
    """One sandbox: what it was created with, and its machine once it runs."""

    id: str
    params: dict[str, Any]
    created: datetime
    state: str = "creating"
    reason: str | None = None
    machine: Machine | None = None


@dataclass
class Snapshot:
    """An image with resources; `lower` are the folders of its root, uppermost first."""

    name: str
    resources: dict[str, int]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    state: str = "building"
    reason: str | None = None
    lower: tuple[Path, ...] = ()


class Emulator:
    """The service. `url` is its API's; tests look at `boxes`, `snapshots` and `calls`, and add to `faults`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.boxes: dict[str, Box] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.calls: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.never_start: str | None = None
        self.terminals: dict[str, web.WebSocketResponse] = {}
        self.url = self.origin = ""
        self.loop: asyncio.AbstractEventLoop | None = None
        self._events = socketio.AsyncServer(async_mode="aiohttp", cors_allowed_origins="*")

    # -- for tests -----------------------------------------------------------------------------------------------

    def running(self) -> list[Box]:
        return [box for box in self.boxes.values() if box.state not in ("destroyed", "error")]

    def vanish(self, identity: str) -> None:
        """The runner is lost, and the sandbox with it."""
        box = self.boxes.pop(identity)
        if box.machine:
            box.machine.close()

    @contextlib.contextmanager
    def reachable(self) -> Iterator[None]:
        """Let the SDK in this process speak to the emulator and to nothing else."""
        before = {name: os.environ.get(name) for name in self.environment()}
        os.environ.update(self.environment())
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    def environment(self) -> dict[str, str]:
        """The variables with which the SDK in a process of its own speaks to the emulator."""
        plain = self.folder / "plain"
        plain.mkdir(exist_ok=True)
        (plain / "sitecustomize.py").write_text(_SITECUSTOMIZE)
        return {
            "DAYTONA_API_URL": self.url,
            "DAYTONA_API_KEY": "emulated",
            "DAYTONA_TARGET": "local",
            "PYTHONPATH": str(plain),
        }

    # -- the server ----------------------------------------------------------------------------------------------

    async def start(self) -> web.AppRunner:
        @web.middleware
        async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._around(request, handler)

        app = web.Application(middlewares=[around], client_max_size=1 << 33)
        self._events.attach(app, socketio_path="/api/socket.io")
        api, toolbox = "/api", "/toolbox/{id}"
        app.add_routes(
            [
                web.post(f"{api}/sandbox", self._create),
                web.get(f"{api}/sandbox", self._list),
                web.get(f"{api}/sandbox/{{id}}", self._get),
                web.delete(f"{api}/sandbox/{{id}}", self._delete),
                web.post(f"{api}/sandbox/{{id}}/snapshot", self._snapshot_box),
                web.post(f"{api}/sandbox/{{id}}/last-activity", self._touch),
                web.post(f"{api}/snapshots", self._make_snapshot),
                web.get(f"{api}/snapshots/{{name}}", self._get_snapshot),
                web.get(f"{api}/object-storage/push-access", self._push_access),
                web.post(f"{toolbox}/process/execute", self._execute),
                web.get(f"{toolbox}/process/pty/create-connect", self._terminal),
                web.delete(f"{toolbox}/process/pty/{{pty}}", self._end_terminal),
                web.post(f"{toolbox}/files/bulk-upload", self._upload),
                web.post(f"{toolbox}/files/bulk-download", self._download),
                web.route("*", "/contexts/{key:.*}", self._object),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self.url = f"{self.origin}/api"
        return runner

    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        name = f"{request.method} {resource.canonical if resource else 'UNKNOWN ' + request.path}"
        self.calls[name] += 1
        fault = self._fault(f"{request.method} {request.path}")
        try:
            if fault is None:
                return await handler(request)
            if fault.after:
                await handler(request)
            await asyncio.sleep(fault.seconds)
            if fault.status:
                headers = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
                return _refusal(fault.status, "injected fault", headers)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        except web.HTTPException as refused:
            return _refusal(refused.status, refused.reason)

    def _fault(self, call: str) -> Fault | None:
        for fault in self.faults:
            if fault.where in call and fault.times:
                if fault.skip:
                    fault.skip -= 1
                    return None
                fault.times -= 1
                return fault
        return None

    # -- sandboxes -----------------------------------------------------------------------------------------------

    async def _create(self, request: web.Request) -> web.Response:
        params = await request.json()
        snapshot = self._find_snapshot(params.get("snapshot") or "")
        box = Box(str(uuid.uuid4()), params, datetime.now(UTC))
        self.boxes[box.id] = box
        box.params |= snapshot.resources
        asyncio.get_running_loop().create_task(self._boot(box, snapshot))
        return web.json_response(self._box_json(box))

    async def _boot(self, box: Box, snapshot: Snapshot) -> None:
        await asyncio.sleep(START_SECONDS)
        if self.never_start is not None:
            await self._change(box, "error", self.never_start)
            return
        folder = self.folder / "machines" / box.id
        network = not box.params.get("networkBlockAll")
        env = box.params.get("env") or {}
        try:
            box.machine = await asyncio.to_thread(Machine, folder, snapshot.lower, network=network, env=env)
        except RuntimeError as error:
            await self._change(box, "error", str(error))
            return
        if self.boxes.get(box.id) is box and box.state == "creating":
            await self._change(box, "started")
        else:
            await asyncio.to_thread(box.machine.close)

    async def _change(self, box: Box, state: str, reason: str | None = None) -> None:
        old, box.state, box.reason = box.state, state, reason
        event = {"sandbox": self._box_json(box), "oldState": old, "newState": state}
        await self._events.emit("sandbox.state.updated", event)

    async def _list(self, request: web.Request) -> web.Response:
        wanted = json.loads(request.query.get("labels", "{}")).items()
        found = [box for box in self.boxes.values() if wanted <= (box.params.get("labels") or {}).items()]
        start = int(request.query.get("cursor", "0"))
        page = [self._box_json(box) for box in found[start : start + 2]]
        after = str(start + 2) if start + 2 < len(found) else None
        return web.json_response({"items": page, "nextCursor": after})

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response(self._box_json(self._box(request)))

    async def _delete(self, request: web.Request) -> web.Response:
        box = self._box(request)
        machine, box.machine = box.machine, None
        await self._change(box, "destroyed")
        if machine:
            await asyncio.to_thread(machine.close)
        return web.json_response(self._box_json(box))

    async def _touch(self, request: web.Request) -> web.Response:
        self._box(request)
        return web.json_response({})

    async def _snapshot_box(self, request: web.Request) -> web.Response:
        box, name = self._box(request), (await request.json())["name"]
        resources = {key: box.params.get(key, 1) for key in CAPS}
        snapshot = self.snapshots[name] = Snapshot(name, resources)
        assert box.machine is not None
        snapshot.lower = await asyncio.to_thread(box.machine.keep, self.folder / "images" / snapshot.id)
        snapshot.state = "active"
        return web.json_response(self._box_json(box))

    def _box(self, request: web.Request) -> Box:
        box = self.boxes.get(request.match_info["id"])
        if box is None:
            raise web.HTTPNotFound(reason="Sandbox not found")
        return box

    def _machine(self, request: web.Request) -> Machine:
        machine = self._box(request).machine
        if machine is None:
            raise web.HTTPNotFound(reason="Sandbox is not running")
        return machine

    def _box_json(self, box: Box) -> dict[str, Any]:
        params, created = box.params, box.created.isoformat()
        ttl = params.get("ttlMinutes")
        return {
            "id": box.id, "organizationId": "org", "name": params.get("name") or box.id, "user": "root",
            "env": params.get("env") or {}, "labels": params.get("labels") or {}, "public": False,
            "networkBlockAll": bool(params.get("networkBlockAll")), "target": "local", "gpu": 0, "kvm": False,
            "cpu": params.get("cpu", 1), "memory": params.get("memory", 1), "disk": params.get("disk", 3),
            "snapshot": params.get("snapshot"), "state": box.state, "errorReason": box.reason,
            "createdAt": created, "updatedAt": created, "volumes": [],
            "autoStopInterval": params.get("autoStopInterval"),
            "autoDestroyAt": (box.created + timedelta(minutes=ttl)).isoformat() if ttl else None,
            "autoDeleteInterval": params.get("autoDeleteInterval"), "toolboxProxyUrl": f"{self.origin}/toolbox",
        }  # fmt: skip

    # -- snapshots -----------------------------------------------------------------------------------------------

    async def _make_snapshot(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        if wanted["name"] in self.snapshots:
            raise web.HTTPConflict(reason="a snapshot of this name exists")
        for key, most in CAPS.items():
            if wanted.get(key, 1) > most:
                raise web.HTTPBadRequest(reason=f"{key} {wanted[key]} is over the limit of {most}")
        snapshot = Snapshot(wanted["name"], {key: wanted.get(key, 1) for key in CAPS})
        self.snapshots[snapshot.name] = snapshot
        asyncio.get_running_loop().create_task(self._build(snapshot, wanted["buildInfo"]))
        return web.json_response(_snapshot_json(snapshot))

    async def _build(self, snapshot: Snapshot, info: dict[str, Any]) -> None:
        try:
            folder = self.folder / "images" / snapshot.id
            await asyncio.to_thread(self._build_image, info, folder)
            snapshot.lower, snapshot.state = (folder,), "active"
        except Exception as error:
            snapshot.state, snapshot.reason = "build_failed", str(error)

    def _build_image(self, info: dict[str, Any], folder: Path) -> None:
        """Enough of a Dockerfile's builder: the last stage, from scratch, of ADD lines that unpack archives."""
        folder.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as context:
            for digest in info.get("contextHashes") or []:
                with tarfile.open(fileobj=io.BytesIO(self.objects[f"org/{digest}/context.tar"])) as archive:
                    archive.extractall(context, filter="data")
            stages = info["dockerfileContent"].split("FROM ")
            base, *lines = stages[-1].strip().splitlines()
            if base != "scratch":
                raise ValueError(f"the emulator has no base image {base}")
            for line in lines:
                instruction, source, place = line.split()
                if instruction != "ADD":
                    raise ValueError(f"the emulator knows no {instruction}")
                with tarfile.open(Path(context, source)) as archive:
                    archive.extractall(folder / place.lstrip("/"), numeric_owner=True, filter="fully_trusted")

    async def _get_snapshot(self, request: web.Request) -> web.Response:
        return web.json_response(_snapshot_json(self._find_snapshot(request.match_info["name"])))

    def _find_snapshot(self, name: str) -> Snapshot:
        for snapshot in self.snapshots.values():
            if name in (snapshot.name, snapshot.id):
                return snapshot
        raise web.HTTPNotFound(reason=f"Snapshot {name} not found")

    # -- object storage ------------------------------------------------------------------------------------------

    async def _push_access(self, request: web.Request) -> web.Response:
        access = {"accessKey": "key", "secret": "secret", "sessionToken": "token", "storageUrl": self.origin}
        return web.json_response({**access, "organizationId": "org", "bucket": "contexts", "region": "us-east-1"})

    async def _object(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        if request.method == "HEAD":
            headers = {"ETag": '"x"', "Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT"}
            found = self.objects.get(key)
            return web.Response(status=404 if found is None else 200, body=found, headers=headers)
        if request.method == "POST" and "uploads" in request.query:
            return _xml(
                "InitiateMultipartUploadResult", f"<Bucket>contexts</Bucket><Key>{key}</Key><UploadId>u</UploadId>"
            )
        if request.method == "POST":
            self.objects[key] = b"".join(part for _, part in sorted(self.parts.pop(key).items()))
            return _xml("CompleteMultipartUploadResult", '<ETag>"x"</ETag>')
        if "partNumber" in request.query:
            self.parts.setdefault(key, {})[int(request.query["partNumber"])] = await request.read()
        else:
            self.objects[key] = await request.read()
        return web.Response(headers={"ETag": '"x"'})

    # -- toolbox -------------------------------------------------------------------------------------------------

    async def _execute(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        done = await self._machine(request).execute(
            wanted["command"],
            cwd=wanted.get("cwd"),
            env=wanted.get("envs") or {},
            timeout=wanted.get("timeout") or 360,
        )
        if done is None:
            return _refusal(408, "command execution timeout")
        if self.boxes.get(request.match_info["id"]) is None:
            raise web.HTTPNotFound(reason="Sandbox not found")
        return web.json_response({"exitCode": done[0], "result": done[1].decode(errors="replace")})

    async def _upload(self, request: web.Request) -> web.Response:
        machine, names = self._machine(request), {}
        async for part in await request.multipart():
            assert part.name is not None
            number = part.name.split("[")[1].split("]")[0]
            if part.name.endswith(".path"):
                names[number] = await part.text()
                continue
            place = machine.path(names[number])
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "wb") as file:
                while chunk := await part.read_chunk(1 << 20):
                    file.write(chunk)
        return web.json_response({})

    async def _download(self, request: web.Request) -> web.StreamResponse:
        machine = self._machine(request)
        boundary = uuid.uuid4().hex
        answer = web.StreamResponse(headers={"Content-Type": f"multipart/form-data; boundary={boundary}"})
        await answer.prepare(request)
        for name in (await request.json())["paths"]:
            place = machine.path(name)
            found = place.is_file()
            head = f'Content-Disposition: form-data; name="{"file" if found else "error"}"; filename="{name}"'
            await answer.write(f"--{boundary}\r\n{head}\r\nContent-Type: application/octet-stream\r\n\r\n".encode())
            if found:
                with open(place, "rb") as file:
                    while chunk := file.read(1 << 20):
                        await answer.write(chunk)
            else:
                await answer.write(b"file not found")
            await answer.write(b"\r\n")
        await answer.write(f"--{boundary}--\r\n".encode())
        await answer.write_eof()
        return answer

    async def _terminal(self, request: web.Request) -> web.WebSocketResponse:
        controller, shell = self._machine(request).terminal({})
        socket = web.WebSocketResponse(protocols=["X-Daytona-Pty-Exit-Control"])
        await socket.prepare(request)
        self.terminals[request.query["id"]] = socket
        await socket.send_str(json.dumps({"type": "control", "status": "connected"}))
        output = asyncio.create_task(self._show(controller, socket))
        try:
            async for message in socket:
                if message.type == WSMsgType.BINARY:
                    await asyncio.to_thread(_write_all, controller, message.data)
        finally:
            del self.terminals[request.query["id"]]
            await asyncio.to_thread(Machine.kill_tree, shell)
            await output
        return socket

    async def _end_terminal(self, request: web.Request) -> web.Response:
        socket = self.terminals.get(request.match_info["pty"])
        if socket is None:
            raise web.HTTPNotFound(reason="PTY session not found")
        await socket.close()
        return web.json_response({})

    async def _show(self, controller: int, socket: web.WebSocketResponse) -> None:
        with contextlib.suppress(OSError):  # The end of a terminal is an error of its reader.
            while data := await asyncio.to_thread(os.read, controller, 1 << 15):
                if not socket.closed:
                    await socket.send_bytes(data)
        os.close(controller)
        await socket.close()


def _write_all(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]


def _refusal(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"statusCode": status, "message": message, "error": "refused", "path": ""}
    return web.json_response(body, status=status, headers=headers)


def _xml(name: str, inner: str) -> web.Response:
    return web.Response(text=f'<?xml version="1.0"?><{name}>{inner}</{name}>', content_type="application/xml")


def _snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    return {
        "id": snapshot.id, "name": snapshot.name, "general": False, "state": snapshot.state, "size": 1,
        "entrypoint": [], "gpu": 0, "cpu": snapshot.resources["cpu"], "mem": snapshot.resources["memory"],
        "disk": snapshot.resources["disk"], "errorReason": snapshot.reason, "createdAt": now, "updatedAt": now,
        "lastUsedAt": None, "sourceSandboxId": None, "imageName": "",
    }  # fmt: skip


_SITECUSTOMIZE = """
import importlib.abc, importlib.util, sys

class Plain(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "daytona._sync.object_storage":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            store = module.S3Store
            module.S3Store = lambda **given: store(
                **{**given, "client_options": {**given["client_options"], "allow_http": True}}
            )

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Plain())
"""
"""Lets the SDK upload to the emulator's object storage, which speaks plain http; run by Python when it starts."""


async def _end(runner: web.AppRunner) -> None:
    await runner.cleanup()
    # What is left pending would be destroyed while the interpreter ends, which crashes it.
    pending = asyncio.all_tasks() - {asyncio.current_task()}
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


@contextlib.contextmanager
def emulated() -> Iterator[Emulator]:
    """A running emulator, whose sandboxes die with this block."""
    folder = Path(tempfile.mkdtemp(prefix="daytona-emulator-"))
    emulator = Emulator(folder)
    emulator.loop = loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(emulator.start(), loop).result(30)
    try:
        yield emulator
    finally:
        for box in list(emulator.boxes.values()):
            if box.machine:
                box.machine.close()
        asyncio.run_coroutine_threadsafe(_end(runner), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
        shutil.rmtree(folder, ignore_errors=True)
