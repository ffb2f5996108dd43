"""Which rule serves which task: the visible list. A rule is loaded once a task of its kind is opened."""

from mrp.rules.rule import GroupValue, NoAction, Rule, RuleContext
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
            from mrp.rules.command import CommandRule

            return CommandRule(task, context)
        case DatasetTask():
            from mrp.rules.dataset import DatasetRule

            return DatasetRule(task, context)
        case EvaluateTask():
            from mrp.rules.evaluation import EvaluationRule

            return EvaluationRule(task, context)
        case ImageTask():
            from mrp.rules.image import image_rule

            return image_rule(task, context)
        case JobTask():
            return NoAction(GroupValue())
        case MapTask():
            from mrp.rules.rollout import RolloutRule

            return RolloutRule(task, context)
        case OperatorTask():
            from mrp.rules.operator import operator_rule

            return operator_rule(task, context)
        case ProduceTask():
            from mrp.rules.produce import ProduceRule

            return ProduceRule(task, context)
        case ReduceTask():
            from mrp.rules.reduction import ReductionRule

            return ReductionRule(task, context)
        case SandboxTask():
            from mrp.rules.sandbox import sandbox_rule

            return sandbox_rule(task, context)
        case ModelTask():
            from mrp.rules.model import model_rule

            return model_rule(task, context)
        case SessionTask():
            raise InfraError(f"{task.label} is a session, which this version cannot run yet", retryable=False)
