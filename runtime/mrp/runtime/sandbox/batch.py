"""Batches: several items of a pure operator handed to one slot together, each watched and concluded by itself."""

import json
import os
import select
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.runtime.sandbox.capture import Redactor, keep_log
from mrp.runtime.sandbox.cgroups import Events
from mrp.runtime.sandbox.conclude import complete
from mrp.runtime.sandbox.layout import Folders
from mrp.runtime.sandbox.protocol import Cancelled
from mrp.runtime.sandbox.pure import IN_MEMORY, Pooled
from mrp.runtime.sandbox.slot import CHUNK, GO, ITEM, ITEM_ENDED, LOG_BYTES, RETURNED, STDERR, STDOUT, STOP
from mrp.runtime.sandbox.supervise import Ended, Supervised, Wake, folder_bytes
from mrp.runtime.sandbox.trees_inline import Inline, InlineTrees
from mrp.specs.work import Completed, Process

SLOW_SECONDS = 0.25
"""When an item takes longer, those that wait behind it are given back, for another slot to run them."""

_LULL = 0.01
"""So many seconds what short items say may wait, to be heard together: to wake for each takes as long as they do."""

_FIRST_TICK, _TICK = 0.02, 0.1
_GRACE = 1.0
_READ = 1 << 18


# Many items leave the same few names; nobody changes what was read.
_trees: Callable[[bytes], Sequence[Any]] = lru_cache(256)(json.loads)


@dataclass(frozen=True)
class Item:
    """One item as a slot takes it: `trees` by guest path, in the order of the slot's points."""

    process: Process
    env: Mapping[str, str]
    cwd: str
    trees: tuple[Digest, ...]


