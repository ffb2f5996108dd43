"""The checks of the contract on the real Modal; they need an account, and cost a few cents."""

import os

import pytest

from mrp.runtime.contract.subjects import self_check

pytestmark = [
    pytest.mark.cloud,
    pytest.mark.skipif(
        "MODAL_TOKEN_ID" not in os.environ or "MODAL_SERVER_URL" in os.environ,
        reason="needs an account of Modal: MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, and no MODAL_SERVER_URL",
    ),
]


@pytest.mark.parametrize("name", ["modal", "modal+modal"])
def test_modal_keeps_the_contract(name: str) -> None:
    assert [finding for finding in self_check(name) if finding.reason] == []
