"""The record of calls: what a model answered to each call of a trial, kept under the call's own key.

It is kept as soon as it is there, so that a trial that is run again, after whatever happened, asks only for the rest.
Only whole answers are kept.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal

from mrp.cache.canonical import Json, action_key, canonical_bytes, canonical_digest, parse_canonical
from mrp.cache.digest import ActionKey, Digest, digest_bytes
from mrp.cache.errors import CacheError, MissingBlob
from mrp.cache.store import ActionEntry, Store
from mrp.runtime.models.protocol import Answer, request_bytes
from mrp.specs.results import Byproducts, Outcome, Ref, Result, Usage
from mrp.specs.work import ENGINE

CALL_VERSION = 1
KIND = "call"

_NOT_IN_KEY = ("model",)
"""The agent's word for the model: the trial's own model answers, whatever it is called."""


@dataclass(frozen=True)
class CallKey:
    """The key of one call with the bytes that it was made of, and the request itself, which it names."""

    key: ActionKey
    preimage: bytes
    request: bytes


class Proof:
    """What models that are declared `seeded` answered in one build, beside what they answered in others.

    `counts` has (calls that were compared, those with the same answer) by the model's label. From any thread.
    """

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int, int]] = {}
        self._answers: dict[ActionKey, Digest] = {}
        self._lock = threading.Lock()

    def note(self, label: str, key: ActionKey, answer: Answer) -> None:
        """A model answered a call; its ids, times and facts of itself are no part of what it says."""
        body = answer.body if isinstance(answer.body, dict) else {}
        said = canonical_digest([body.get("choices"), [chunk.get("choices") for chunk in answer.chunks]])
        with self._lock:
            calls, same = self.counts.setdefault(label, (0, 0))
            before = self._answers.get(key)
            self._answers.setdefault(key, said)
            if before is not None:
                self.counts[label] = (calls + 1, same + (before == said))


@dataclass(frozen=True)
class Calls:
    """Where a build's calls are kept. store: None for the build's own cache.

    upstream: whether what is not there may be asked of the model. proof: answers of models that are declared `seeded`
    are kept in the build's own cache all the same, so that they are asked for again, and compared here.
    """

    store: Store | None = None
    upstream: bool = True
    proof: Proof | None = None


def kept_request(path: str, body: Mapping[str, Json]) -> bytes:
    """A request as keys name it. Raises what canonical_bytes does, and RecursionError."""
    kept = {name: value for name, value in body.items() if name not in _NOT_IN_KEY}
    if not kept.get("stream"):
        kept.pop("stream", None)
    return b'{"body":%b,"path":%b}' % (request_bytes(kept), canonical_bytes(path))


def call_key(trial: ActionKey, model: Digest, request: bytes, occurrence: int) -> CallKey:
    """`model` is the digest of its description, sampling included; `occurrence` counts equal requests of the trial."""
    preimage: dict[str, Json] = {
        "action": KIND,
        "version": CALL_VERSION,
        "trial": trial,
        "model": model,
        "request": digest_bytes(request),
        "occurrence": occurrence,
    }
    key, made_of = action_key(preimage)
    return CallKey(key, made_of, request)


class Record:
    """Calls that were answered, in one store. `upstream` tells whether others may be asked of the model.

    Answers that come new are compared in `proof`.
    """

    def __init__(self, store: Store, *, upstream: bool = True, proof: Proof | None = None) -> None:
        self._store, self.upstream, self.proof = store, upstream, proof

    def find(self, call: CallKey) -> Answer | None:
        """What was answered. One whose blob was lost is as good as none."""
        entry = self._store.lookup([call.key]).get(call.key)
        if entry is None:
            return None
        try:
            return answer_of(entry, self._store)
        except MissingBlob:
            return None

    def keep(self, call: CallKey, answer: Answer, usd: Decimal, wall_s: Decimal) -> Answer:
        """Make an answer durable; gives the one that stands, which another process may have been first to keep."""
        entry = _entry(call, answer, usd, wall_s, self._store)
        winner = self._store.commit([entry]).get(call.key, entry)
        return answer_of(winner, self._store)


def answer_of(entry: ActionEntry, store: Store) -> Answer:
    """The answer that an entry of kind `call` holds. Raises MissingBlob."""
    value = parse_canonical(store.get_bytes(Digest(entry.result["outputs"]["answer"]["blob"])))
    return Answer(**{**value, "chunks": tuple(value["chunks"])})


def shown_calls(keys: Iterable[str], store: Store) -> Iterator[dict[str, Json]]:
    """For people: each call with its request, answer and usage; null where the cache lost a part."""
    wanted = [ActionKey(Digest(key)) for key in keys]
    entries = store.lookup(wanted)
    for key in wanted:
        shown: dict[str, Json] = {"key": key, "request": None, "answer": None, "usage": None}
        entry = entries.get(key)
        if entry is not None:
            with suppress(CacheError):
                shown["request"] = parse_canonical(store.get_bytes(entry.extra[0]))
                shown["answer"] = parse_canonical(store.get_bytes(entry.blobs[0]))
            shown["usage"] = entry.byproducts[-1]["usage"]
        yield shown


def _entry(call: CallKey, answer: Answer, usd: Decimal, wall_s: Decimal, store: Store) -> ActionEntry:
    blob = store.put_bytes(canonical_bytes({**vars(answer), "chunks": list(answer.chunks)}))
    request = store.put_bytes(call.request)
    usage = Usage(wall_s=wall_s, usd=usd, tokens=answer.input_tokens + answer.output_tokens)
    return ActionEntry(
        key=call.key,
        kind=KIND,
        preimage=call.preimage,
        result=Result(Outcome.OK, outputs={"answer": Ref("blob", blob)}).to_json(),
        byproducts=[Byproducts(isolation=ENGINE, usage=usage).to_json()],
        blobs=(blob,),
        trees=(),
        extra=(request,),
        isolation=ENGINE,
        provenance={},
        created=time.time(),
    )
