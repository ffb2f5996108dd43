"""What the Modal emulator knows and does for every call: sandboxes, counts, and faults on demand."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpclib import GRPCError, Status
from grpclib.server import Stream
from modal_proto import api_pb2
from support.modal_emulator_box import Box, Command
from support.modal_emulator_files import Files

Handler = Callable[[Any, Any], Awaitable[Any]]

_STREAMS = {
    "TaskExecStdioRead",
    "TaskExecStdinWriteStream",
    "VolumeListFiles",
    "VolumeListFiles2",
    "ImageJoinStreaming",
}


@dataclass
class _Fault:
    """What happens to the next `times` calls of an RPC: `status` is answered, after `delay` seconds; None: only late.

    after: bytes of a stream that are sent before. retry_after: seconds that a refusal by rate limit names.
    """

    status: Status | None
    times: int
    delay: float = 0
    after: int = 0
    retry_after: float | None = None


@dataclass
class EmulatedSandbox:
    """What the service knows of a sandbox."""

    id: str
    app: str
    definition: api_pb2.Sandbox
    tags: dict[str, str]
    box: Box
    created: float = field(default_factory=time.time)
    commands: dict[str, Command] = field(default_factory=dict)
    result: api_pb2.GenericResult = field(default_factory=api_pb2.GenericResult)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        return not self.result.status

    def end(self, status: int) -> None:
        if self.running:
            self.result = api_pb2.GenericResult(status=status)  # type: ignore[arg-type]
            self.box.kill()
            self.ended.set()


class State:
    """One emulated service. The methods that make faults may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.files = Files(folder)
        self.calls: Counter[str] = Counter()
        self.sandboxes: dict[str, EmulatedSandbox] = {}
        self.apps: dict[str, str] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.url = self.router_url = ""
        self._faults: dict[str, list[_Fault]] = {}
        self._numbers = 0
        self._vanish = 0
        self._lock = threading.Lock()

    def running(self) -> list[EmulatedSandbox]:
        """The sandboxes that have not ended."""
        return [sandbox for sandbox in list(self.sandboxes.values()) if sandbox.running]

    def empty_volumes(self) -> int:
        """Remove every file of every volume, and the blocks that they were uploaded as; gives how many files."""
        files = [path for volume in self.files.volumes.values() for path in volume.rglob("*") if path.is_file()]
        for path in files:
            path.unlink()
        for name in [name for name in self.files.objects if name.startswith("block-")]:
            del self.files.objects[name]
        return len(files)

    # -- faults ------------------------------------------------------------------------------------------------

    def fail(self, rpc: str, status: Status, *, times: int = 1, retry_after: float | None = None) -> None:
        """Answer the next `times` calls of an RPC with a status."""
        self._fault(rpc, _Fault(status, times, retry_after=retry_after))

    def cut(self, rpc: str, *, after: int, times: int = 1) -> None:
        """Break the next streams of an RPC off after so many bytes."""
        self._fault(rpc, _Fault(Status.UNAVAILABLE, times, after=after))

    def hang(self, rpc: str, seconds: float, *, times: int = 1) -> None:
        """Answer the next calls of an RPC so late."""
        self._fault(rpc, _Fault(None, times, delay=seconds))

    def vanish(self, *, times: int = 1) -> None:
        """Lose the sandboxes in which the next commands start, just after they started."""
        self._vanish = times

    def heal(self) -> None:
        """Forget all faults that have not happened."""
        self._faults.clear()
        self._vanish = 0

    def _fault(self, rpc: str, fault: _Fault) -> None:
        with self._lock:
            self._faults.setdefault(rpc, []).append(fault)

    def _take_fault(self, rpc: str) -> _Fault | None:
        with self._lock:
            waiting = self._faults.get(rpc, [])
            if not waiting:
                return None
            waiting[0].times -= 1
            return waiting.pop(0) if waiting[0].times <= 0 else waiting[0]

    # -- calls ------------------------------------------------------------------------------------------------------

    async def handle(self, rpc: str, stream: Stream[Any, Any], answer: Handler | None) -> None:
        """Answer one call as its fault says, or as it should be."""
        self.calls[rpc] += 1
        fault = self._take_fault(rpc)
        if fault is not None:
            await asyncio.sleep(fault.delay)
            if fault.status is not None and not fault.after:
                details = [api_pb2.RPCRetryPolicy(retry_after_secs=fault.retry_after)] if fault.retry_after else None
                raise GRPCError(fault.status, f"the emulator was told to fail {rpc}", details)
        if answer is None:
            raise GRPCError(Status.UNIMPLEMENTED, f"the emulator has no {rpc}")
        request = await stream.recv_message()
        if rpc in _STREAMS:
            await answer(request, Cut(stream, fault.after if fault else None))
        else:
            await stream.send_message(await answer(request, stream))

    def number(self, prefix: str) -> str:
        self._numbers += 1
        return f"{prefix}-{self._numbers:022d}"

    def sandbox(self, identity: str) -> EmulatedSandbox:
        sandbox = self.sandboxes.get(identity)
        if sandbox is None:
            raise GRPCError(Status.NOT_FOUND, f"there is no sandbox {identity}")
        return sandbox

    async def started(self, sandbox: EmulatedSandbox) -> None:
        """A command was started there."""
        if self._vanish > 0:
            self._vanish -= 1
            sandbox.end(api_pb2.GenericResult.GENERIC_STATUS_TERMINATED)


class Cut:
    """A stream that may break off."""

    def __init__(self, stream: Stream[Any, Any], after: int | None) -> None:
        self.stream, self._left = stream, after

    async def send(self, message: Any) -> None:
        if self._left is not None:
            size = len(getattr(message, "data", b""))
            if size >= self._left:
                message = type(message)(data=message.data[: self._left])
                await self.stream.send_message(message)
                raise GRPCError(Status.UNAVAILABLE, "the emulator was told to cut this stream")
            self._left -= size
        await self.stream.send_message(message)
