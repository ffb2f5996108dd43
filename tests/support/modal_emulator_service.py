"""The calls of Modal's client that the emulator answers: the control plane, and the command router of sandboxes.

A method gets a request and gives the answer; one that answers with many messages sends them through a `Cut`.
"""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from grpclib.server import Stream
from modal_proto import api_pb2
from modal_proto import task_command_router_pb2 as router_pb2
from modal_proto.api_grpc import ModalClientBase
from modal_proto.task_command_router_grpc import TaskCommandRouterBase
from support.modal_emulator_box import Box, Command
from support.modal_emulator_files import BuildError
from support.modal_emulator_state import Cut, EmulatedSandbox, Handler, State

_DONE = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)


def services(state: State) -> list[Any]:
    """Both, with every RPC that they lack answered as unimplemented, and all of them counted."""
    return [_complete(_Control, ModalClientBase)(state), _complete(_Router, TaskCommandRouterBase)(state)]


def _complete(service: type[Any], base: type[Any]) -> type[Any]:
    def wrapped(name: str, answer: Handler | None) -> Callable[[Any, Stream[Any, Any]], Awaitable[None]]:
        async def handler(self: Any, stream: Stream[Any, Any]) -> None:
            bound = None if answer is None else answer.__get__(self)  # type: ignore[attr-defined]
            await self.state.handle(name, stream, bound)

        return handler

    names = [name for name, value in vars(base).items() if getattr(value, "__isabstractmethod__", False)]
    methods = {name: wrapped(name, service.__dict__.get(name)) for name in names}
    return type(service.__name__, (service, base), methods)


def _token() -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none'})}.{part({'exp': time.time() + 3600})}.emulator"


