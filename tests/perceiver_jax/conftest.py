import pytest


@pytest.fixture(scope='module', autouse=True)
def strict_ranks(no_rank_promotion):
    """All tests of this folder, and the fixtures of their modules, run without rank promotion."""