class Batch:
    """One run of items through a slot, in order; `finished` is called with each item's number and what came of it.

    After `run`, `settled` tells how many of the first items are finished; the others have not been finished anywhere.
    `needs_disk`: the next one needs a slot whose folders are on disk.
    When one is slow, `give_back` is called with the number of the first behind it, which is to run elsewhere.
    When `run` raises, what it raises is about the item with number `settled`, and the slot is dead.
    """

    def __init__(
        self,
        pooled: Pooled,
        items: Sequence[Item],
        loaded: Mapping[Digest, Inline | None],
        trees: InlineTrees,
        store: Store,
        wake: Wake,
        finished: Callable[[int, Completed], None],
        give_back: Callable[[int], None] | None = None,
    ) -> None:
        self._pooled, self._slot = pooled, pooled.slot
        self._items, self._trees, self._store, self._wake = items, trees, store, wake
        self._watch, self._isolation, self._finished = pooled.watch, pooled.isolation, finished
        self._give_back = give_back
        self._loaded = loaded
        self._buffer = b""
        self._logs = {STDOUT: bytearray(), STDERR: bytearray()}
        self._empty_log = store.put_bytes(b"")
        self._events = Events()
        self._counted_before = False
        self._by_hand = 0
        self._poll, self._only_wake = select.poll(), select.poll()
        self._only_wake.register(wake.fileno(), select.POLLIN)
        self._heard_at, self._lull = 0.0, 0.0
        for each in (self._slot.chunks, self._slot.channel.connection, wake):
            self._poll.register(each.fileno(), select.POLLIN)
        self._returned = False
        self._asked_back = False
        self._killed: str | None = None
        self._kill_at: float | None = None
        self.settled = 0
        self.given_back = False
        self.needs_disk = False

    def run(self) -> None:
        """Run them, until all are settled or the rest has to be run elsewhere. Raises InfraError and Cancelled."""
        try:
            self._send()
            self._begin()
            self._heard_at = self._started
            while self.settled < len(self._items) and not self._returned:
                self._step()
        except BaseException:
            self._slot.wait()
            raise
        if self._slot.dead:
            self._slot.wait()

    # -- to the slot ---------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Hand them over. Of an item that is alone, trees that cannot be sent are laid out here."""
        for item in self._items:
            for point, digest in zip(self._pooled.points, item.trees, strict=True):
                if self._loaded[digest] is None:
                    assert len(self._items) == 1
                    self._store.checkout(digest, point.folder, writable=point.writable)
                    self._by_hand += folder_bytes([point.folder]) if point.writable else 0
        frame = self._frame()
        self._slot.served += len(self._items)
        self._events, self._counted_before = self._pooled.events(), True
        # A slot that has ended closed its channel; how it ended is seen there and in what it still said.
        with suppress(OSError):
            self._slot.chunks.sendall(CHUNK + len(frame).to_bytes(4, "big") + frame)

    def _frame(self) -> bytes:
        numbers: dict[Digest, int] = {}
        trees: list[Inline] = []
        items: list[Any] = []
        messages: list[bytes] = []
        for item in self._items:
            chosen: list[int | None] = []
            for digest in item.trees:
                tree = self._loaded[digest]
                if tree is None:
                    chosen.append(None)
                    continue
                if digest not in numbers:
                    numbers[digest] = len(trees)
                    trees.append(tree)
                chosen.append(numbers[digest])
            messages.append(json.dumps({"env": item.env, "cwd": item.cwd}).encode())
            items.append((chosen, len(messages[-1])))
        fields: dict[str, Any] = {
            "room": self._watch.disk,
            "trees": [(tree.tree, len(tree.data)) for tree in trees],
            "items": items,
        }
        header = json.dumps(fields).encode()
        return b"".join([len(header).to_bytes(4, "big"), header, *(tree.data for tree in trees), *messages])

    # -- from the slot -------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The next item runs from now on, as far as can be told from here."""
        self._started = now = time.monotonic()
        self._tick = _FIRST_TICK
        self._next_look = now + self._tick
        if self.settled == len(self._items):
            return
        self._deadline = now + float(self._items[self.settled].process.timeout)

    def _step(self) -> None:
        """Wait for whatever comes first: news, the wake, a limit."""
        if self._lull:
            self._only_wake.poll(self._lull * 1000)
        now = time.monotonic()
        until = min(self._next_look, self._deadline if self._kill_at is None else self._kill_at)
        ready = {descriptor for descriptor, _ in self._poll.poll(max(0.0, until - now) * 1000 + 1)}
        if self._wake.fileno() in ready:
            self._slot.kill()
            raise Cancelled
        if self._slot.chunks.fileno() in ready:
            if self._receive():
                return
            self._poll.unregister(self._slot.chunks.fileno())
        if self._slot.channel.connection.fileno() in ready:
            ended = self._slot.ended()
            if ended is not None:
                self._slot_ended(ended)
                return
        self._look()

    def _receive(self) -> bool:
        """Take what has arrived; False when nothing more will."""
        try:
            data = self._slot.chunks.recv(_READ)
        except ConnectionResetError:
            data = b""
        if not data:
            return False
        if self._pooled.in_memory and self._ran_out_of_memory():
            return True
        buffer = self._buffer + data if self._buffer else data
        before, place, checked = self.settled, 0, False
        while len(buffer) - place >= 5 and self.settled < len(self._items) and not self._returned:
            end = place + 5 + int.from_bytes(buffer[place + 1 : place + 5], "big")
            if len(buffer) < end:
                break
            kind, frame = buffer[place : place + 1], buffer[place + 5 : end]
            place = end
            if kind == ITEM:
                if not checked:
                    self._watch.check_disk()
                    checked = True
                self._item_ended(frame)
            elif kind == RETURNED:
                self._rest_returned(frame)
            elif kind in self._logs:
                log = self._logs[kind]
                log += frame[: max(0, LOG_BYTES + 1 - len(log))]
        self._buffer = buffer[place:]
        self._lull = self._until_more(self.settled - before)
        return True

    def _until_more(self, heard: int) -> float:
        """For how many seconds not to listen, now that so many items ended since the last time."""
        before, self._heard_at = self._heard_at, time.monotonic()
        each = (self._heard_at - before) / heard if heard else _LULL
        return min(_LULL, each * (len(self._items) - self.settled)) if each < _LULL else 0.0

    def _rest_returned(self, state: bytes) -> None:
        if state == b"ending":
            self._slot.dead = True
        self._items = self._items[: self.settled + (state == b"running")]
        self._returned = self.settled == len(self._items)
        if self._asked_back and self._give_back is not None and state != b"ending":
            self.given_back = True
            self._give_back(len(self._items))

    def _item_ended(self, frame: bytes) -> None:
        exit_code, cpu, wall, rss, _, held, size = ITEM_ENDED.unpack_from(frame)
        item = self._items[self.settled]
        if held:
            done = Supervised(Ended(exit_code, cpu, rss), self._killed, *self._take_logs(), wall)
            if not self._conclude_here(item, done):
                return
            with suppress(OSError):
                self._slot.chunks.sendall(GO)
            self._heard_at = 0.0
            self._begin()
        else:
            self._counted_before = False
            data = ITEM_ENDED.size + size
            trees = iter(_trees(frame[ITEM_ENDED.size : data]))
            self._settle(self._concluded(item, trees, frame[data:], cpu, wall, rss))
        if self._killed is not None:
            # Those behind it may have been hit as well.
            self._slot.dead = self._returned = True
        self._pooled.note_memory(rss)

    def _concluded(
        self, item: Item, trees: Iterator[Sequence[Any] | None], data: bytes, cpu: float, wall: float, rss: int
    ) -> Completed:
        """An item that succeeded and left little: all is in its answer."""
        process, outputs = item.process, {}
        for point, given in zip(self._pooled.points, item.trees, strict=True):
            if point.path in process.outputs:
                tree = next(trees)
                if tree is None:
                    outputs[point.path] = given
                else:
                    outputs[point.path], data = self._trees.put(tree, data)
        stdout, stderr = self._logs.values()
        return Completed(
            exit_code=None if self._killed else 0,
            limit=self._killed,
            stdout=self._log(stdout),
            stderr=self._log(stderr),
            outputs=outputs,
            wall_s=Decimal(f"{wall:.3f}"),
            cpu_s=Decimal(f"{cpu:.3f}"),
            max_rss=rss,
            isolation=self._isolation,
        )

    def _log(self, log: bytearray) -> Digest:
        if not log:
            return self._empty_log
        data = bytes(log)
        log.clear()
        return keep_log(data, Redactor({}), self._store)

    def _conclude_here(self, item: Item, done: Supervised) -> bool:
        """Read what an item left from its folders; False when it has to run again to know which limit it hit."""
        before, known = self._events, self._counted_before
        self._events, self._counted_before = self._pooled.events(), True
        events = Events(self._events.memory - before.memory, self._events.pids - before.pids)
        if done.killed is None and events != Events() and not known:
            self._slot.dead = self._returned = True
            return False
        self._watch.base = self._base(item)
        folders = {point.path: point.folder for point in self._pooled.points}
        writable = {point.path: point.folder for point in self._pooled.points if point.writable}
        laid_out = Folders(writable, {path: place for path, place in folders.items() if path not in writable}, ())
        completed = complete(
            item.process,
            done,
            self._watch,
            events,
            (0.0, 0),
            laid_out,
            Redactor({}),
            self._store,
            self._isolation,
        )
        self._settle(completed)
        return True

    def _settle(self, completed: Completed) -> None:
        number, self.settled = self.settled, self.settled + 1
        self._watch.full = self._watch.crowded = False
        self._returned = self._returned or self.settled == len(self._items)
        self._begin()
        self._finished(number, completed)

    def _take_logs(self) -> tuple[bytes, bytes]:
        stdout, stderr = (bytes(log) for log in self._logs.values())
        for log in self._logs.values():
            log.clear()
        return stdout, stderr

    def _slot_ended(self, ended: Ended) -> None:
        """The slot died: that is the outcome of the item that ran, after what it said before is heard."""
        wall = time.monotonic() - self._started
        self._slot.wait()
        while self._receive() and not self._returned:
            continue
        if self._pooled.in_memory and not self._returned:
            self._ran_out_of_memory()
        if self.settled == len(self._items) or self._returned:
            return
        for kind, descriptor in zip((STDOUT, STDERR), self._slot.logs, strict=True):
            with suppress(BlockingIOError):
                while data := os.read(descriptor, _READ):
                    self._logs[kind] += data[: max(0, LOG_BYTES + 1 - len(self._logs[kind]))]
        item = self._items[self.settled]
        self._conclude_here(item, Supervised(ended, self._killed, *self._take_logs(), wall))
        self._returned = True

    # -- limits --------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See whether the item that runs is over a limit, and end it as other processes are ended."""
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._slot.kill()
            self._kill_at = now + _GRACE
        elif self._kill_at is None and now >= self._deadline:
            self._killed = "wall"
            self._slot.ask_to_end()
            self._kill_at = now + _GRACE
        elif now >= self._next_look:
            if (
                self._give_back is not None
                and not self._asked_back
                and self.settled + 1 < len(self._items)
                and now > self._started + SLOW_SECONDS
            ):
                self._asked_back = True
                with suppress(OSError):
                    self._slot.chunks.sendall(STOP)
            self._watch.base = self._base(self._items[self.settled])
            if self._pooled.in_memory and self._watch.used() > IN_MEMORY:
                self._go_to_disk()
                return
            exceeded = self._watch.exceeded(self._slot.processes()) if self._kill_at is None else None
            if exceeded is not None:
                self._killed = exceeded
                self._slot.kill()
                self._kill_at = now + _GRACE
            self._tick = min(_TICK, 2 * self._tick)
            self._next_look = time.monotonic() + max(self._tick, 5 * (time.monotonic() - now))

    def _ran_out_of_memory(self) -> bool:
        """Whether something was killed for memory, which files may have used up that would not count on disk.

        It happened after what was heard before: all since then is run again.
        """
        if self._pooled.events().memory == self._events.memory:
            return False
        self._go_to_disk()
        return True

    def _go_to_disk(self) -> None:
        self.needs_disk = self._slot.dead = self._returned = True

    def _base(self, item: Item) -> int:
        total = 0
        for point, digest in zip(self._pooled.points, item.trees, strict=True):
            tree = self._loaded[digest]
            if point.writable and tree is not None:
                total += tree.used
        return total + self._by_hand