class _Control:
    """The control plane."""

    def __init__(self, state: State) -> None:
        self.state = state

    async def ClientHello(self, request: Any, stream: Any) -> Any:
        return api_pb2.ClientHelloResponse()

    async def AuthTokenGet(self, request: Any, stream: Any) -> Any:
        return api_pb2.AuthTokenGetResponse(token=_token())

    async def EnvironmentGetOrCreate(self, request: Any, stream: Any) -> Any:
        settings = api_pb2.EnvironmentSettings(image_builder_version="2025.06")
        metadata = api_pb2.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def AppGetOrCreate(self, request: Any, stream: Any) -> Any:
        apps = self.state.apps
        if request.app_name not in apps:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise GRPCError(Status.NOT_FOUND, f"there is no app {request.app_name}")
            apps[request.app_name] = self.state.number("ap")
        return api_pb2.AppGetOrCreateResponse(app_id=apps[request.app_name])

    async def SecretGetOrCreate(self, request: Any, stream: Any) -> Any:
        if request.deployment_name and not request.env_dict:
            raise GRPCError(Status.NOT_FOUND, f"there is no secret {request.deployment_name}")
        identity = self.state.number("st")
        self.state.secrets[identity] = dict(request.env_dict)
        return api_pb2.SecretGetOrCreateResponse(secret_id=identity)

    # -- files and images ------------------------------------------------------------------------------------------

    async def BlobCreate(self, request: Any, stream: Any) -> Any:
        identity = self.state.number("bl")
        url = f"{self.state.files.url}/blob/{identity}"
        return api_pb2.BlobCreateResponse(
            blob_ids=[identity], upload_urls=api_pb2.UploadUrlList(items=[url]), blob_id=identity
        )

    async def MountBatchedCheckExistence(self, request: Any, stream: Any) -> Any:
        known = self.state.files.objects
        missing = [sha256 for sha256 in request.sha256_hex_hashes if sha256 not in known]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def MountPutFile(self, request: Any, stream: Any) -> Any:
        files = self.state.files
        if request.data_blob_id:
            files.objects[request.sha256_hex] = files.objects[request.data_blob_id]
        elif request.WhichOneof("data_oneof") == "data":
            files.keep(request.sha256_hex, request.data)
        return api_pb2.MountPutFileResponse(exists=request.sha256_hex in files.objects)

    async def MountGetOrCreate(self, request: Any, stream: Any) -> Any:
        files, identity = self.state.files, self.state.number("mo")
        files.mounts[identity] = {file.filename: files.objects[file.sha256_hex] for file in request.files}
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex="0" * 64)
        return api_pb2.MountGetOrCreateResponse(mount_id=identity, handle_metadata=metadata)

    async def ImageGetOrCreate(self, request: Any, stream: Any) -> Any:
        files, image = self.state.files, request.image
        context = files.mounts.get(image.context_mount_id, {})
        bases = {base.docker_tag: base.image_id for base in image.base_images}
        inlined = {file.filename: file.data for file in image.context_files}
        try:
            identity = files.build(list(image.dockerfile_commands), bases, context, inlined)
        except BuildError as error:
            failed = api_pb2.GenericResult(
                status=api_pb2.GenericResult.GENERIC_STATUS_FAILURE, exception=f"emulator: {error}"
            )
            return api_pb2.ImageGetOrCreateResponse(image_id=self.state.number("im"), result=failed)
        return api_pb2.ImageGetOrCreateResponse(image_id=identity, result=_DONE, metadata=api_pb2.ImageMetadata())

    async def ImageFromId(self, request: Any, stream: Any) -> Any:
        if request.image_id not in self.state.files.images:
            raise GRPCError(Status.NOT_FOUND, f"there is no image {request.image_id}")
        return api_pb2.ImageFromIdResponse(image_id=request.image_id, metadata=api_pb2.ImageMetadata())

    async def ImagePublish(self, request: Any, stream: Any) -> Any:
        self.state.files.tags[request.tag] = request.image_id
        return api_pb2.ImagePublishResponse()

    async def ImageGetByTag(self, request: Any, stream: Any) -> Any:
        if request.tag not in self.state.files.tags:
            raise GRPCError(Status.NOT_FOUND, f"there is no image {request.tag}")
        return api_pb2.ImageGetByTagResponse(image_id=self.state.files.tags[request.tag])

    # -- volumes ---------------------------------------------------------------------------------------------------

    async def VolumeGetOrCreate(self, request: Any, stream: Any) -> Any:
        identity = self.state.files.volume(request.deployment_name)
        version = request.version or api_pb2.VOLUME_FS_VERSION_V1
        metadata = api_pb2.VolumeMetadata(version=version, name=request.deployment_name)
        return api_pb2.VolumeGetOrCreateResponse(volume_id=identity, version=version, metadata=metadata)

    async def VolumePutFiles(self, request: Any, stream: Any) -> Any:
        files = self.state.files
        for file in request.files:
            files.place(request.volume_id, file.filename).write_bytes(files.objects[file.sha256_hex].read_bytes())
        return Empty()

    async def VolumePutFiles2(self, request: Any, stream: Any) -> Any:
        files, response = self.state.files, api_pb2.VolumePutFiles2Response()
        for number, file in enumerate(request.files):
            for index, block in enumerate(file.blocks):
                name = "block-" + block.contents_sha256.hex()
                if name not in files.objects:
                    url = f"{files.url}/block/{name}"
                    response.missing_blocks.add(file_index=number, block_index=index, put_url=url)
        if not response.missing_blocks:
            for file in request.files:
                self._write(request.volume_id, file)
        return response

    def _write(self, volume: str, file: Any) -> None:
        files = self.state.files
        place = files.place(volume, file.path)
        beside = place.with_name(f"{place.name}.new")
        with beside.open("wb") as out:
            for number, block in enumerate(file.blocks):
                out.seek(number * 8 * 2**20)
                out.write(files.objects["block-" + block.contents_sha256.hex()].read_bytes())
            out.truncate(file.size)
        beside.rename(place)

    async def VolumeListFiles2(self, request: Any, cut: Cut) -> None:
        root = self.state.files.volumes[request.volume_id]
        start = root / request.path.strip("/")
        if not start.exists():
            raise GRPCError(Status.NOT_FOUND, f"there is no {request.path}")
        found = sorted(start.rglob("*") if request.recursive else start.iterdir())
        kinds = (api_pb2.FileEntry.FileType.FILE, api_pb2.FileEntry.FileType.DIRECTORY)
        entries = [
            api_pb2.FileEntry(path=str(path.relative_to(root)), type=kinds[path.is_dir()], size=path.stat().st_size)
            for path in found
        ]
        for first in range(0, len(entries), 500):
            await cut.send(api_pb2.VolumeListFiles2Response(entries=entries[first : first + 500]))

    async def VolumeGetFile2(self, request: Any, stream: Any) -> Any:
        path = self.state.files.volumes[request.volume_id] / request.path.strip("/")
        if not path.is_file():
            raise GRPCError(Status.NOT_FOUND, f"there is no {request.path}")
        size = path.stat().st_size
        urls = self.state.files.block_urls(path)
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=size, start=0, len=size)

    # -- sandboxes -------------------------------------------------------------------------------------------------

    async def _create(self, request: Any, identity: str) -> EmulatedSandbox:
        state, definition = self.state, request.definition
        layers = state.files.images.get(definition.image_id)
        if layers is None:
            raise GRPCError(Status.NOT_FOUND, f"there is no image {definition.image_id}")
        place = state.files.folder / "boxes" / identity
        place.mkdir(parents=True)
        volumes = {
            mount.mount_path: (state.files.volumes[mount.volume_id], mount.read_only)
            for mount in definition.volume_mounts
        }
        blocked = definition.network_access.network_access_type == api_pb2.NetworkAccess.BLOCKED
        box = await asyncio.to_thread(Box, place, layers, volumes, network=not blocked)
        tags = {tag.tag_name: tag.tag_value for tag in request.tags}
        sandbox = EmulatedSandbox(identity, request.app_id, definition, tags, box)
        state.sandboxes[identity] = sandbox
        timeout = definition.timeout_secs or 300
        ran_out = api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT
        asyncio.get_running_loop().call_later(timeout, lambda: sandbox.end(ran_out))
        return sandbox

    async def SandboxCreateV2(self, request: Any, stream: Any) -> Any:
        if request.definition.resources.gpu_config.count:
            raise GRPCError(Status.INVALID_ARGUMENT, "a V2 sandbox has no GPU")
        sandbox = await self._create(request, self.state.number("sb-v2"))
        return api_pb2.SandboxCreateV2Response(
            sandbox_id=sandbox.id,
            task_id=f"ta-{sandbox.id}",
            metadata=api_pb2.SandboxHandleMetadata(app_id=sandbox.app),
            command_router_access=self._access(),
        )

    async def SandboxCreate(self, request: Any, stream: Any) -> Any:
        sandbox = await self._create(request, self.state.number("sb"))
        metadata = api_pb2.SandboxHandleMetadata(app_id=sandbox.app)
        return api_pb2.SandboxCreateResponse(sandbox_id=sandbox.id, metadata=metadata)

    async def SandboxListV2(self, request: Any, stream: Any) -> Any:
        wanted = {tag.tag_name: tag.tag_value for tag in request.tags}
        found = [
            sandbox
            for sandbox in self.state.running()
            if (not request.app_id or sandbox.app == request.app_id)
            and wanted.items() <= sandbox.tags.items()
            and (not request.before_timestamp or sandbox.created < request.before_timestamp)
        ]
        found.sort(key=lambda sandbox: -sandbox.created)
        infos = [
            api_pb2.SandboxInfo(
                id=sandbox.id,
                created_at=sandbox.created,
                app_id=sandbox.app,
                metadata=api_pb2.SandboxHandleMetadata(app_id=sandbox.app),
            )
            for sandbox in found[:3]
        ]
        return api_pb2.SandboxListResponse(sandboxes=infos)

    SandboxList = SandboxListV2

    async def SandboxTagsGetV2(self, request: Any, stream: Any) -> Any:
        tags = self.state.sandbox(request.sandbox_id).tags
        found = [api_pb2.SandboxTag(tag_name=name, tag_value=value) for name, value in tags.items()]
        return api_pb2.SandboxTagsGetResponse(tags=found)

    SandboxTagsGet = SandboxTagsGetV2

    async def SandboxWaitV2(self, request: Any, stream: Any) -> Any:
        sandbox = self.state.sandbox(request.sandbox_id)
        if request.timeout and sandbox.running:
            await asyncio.wait({asyncio.ensure_future(sandbox.ended.wait())}, timeout=request.timeout)
        metadata = api_pb2.SandboxHandleMetadata(app_id=sandbox.app, result=sandbox.result)
        return api_pb2.SandboxWaitResponse(result=sandbox.result, metadata=metadata)

    SandboxWait = SandboxWaitV2

    async def SandboxTerminateV2(self, request: Any, stream: Any) -> Any:
        self.state.sandbox(request.sandbox_id).end(api_pb2.GenericResult.GENERIC_STATUS_TERMINATED)
        return api_pb2.SandboxTerminateResponse()

    SandboxTerminate = SandboxTerminateV2

    async def SandboxGetTaskIdV2(self, request: Any, stream: Any) -> Any:
        sandbox = self.state.sandbox(request.sandbox_id)
        result = None if sandbox.running else sandbox.result
        return api_pb2.SandboxGetTaskIdResponse(task_id=f"ta-{sandbox.id}", task_result=result)

    SandboxGetTaskId = SandboxGetTaskIdV2

    def _access(self) -> Any:
        return api_pb2.CommandRouterAccess(url=self.state.router_url, jwt=_token())

    async def TaskGetCommandRouterAccess(self, request: Any, stream: Any) -> Any:
        return api_pb2.TaskGetCommandRouterAccessResponse(url=self.state.router_url, jwt=_token())

    async def SandboxGetCommandRouterAccess(self, request: Any, stream: Any) -> Any:
        return api_pb2.SandboxGetCommandRouterAccessResponse(url=self.state.router_url, jwt=_token())


