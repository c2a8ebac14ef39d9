"""Both searches, for the tests of what holds for either."""

import pytest


@pytest.fixture(params=["gumbel", "puct"])
def root_policy(request: pytest.FixtureRequest) -> str:
    """The name of a search."""
    return request.param
