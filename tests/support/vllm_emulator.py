"""An emulator of a vLLM server: a program that takes vLLM's command line, and goes wrong when it is told to.

It stands where the Python with vLLM stands. Like vLLM it has an engine in a process of its own, which outlives a server
that is killed. Faults are named by variables of `serve.env`:

    EMULATOR_FAULT   no-start: it ends with a traceback; never-well: /health says 503; taken-once: the first start finds
                     its port taken; held, held-start: no answer, or no start, while the folder has a file `hold`
    EMULATOR_FOLDER  where it notes each start: pid of server and engine, words, names of variables
    EMULATOR_VERSION what it says on /version
"""

import json
import os
import stat
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ENGINE_LINE = (
    "(EngineCore pid=7) INFO 01-01 00:00:00 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: "
    "model='m', dtype=torch.float32, tensor_parallel_size=1, quantization=None, device_config=cpu, seed=0"
)


def emulated_python(folder: Path) -> Path:
    """An executable that stands for the Python of an environment with vLLM."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def starts(folder: Path) -> list[dict[str, Any]]:
    """What the emulators noted that were told to use this folder, in the order of their starts."""
    noted = [json.loads(path.read_text()) for path in folder.glob("start-*.json")]
    return sorted(noted, key=lambda start: start["at"])


def _main(words: list[str]) -> None:
    assert words[:2] == ["-m", "vllm.entrypoints.openai.api_server"], words
    options = dict(zip(words[2::2], words[3::2], strict=False))
    fault, folder = os.environ.get("EMULATOR_FAULT", ""), _folder()
    print(f"(APIServer pid={os.getpid()}) INFO 01-01 00:00:00 [api_utils.py:1] starting", flush=True)
    first = not list(folder.glob("start-*.json"))
    engine = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, 1); signal.pause()"])
    noted = {"pid": os.getpid(), "engine": engine.pid, "words": words, "env": sorted(os.environ), "at": time.time()}
    noted |= {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    (folder / f"start-{os.getpid()}.tmp").write_text(json.dumps(noted))
    (folder / f"start-{os.getpid()}.tmp").rename(folder / f"start-{os.getpid()}.json")
    if fault == "no-start":
        raise ValueError("the weights have no tensor called lm_head")
    if fault == "taken-once" and first:
        sys.exit("OSError: [Errno 98] Address already in use")
    if fault == "held-start":
        _hold()
    print(ENGINE_LINE, flush=True)
    ThreadingHTTPServer((options["--host"], int(options["--port"])), _Handler).serve_forever()


def _folder() -> Path:
    return Path(os.environ.get("EMULATOR_FOLDER") or os.environ["TMPDIR"])


def _hold() -> None:
    while (_folder() / "hold").exists():
        time.sleep(0.02)


class _Handler(BaseHTTPRequestHandler):
    lock, answered = threading.Lock(), 0

    def do_GET(self) -> None:
        if self.path == "/version":
            self._answer(200, {"version": os.environ.get("EMULATOR_VERSION", "0.32.0")})
        else:
            self._answer(503 if os.environ.get("EMULATOR_FAULT") == "never-well" else 200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            return self._answer(401, {"error": "Unauthorized"})
        if body.get("max_tokens", 0) > 512:
            return self._answer(400, {"error": {"message": "max_tokens is too large", "code": 400}})
        if os.environ.get("EMULATOR_FAULT") == "held":
            _hold()
        text = f"{os.getpid()}: {body['messages'][-1]['content']}"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return self._answer(200, {"object": "chat.completion", "choices": [choice], "usage": usage})

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    _main(sys.argv[1:])
