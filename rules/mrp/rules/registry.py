"""Which rule serves which task: the visible list."""

from mrp.rules.command import CommandRule
from mrp.rules.dataset import DatasetRule
from mrp.rules.evaluation import EvaluationRule
from mrp.rules.image import image_rule
from mrp.rules.operator import operator_rule
from mrp.rules.produce import ProduceRule
from mrp.rules.reduction import ReductionRule
from mrp.rules.rollout import RolloutRule
from mrp.rules.rule import GroupValue, NoAction, Rule, RuleContext
from mrp.rules.sandbox import sandbox_rule
from mrp.specs.errors import InfraError
from mrp.specs.ir import (
    CommandTask,
    DatasetTask,
    EvaluateTask,
    ImageTask,
    JobTask,
    MapTask,
    ModelTask,
    OperatorTask,
    ProduceTask,
    ReduceTask,
    SandboxTask,
    SessionTask,
    Task,
)


def make_rule(task: Task, context: RuleContext) -> Rule:
    """The state machine for `task`, whose dependencies all have values in `context`.

    Raises BuildFailed or InfraError when the task cannot start.
    """
    match task:
        case CommandTask():
            return CommandRule(task, context)
        case DatasetTask():
            return DatasetRule(task, context)
        case EvaluateTask():
            return EvaluationRule(task, context)
        case ImageTask():
            return image_rule(task, context)
        case JobTask():
            return NoAction(GroupValue())
        case MapTask():
            return RolloutRule(task, context)
        case OperatorTask():
            return operator_rule(task, context)
        case ProduceTask():
            return ProduceRule(task, context)
        case ReduceTask():
            return ReductionRule(task, context)
        case SandboxTask():
            return sandbox_rule(task, context)
        case ModelTask() | SessionTask():
            raise InfraError(f"{task.label} needs the model gateway, which this version does not have", retryable=False)
