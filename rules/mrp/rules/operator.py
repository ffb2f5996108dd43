"""Operators: user code becomes a digest, and a process that runs it."""

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache

from mrp.cache.canonical import Json, canonical_text
from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.rules.action import put_description
from mrp.rules.calling import ModelUse
from mrp.rules.rule import NoAction, OperatorValue, RuleContext
from mrp.specs.ir import OperatorTask
from mrp.specs.work import OPERATOR_DIR, OUT, SDK_DIR, SOLUTION, TASK, WORK, Box, Mount, Process


def operator_rule(task: OperatorTask, context: RuleContext) -> NoAction:
    """Pins an operator: its digest covers all that its code and its way of being started can change."""
    tree = context.files_tree(task.files, strip=task.package)
    description: dict[str, Json] = {
        "kind": task.kind,
        "version": task.version,
        "files": tree,
        "sees": task.sees,
        "pure": task.pure,
    }
    if task.entry is not None:
        description |= {"entry": task.entry, "sdk": context.sdk()}
    if task.command is not None:
        description["command"] = list(task.command)
    if task.schema is not None:
        description["schema"] = task.schema.digest
    if task.io is not None:
        description["io"] = list(task.io)
    argv = _resolved(task.command or (), context.store.read_tree(tree))
    digest = put_description(context.store, description)
    return NoAction(OperatorValue(task, digest, tree, argv, reproducible=context.reproducible(task)))


def operator_process(
    operator: OperatorValue,
    box: Box,
    sdk: Digest | None,
    *,
    mounts: tuple[Mount, ...],
    outputs: tuple[str, ...],
    env: Mapping[str, str],
    timeout: Decimal,
    role: str = "",
    model: ModelUse | None = None,
) -> Process:
    """The process that runs an operator, with its code mounted read-only beside the trial's own trees.

    role: what it is there for; its kind unless given. model: what it may call.
    """
    if model is not None:
        env = {**env, "MRP_MODEL": model.name}
    task = operator.task
    role = role or task.kind
    code = (_shared_mount(OPERATOR_DIR, operator.tree),)
    if task.entry is not None:
        assert sdk is not None
        return Process(
            box=box,
            entry=task.entry,
            role=role,
            pure=task.pure,
            mounts=(*mounts, *code, _shared_mount(SDK_DIR, sdk)),
            outputs=outputs,
            env=env,
            timeout=timeout,
            model=model is not None,
        )
    return Process(
        box=box,
        argv=operator.argv,
        role=role,
        mounts=(*mounts, *code),
        outputs=outputs,
        env={**env, "MRP_OPERATOR_DIR": OPERATOR_DIR},
        timeout=timeout,
        model=model is not None,
    )


def _resolved(command: tuple[str, ...], files: Mapping[str, Entry]) -> tuple[str, ...]:
    """The command, with each word that names one of the operator's own files as the path where it will stand."""
    return tuple(f"{OPERATOR_DIR}/{word}" if word in files else word for word in command)


def operator_sdk(operator: OperatorValue, context: RuleContext) -> Digest | None:
    """The tree of mrp.sdk for Python operators, None for commands."""
    return context.sdk() if operator.task.entry is not None else None


def contract_mounts(store: Store, task: Digest, work: Digest | None = None) -> tuple[Mount, ...]:
    """/task read-only, and writable /work (empty unless given) and /out."""
    empty = store.put_tree({})
    return (
        Mount(TASK, task),
        _shared_mount(WORK, work or empty, writable=True),
        _shared_mount(OUT, empty, writable=True),
    )


@lru_cache(256)
def _shared_mount(path: str, tree: Digest, *, writable: bool = False) -> Mount:
    """A mount that many processes have: the very same object is told apart from others, and sent, at once."""
    return Mount(path, tree, writable)


def contract_env(record_id: str | None = None, params: Json = None) -> dict[str, str]:
    """The variables of the contract that name folders, and those of the record and params that are known."""
    env = {"MRP_TASK_DIR": TASK, "MRP_WORKSPACE": WORK, "MRP_OUTPUT_DIR": OUT, "MRP_SOLUTION_DIR": SOLUTION}
    if record_id is not None:
        env["MRP_RECORD_ID"] = record_id
    if params is not None:
        env["MRP_PARAMS"] = canonical_text(params)
    return env
