"""docs/policy.md names every field of the policy, and its example is one."""

import re
from pathlib import Path

from mrp.specs.documents import PolicyFile
from mrp.specs.validate import validate
from mrp.specs.yaml import Sources, parse_yaml

TEXT = (Path(__file__).parents[1] / "docs" / "policy.md").read_text()


def test_every_field_of_the_policy_is_explained() -> None:
    table = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    assert {name for name in PolicyFile.model_fields if f"`{name}`" not in table} == {"mrp"}


def test_the_example_is_a_policy() -> None:
    example = next(block for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) if "# policy.yaml" in block)
    document, diagnostics = validate(PolicyFile, parse_yaml(example.encode(), "policy.yaml"), Sources())
    assert (diagnostics, document is not None) == ([], True)
