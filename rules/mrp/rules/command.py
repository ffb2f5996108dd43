"""Commands: a process in a mirror of the workspace that holds only its sources; only `outs` survive."""

import dataclasses
import posixpath
from collections.abc import Callable, Iterable
from functools import partial

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.rules.action import ActionKind, Attempt, LateProcess, make_action
from mrp.rules.conclude import byproducts_of, failure_reason, outcome_of, reproducible
from mrp.rules.operator import contract_env
from mrp.rules.rule import FilesValue, OneAction, RuleContext, SandboxValue
from mrp.specs.ir import CommandTask
from mrp.specs.results import Outcome, Ref, Result
from mrp.specs.work import WORK, Completed, Mount, Process


class RunCommand(LateProcess):
    """Work: a command; `outs` are the paths in the mirror that it must leave."""

    def __init__(self, make: Callable[[], Process], outs: tuple[str, ...]) -> None:
        super().__init__(make)
        self._outs = outs

    def conclude(self, completed: Completed, store: Store) -> Attempt:
        outcome = outcome_of(completed)
        byproducts = byproducts_of(completed)
        if outcome is not Outcome.OK:
            return Attempt(Result(outcome, completed.limit), failure_reason(completed, store, byproducts))
        left = store.read_tree(completed.outputs[WORK])
        kept: dict[str, Entry] = {}
        for out in self._outs:
            found = {path: entry for path, entry in left.items() if path == out or path.startswith(f"{out}/")}
            if not found:
                missing = dataclasses.replace(byproducts, reason=f"left no `{out}`, which its outs name")
                return Attempt(Result(Outcome.FAILED), missing)
            kept |= found
        tree = Ref("tree", store.put_tree(kept))
        return Attempt(Result(outcome, outputs={"outs": tree}, reproducible=reproducible(completed)), byproducts)


class CommandRule(OneAction):
    """`${srcs}` and `${outs}` in the command are the files, each as its own argument where it stands alone."""

    def __init__(self, task: CommandTask, context: RuleContext) -> None:
        self._task, self._store = task, context.store
        sandbox = context.value(task.sandbox, SandboxValue)
        entries = context.files_entries(task.files)
        files = context.store.put_tree(entries)
        paths = sorted(entries)
        if any(entry.kind == "d" for entry in entries.values()):
            paths = list(context.store.read_tree(files))
        self._argv = _fill(task.command, [posixpath.relpath(path, task.package or ".") for path in paths], task.outs)
        preimage = {
            "box": sandbox.description,
            "command": list(self._argv),
            "cwd": task.package,
            "env": dict(task.env),
            "files": files,
            "setup": sandbox.setup,
            "outs": list(task.outs),
        }
        outs = tuple(posixpath.join(task.package, out) for out in task.outs)
        self._reproducible = context.reproducible(task)
        work = RunCommand(partial(self._process, sandbox, files, entries.keys()), outs)
        super().__init__(
            make_action(ActionKind.COMMAND, task.label, "", preimage, work, reproducible=self._reproducible)
        )

    def _process(self, sandbox: SandboxValue, files: Digest, paths: Iterable[str]) -> Process:
        task = self._task
        return Process(
            box=sandbox.box,
            argv=self._argv,
            mounts=(Mount(WORK, self._mirror(sandbox.setup, files, paths), writable=True),),
            outputs=(WORK,),
            env={**contract_env(), **task.env},
            cwd=posixpath.join(WORK, task.package) if task.package else WORK,
            timeout=sandbox.box.limits.wall,
        )

    def _mirror(self, setup: Digest | None, files: Digest, paths: Iterable[str]) -> Digest:
        """What the command finds: what the set-up left, its sources, the folders that it may count on."""
        folders = _folders(self._task)
        are_there = all(any(path.startswith(f"{folder}/") for path in paths) for folder in folders)
        if setup is None and are_there:
            return files
        below = [setup] if setup is not None else []
        return self._store.merge_trees([*below, files, self._store.put_tree(folders)])

    def value(self) -> FilesValue:
        result = self.result()
        tree = result.outputs["outs"].digest
        package = self._task.package
        outputs = {}
        for out in self._task.outs:
            entry = self._store.subtree(tree, posixpath.join(package, out))
            if entry is not None and entry.digest is not None:
                outputs[out] = Ref("blob" if entry.kind in "fx" else "tree", entry.digest)
        return FilesValue(tree, outputs, self._reproducible)


def _fill(command: tuple[str, ...], srcs: list[str], outs: tuple[str, ...]) -> tuple[str, ...]:
    argv: list[str] = []
    for word in command:
        if word == "${srcs}":
            argv.extend(srcs)
        elif word == "${outs}":
            argv.extend(outs)
        else:
            argv.append(word.replace("${srcs}", " ".join(srcs)).replace("${outs}", " ".join(outs)))
    return tuple(argv)


def _folders(task: CommandTask) -> dict[str, Entry]:
    """The package's folder and those that the outputs go to exist before the command starts."""
    folders = {posixpath.dirname(posixpath.join(task.package, out)) for out in task.outs} | {task.package}
    return {folder: Entry("d", None, None) for folder in folders if folder}
