"""What authors of operators import: agents, reducers, evaluators and producers for mrp.

It needs nothing but the standard library, and runs on Python 3.8 and later, because it is injected into sandboxes
that bring their own interpreter.
"""

from mrp.sdk.context import Context
from mrp.sdk.operators import Agent, Evaluator, Producer, Reducer
from mrp.sdk.values import Artifact, Result, Task, Trial, Write

__all__ = [
    "Agent",
    "Artifact",
    "Context",
    "Evaluator",
    "Producer",
    "Reducer",
    "Result",
    "Task",
    "Trial",
    "Write",
]
