"""Operators as commands, where they cannot be forked from a warm process.

Images hold no byte code, and compiling what each start imports would take longer than all else. So the image's own
Python compiles it once, in a sandbox, for all later ones.
"""

import dataclasses
from decimal import Decimal

from mrp.cache.digest import Digest
from mrp.runtime.sandbox.layout import ImageView
from mrp.runtime.sandbox.means import operator_argv
from mrp.runtime.sandbox.sdk_loading import PRELOADED
from mrp.specs.work import OPERATOR_DIR, OUT, SDK_DIR, Box, Mount, Process

_PLACE = "/opt/mrp/bytecode"

_SECONDS = Decimal(60)
"""A Python of an image that takes longer goes without: others wait for it."""

_COMPILE = """
import importlib, sys
sys.path[0:1] = [{sdk!r}]
for name in ("mrp.sdk.runner", "mrp.sdk", "mrp.sdk.builtin", "mrp.sdk.context", {names}):
    try:
        importlib.import_module(name)
    except Exception:
        pass
"""


def compiling(python: str, image: Digest, sdk: Digest) -> Process:
    """The process that leaves in its output folder byte code of mrp.sdk and of what operators are likely to import."""
    source = _COMPILE.format(sdk=SDK_DIR, names=", ".join(map(repr, PRELOADED)))
    return Process(
        box=Box(image),
        # An empty variable is as good as none, and with one it would write nothing.
        env={"PYTHONDONTWRITEBYTECODE": ""},
        argv=(python, "-X", f"pycache_prefix={OUT}", "-c", source),
        mounts=(Mount(SDK_DIR, sdk),),
        outputs=(OUT,),
        timeout=_SECONDS,
    )


def started_anew(process: Process, view: ImageView, bytecode: Digest | None) -> Process:
    """An operator as a command, which may execute its Python then; `bytecode` is what `compiling` left.

    Raises InfraError when the image has no Python.
    """
    assert process.entry is not None
    env = {**process.env, "MRP_ENTRY": process.entry, "MRP_ROLE": process.role}
    argv = operator_argv(view, SDK_DIR, OPERATOR_DIR)
    box = process.box
    if box.allow is not None:
        box = dataclasses.replace(box, allow=(*box.allow, argv[0]))
    mounts = process.mounts
    if bytecode is not None:
        # Not by a variable: programs that it starts are none of ours.
        argv = (argv[0], "-X", f"pycache_prefix={_PLACE}", *argv[1:])
        mounts = (*mounts, Mount(_PLACE, bytecode))
    return dataclasses.replace(process, box=box, argv=argv, entry=None, pure=False, env=env, mounts=mounts)
