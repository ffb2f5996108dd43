"""The checks that every model must pass, whatever it answers."""

import threading
from dataclasses import dataclass

from mrp.cache.canonical import Json, canonical_bytes
from mrp.runtime.contract.check import Broken, Check, expect
from mrp.runtime.models.protocol import Answer, Call, Model, Refused


@dataclass(frozen=True)
class ModelBench:
    """A model, and the name that its calls must give."""

    model: Model
    name: str

    def chat(self, text: str = "Say a word.", **more: Json) -> Answer:
        messages = [{"role": "user", "content": text}]
        body = {"model": self.name, "messages": messages, "max_tokens": 8, **more}
        return self.model.answer(Call("chat/completions", body, timeout=120))


def _chat(bench: ModelBench) -> None:
    body = bench.chat().body
    if not isinstance(body, dict) or not isinstance(body["choices"][0]["message"]["content"], str):
        raise Broken(f"a chat was answered with {body!r}")


def _tokens(bench: ModelBench) -> None:
    answer = bench.chat()
    if answer.input_tokens < 1 or answer.output_tokens < 1:
        raise Broken(f"a chat was counted as {answer.input_tokens} and {answer.output_tokens} tokens")


def _stream(bench: ModelBench) -> None:
    answer = bench.chat(stream=True)
    if not answer.chunks or answer.body is not None:
        raise Broken("a streamed call was not answered in chunks")
    text = "".join(choice["delta"].get("content") or "" for chunk in answer.chunks for choice in chunk["choices"])
    if not text:
        raise Broken("the chunks of a stream hold no text")


def _facts(bench: ModelBench) -> None:
    canonical_bytes(dict(bench.chat().facts))


def _wrong(bench: ModelBench) -> None:
    try:
        bench.model.answer(Call("chat/completions", {"model": bench.name, "messages": "not a list"}, timeout=60))
    except Refused as error:
        if not 400 <= error.status < 500:
            raise Broken(f"a wrong call was refused with {error.status}") from error
        return
    raise Broken("a call without messages was answered")


def _at_once(bench: ModelBench) -> None:
    failures: list[str] = []

    def one() -> None:
        try:
            bench.chat()
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect(failures, [], "what failed of eight calls at once")


CHECKS: tuple[Check[ModelBench], ...] = (
    Check("a chat is answered", _chat),
    Check("tokens are counted", _tokens),
    Check("a stream comes whole, in chunks", _stream),
    Check("the engine's facts are JSON", _facts),
    Check("a wrong call is refused, as the caller's fault", _wrong),
    Check("calls may be made at once", _at_once),
)
"""Every check, in the order in which they are run."""
