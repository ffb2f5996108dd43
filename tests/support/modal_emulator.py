"""An EMULATOR of the Modal service for tests: gRPC control plane, command router and file server, on loopback only.

Modal's own client drives it, over plain HTTP; commands really run, in sandboxes of this machine. It was written from
what client 1.6 sends and proves nothing about the real service.

    with ModalEmulator(folder) as emulator:
        environment |= emulator.environment()
        emulator.fail("SandboxCreateV2", Status.UNAVAILABLE, times=1)
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from aiohttp import web
from grpclib.server import Server
from modal._utils.grpc_utils import custom_detail_codec
from modal.client import _Client
from modal_proto import api_pb2
from support.modal_emulator_box import missing
from support.modal_emulator_service import services
from support.modal_emulator_state import State


class ModalEmulator(State):
    """One emulated service, in a thread of its own; leaving it ends every sandbox."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        reason = missing()
        if reason is not None:
            pytest.skip(reason)
        forget_client()
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        for sandbox in self.sandboxes.values():
            sandbox.end(api_pb2.GenericResult.GENERIC_STATUS_TERMINATED)
        forget_client()

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Lead this process's own client here."""
        with pytest.MonkeyPatch.context() as patched:
            for name, value in self.environment().items():
                patched.setenv(name, value)
            yield

    def environment(self) -> dict[str, str]:
        """What leads Modal's client to it, and away from any account."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": "ak-emulator",
            "MODAL_TOKEN_SECRET": "as-emulator",
            "MODAL_CONFIG_PATH": str(self.files.folder / "no-such-file.toml"),
            "MODAL_ENVIRONMENT": "main",
        }

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            runner = web.AppRunner(self.files.application())
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.files.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            urls = []
            for service in services(self):
                server = Server([service], status_details_codec=custom_detail_codec)
                await server.start("127.0.0.1", 0)
                stack.callback(server.close)
                urls.append(f"http://127.0.0.1:{server._server.sockets[0].getsockname()[1]}")  # type: ignore[union-attr]
            self.url, self.router_url = urls
            self._ready.set()
            await self._stop.wait()


def forget_client() -> None:
    """Let Modal's client, which is one for a process, connect anew."""
    _Client._set_env_client(None)
