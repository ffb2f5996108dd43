"""The garbage collector, held back while documents are read.

A large workspace makes a million small objects, nearly all of which live as long as the plan: looking for garbage
among them again and again takes longer than making them.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """Within it no garbage is looked for; afterwards the collector is as it was."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
