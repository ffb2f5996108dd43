"""Scripted models: answers from a file, or from a Python function that runs in a sandbox.

What a call is answered depends on the trial alone, never on what other trials asked before: on the last message of its
user, on how many calls the trial made before, and on how many of these were the same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from mrp.cache.canonical import Json, canonical_bytes, canonical_digest, canonical_text
from mrp.cache.store import Entry, Store
from mrp.runtime.models.protocol import Answer, Call, Refused
from mrp.runtime.models.registry import ModelSettings
from mrp.specs.errors import InfraError
from mrp.specs.work import OPERATOR_DIR, OUT, TASK, WORK, Box, Mount, Process

_KNOWN = ("match", "text", "message", "body")

_RUN = """
import importlib.util, json
spec = importlib.util.spec_from_file_location("answers", {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with open("/task/request.json") as file:
    request = json.load(file)
with open("/out/answer.json", "w") as file:
    json.dump(module.answer(request), file)
"""


@dataclass(frozen=True)
class Line:
    """One answer of a script: for calls whose last user message holds `match`; None for any."""

    match: str | None
    answer: Json


class ScriptedModel:
    """See mrp.runtime.models.protocol.Model. Raises InfraError for a script that cannot be read."""

    def __init__(self, settings: ModelSettings) -> None:
        path = settings.spec.get("script")
        if not path:
            raise InfraError(f"{settings.label} has no `script`; name a file of answers", retryable=False)
        entry = settings.store.subtree(settings.files, str(path))
        if entry is None or entry.digest is None:
            raise InfraError(f"{settings.label}: {path} is not there", retryable=False)
        self._settings, self._path, self._digest = settings, str(path), entry.digest
        self._lines = None if self._path.endswith(".py") else _read(settings, self._path, entry)

    def answer(self, call: Call) -> Answer:
        """See mrp.runtime.models.protocol.Model."""
        _check(call)
        said = self._called(call) if self._lines is None else chosen(self._lines, call)
        try:
            return spoken(said, call)
        except (TypeError, ValueError, AttributeError) as error:
            shown = canonical_text(said)[:80]
            message = f"{self._settings.label}: {self._path} says {shown}, which is no text, message or body"
            raise InfraError(message, retryable=False) from error

    def close(self) -> None:
        """See mrp.runtime.models.protocol.Model."""

    def _called(self, call: Call) -> Json:
        """What the function `answer` of the script gives; it runs in a local sandbox without network."""
        settings, store = self._settings, self._settings.store
        assert settings.run is not None and settings.host is not None
        empty = store.put_tree({})
        request = {**call.body, "call": {"number": call.number, "occurrence": call.occurrence, "path": call.path}}
        given = store.put_tree({"request.json": Entry("f", store.put_bytes(canonical_bytes(request)), None)})
        code = store.put_tree({"answers.py": Entry("f", self._digest, None)})
        process = Process(
            box=Box(image=settings.host()),
            argv=("python3", "-I", "-c", _RUN.format(path=f"{OPERATOR_DIR}/answers.py")),
            role="model",
            mounts=(
                Mount(TASK, given),
                Mount(OPERATOR_DIR, code),
                Mount(WORK, empty, writable=True),
                Mount(OUT, empty, writable=True),
            ),
            outputs=(OUT,),
        )
        done = settings.run(process)
        found = store.subtree(done.outputs[OUT], "answer.json")
        if done.exit_code != 0 or found is None or found.digest is None:
            lines = store.get_bytes(done.stderr).decode(errors="replace").strip().splitlines() or ["no answer"]
            raise InfraError(f"{settings.label}: {self._path} failed: {lines[-1]}", retryable=False)
        return _loaded(store, found)


def chosen(lines: tuple[Line, ...], call: Call) -> Json:
    """What a script says to a call; raises Refused when it has nothing more to say.

    Lines whose `match` is in the last user message come first: equal calls get one after the other, and the last one
    again and again. Else the lines without `match` are said in order, one a call of the trial.
    """
    asked = last_user_text(call.body)
    matching = [line for line in lines if line.match is not None and line.match in asked]
    if matching:
        return matching[min(call.occurrence, len(matching) - 1)].answer
    others = [line for line in lines if line.match is None]
    if call.number >= len(others):
        raise _refused(f"the script has no answer to call {call.number + 1}: {asked[:80]!r}")
    return others[call.number].answer


def _check(call: Call) -> None:
    """Raise Refused for a body that no server would take."""
    messages = call.body.get("messages")
    good = isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages)
    if call.path == "chat/completions" and not good:
        raise _refused("`messages` must be a list of at least one object")
    if call.path == "completions" and not isinstance(call.body.get("prompt"), str | list):
        raise _refused("`prompt` must be a text")


def _refused(message: str) -> Refused:
    return Refused(
        400, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": "script"}}
    )


def last_user_text(body: Mapping[str, Json]) -> str:
    """The text of the last message of the user; a completion's prompt."""
    if "messages" not in body:
        prompt = body.get("prompt")
        return prompt if isinstance(prompt, str) else "\n".join(map(str, prompt or ()))
    messages = [message for message in body["messages"] or () if isinstance(message, Mapping)]
    content = next((m.get("content") for m in reversed(messages) if m.get("role") == "user"), None)
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def spoken(said: Json, call: Call) -> Answer:
    """What a script says, as the API's answer: a text, a message (`{"role": ..., "tool_calls": ...}`), or a body.

    A token is a word, so that limits and prices have something to count. Ids are made of the request.
    """
    asked = len(last_user_text(call.body).split())
    if isinstance(said, dict) and "choices" in said:
        usage = said.get("usage") or {}
        answer = Answer(said, (), int(usage.get("prompt_tokens", asked)), int(usage.get("completion_tokens", 0)))
        return _in_chunks(answer) if call.body.get("stream") else answer
    chat = call.path == "chat/completions"
    message: dict[str, Json] = {"role": "assistant", "content": said} if isinstance(said, str) else {**said}
    text = message.get("content") or ""
    made = len(str(text).split())
    choice: dict[str, Json] = {"index": 0, "finish_reason": "tool_calls" if message.get("tool_calls") else "stop"}
    choice |= {"message": message} if chat else {"text": text}
    body: dict[str, Json] = {
        "id": f"scripted-{canonical_digest([call.body, call.number])[:16]}",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": call.body.get("model", "scripted"),
        "choices": [choice],
        "usage": {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made},
    }
    answer = Answer(body, (), asked, made)
    return _in_chunks(answer) if call.body.get("stream") else answer


def _in_chunks(answer: Answer) -> Answer:
    """The same answer as a stream: one chunk with all of each choice, and one with how it ended."""
    body: dict[str, Any] = answer.body
    head = {name: value for name, value in body.items() if name not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk" if body.get("object") == "chat.completion" else body.get("object")
    chunks = []
    for choice in body["choices"]:
        place = {"index": choice.get("index", 0)}
        if "message" in choice:
            delta = dict(choice["message"])
            if delta.get("tool_calls"):
                delta["tool_calls"] = [{"index": n, **made} for n, made in enumerate(delta["tool_calls"])]
            chunks.append({**head, "choices": [{**place, "delta": delta, "finish_reason": None}]})
            chunks.append({**head, "choices": [{**place, "delta": {}, "finish_reason": choice.get("finish_reason")}]})
        else:
            chunks.append({**head, "choices": [choice]})
    return Answer(None, tuple(chunks), answer.input_tokens, answer.output_tokens, answer.facts)


def _read(settings: ModelSettings, path: str, entry: Entry) -> tuple[Line, ...]:
    assert entry.digest is not None
    lines = []
    for number, text in enumerate(settings.store.get_bytes(entry.digest).splitlines(), 1):
        if not text.strip():
            continue
        place = f"{settings.label}: {path}:{number}"
        try:
            value = json.loads(text, parse_float=Decimal)
        except ValueError as error:
            raise InfraError(f"{place} is not valid JSON: {error}", retryable=False) from None
        says = [value[name] for name in _KNOWN[1:] if name in value] if isinstance(value, dict) else []
        if len(says) != 1 or not set(value) <= set(_KNOWN) or not isinstance(value.get("match", ""), str):
            message = f"{place} needs exactly one of text, message and body, and may have `match`, a text"
            raise InfraError(message, retryable=False)
        lines.append(Line(value.get("match"), says[0]))
    return tuple(lines)


def _loaded(store: Store, entry: Entry) -> Json:
    assert entry.digest is not None
    return json.loads(store.get_bytes(entry.digest), parse_float=Decimal)
