"""The checks of the contract on the real Daytona service; they need an account."""

import os
from urllib.parse import urlsplit

import pytest

from mrp.runtime.contract.subjects import self_check

pytestmark = [
    pytest.mark.cloud,
    pytest.mark.skipif(
        not os.environ.get("DAYTONA_API_KEY")
        or urlsplit(os.environ.get("DAYTONA_API_URL", "")).hostname in ("127.0.0.1", "::1", "localhost"),
        reason="needs an account of Daytona: DAYTONA_API_KEY, and no DAYTONA_API_URL on loopback",
    ),
]


def test_daytona_keeps_the_contract() -> None:
    assert [finding for finding in self_check("daytona") if not finding.kept] == []