class _Router:
    """The command router of all sandboxes."""

    def __init__(self, state: State) -> None:
        self.state = state

    def _sandbox(self, request: Any) -> EmulatedSandbox:
        sandbox = self.state.sandbox(request.task_id.removeprefix("ta-"))
        if not sandbox.running:
            raise GRPCError(Status.NOT_FOUND, f"the sandbox {sandbox.id} has ended")
        return sandbox

    def _command(self, request: Any) -> Command:
        command = self._sandbox(request).commands.get(request.exec_id)
        if command is None:
            raise GRPCError(Status.NOT_FOUND, f"there is no command {request.exec_id}")
        return command

    async def TaskExecStart(self, request: Any, stream: Any) -> Any:
        sandbox = self._sandbox(request)
        env: dict[str, str] = {}
        for source in request.secret_sources:
            given = source.WhichOneof("source") == "env"
            env |= dict(source.env.contents) if given else self.state.secrets[source.secret_id]
        # The client chooses the id, so that it may ask again.
        if request.exec_id not in sandbox.commands:
            command = await sandbox.box.start(list(request.command_args), env, request.workdir or "/")
            sandbox.commands[request.exec_id] = command
            if request.timeout_secs:
                asyncio.get_running_loop().call_later(request.timeout_secs, command.kill)
            await self.state.started(sandbox)
        return router_pb2.TaskExecStartResponse()

    async def TaskExecStdioRead(self, request: Any, cut: Cut) -> None:
        command = self._command(request)
        out = request.file_descriptor == router_pb2.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDOUT
        offset = request.offset
        while data := await command.read(1 if out else 2, offset):
            offset += len(data)
            await cut.send(router_pb2.TaskExecStdioReadResponse(data=data))

    async def TaskExecWait(self, request: Any, stream: Any) -> Any:
        command = self._command(request)
        await command.process.wait()
        self._command(request)
        return _ended(command, router_pb2.TaskExecWaitResponse)

    async def TaskExecPoll(self, request: Any, stream: Any) -> Any:
        return _ended(self._command(request), router_pb2.TaskExecPollResponse)

    async def TaskExecStdinWrite(self, request: Any, stream: Any) -> Any:
        await self._command(request).write(request.offset, request.data, request.eof)
        return router_pb2.TaskExecStdinWriteResponse()

    async def TaskExecStdinStatus(self, request: Any, stream: Any) -> Any:
        return router_pb2.TaskExecStdinStatusResponse(num_bytes_written=self._command(request).taken)

    async def TaskExecStdinWriteStream(self, request: Any, cut: Cut) -> None:
        command, offset = self._command(request.start), request.start.offset
        async for message in cut.stream:
            await command.write(offset, message.data, message.HasField("end"))
            offset += len(message.data)
            if message.HasField("end"):
                break
        await cut.stream.send_message(router_pb2.TaskExecStdinWriteStreamResponse())

    async def TaskSnapshotFilesystem(self, request: Any, stream: Any) -> Any:
        sandbox, files = self._sandbox(request), self.state.files
        identity = self.state.number("im")
        layer = files.folder / "layers" / identity
        await asyncio.to_thread(sandbox.box.copy_changes, layer)
        files.images[identity] = (layer, *files.images[sandbox.definition.image_id])
        return router_pb2.TaskSnapshotFilesystemResponse(image_id=identity)

    async def TaskReloadVolumes(self, request: Any, stream: Any) -> Any:
        self._sandbox(request)
        return router_pb2.TaskReloadVolumesResponse()


def _ended(command: Command, response: Callable[..., Any]) -> Any:
    code = command.process.returncode
    if code is None:
        return response()
    return response(code=code) if code >= 0 else response(signal=-code)
