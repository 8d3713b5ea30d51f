"""Random arrays, modules that are run on them, and what a program is made of."""

import haiku as hk
import jax
import numpy as np


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(make_module, *args, rng=None, **kwargs):
    """Initialises and applies a module; returns its output and parameters."""
    model = hk.transform(lambda *a: make_module()(*a, **kwargs))
    params = model.init(jax.random.key(0), *args)
    return model.apply(params, rng, *args), params


def shapes(params):
    return {
        f'{module}/{name}': value.shape
        for module, values in params.items()
        for name, value in values.items()
    }


def shapes_in(jaxpr):
    """Of all arrays that a program makes, loops included."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
        ):
            inner = getattr(inner, 'jaxpr', inner)
            if hasattr(inner, 'eqns'):
                yield from shapes_in(inner)
