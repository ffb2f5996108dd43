"""Evaluations: a user's evaluator judges one artifact and writes one result.json."""

import json
from decimal import Decimal

from mrp.cache.canonical import Json
from mrp.rules.action import ActionKind, make_action
from mrp.rules.model import model_use
from mrp.rules.operator import contract_env, contract_mounts, operator_process, operator_sdk
from mrp.rules.reduction import ExpectationFailed, RunReducer
from mrp.rules.rows import artifact_tree
from mrp.rules.rule import DocumentValue, ModelValue, OneAction, OperatorValue, RuleContext, SandboxValue
from mrp.specs.expressions import parse_expression
from mrp.specs.ir import EvaluateTask
from mrp.specs.work import OUT


class EvaluationRule(OneAction):
    """The subject stands under /task as a folder; see mrp.rules.rows.artifact_tree."""

    def __init__(self, task: EvaluateTask, context: RuleContext) -> None:
        self._task, self._store = task, context.store
        self._partial = getattr(context.values[task.of], "partial", False)
        self._reproducible = context.reproducible(task)
        operator = context.value(task.evaluator, OperatorValue)
        sandbox = context.value(task.sandbox, SandboxValue)
        tree = artifact_tree(task.of, context)
        model = None
        if task.model is not None:
            model = model_use(context.value(task.model, ModelValue), task.params, context)
        process = operator_process(
            operator,
            sandbox.box,
            operator_sdk(operator, context),
            mounts=contract_mounts(context.store, tree, sandbox.setup),
            outputs=(OUT,),
            env=contract_env(params=task.params),
            timeout=sandbox.box.limits.wall,
            model=model,
        )
        preimage: dict[str, Json] = {
            "evaluator": operator.digest,
            "box": sandbox.description,
            "setup": sandbox.setup,
            "params": task.params,
            "subject": tree,
        }
        if model is not None:
            preimage["model"] = model.description
        work = RunReducer(process, model)
        action = make_action(ActionKind.EVALUATION, task.label, "", preimage, work, reproducible=self._reproducible)
        super().__init__(action)

    def value(self) -> DocumentValue:
        result = self.result()
        document = json.loads(self._store.get_bytes(result.outputs["result.json"].digest), parse_float=Decimal)
        value = DocumentValue(document, result.outputs, self._reproducible and result.reproducible, self._partial)
        if self._task.expect is not None and parse_expression(self._task.expect).evaluate(document) is not True:
            raise ExpectationFailed(f"{self._task.label} does not meet its expect: {self._task.expect}", value)
        return value
