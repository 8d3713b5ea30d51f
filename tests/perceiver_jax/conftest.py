"""The package runs where arrays of different ranks do not broadcast, as some programs ask for."""

import jax
import pytest


@pytest.fixture(scope='module', autouse=True)
def strict_ranks():
    """`jax_numpy_rank_promotion='raise'`, around the fixtures of a module too."""
    with jax.numpy_rank_promotion('raise'):
        yield
