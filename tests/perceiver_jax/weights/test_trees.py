import numpy as np
import pytest

from perceiver_jax.weights.trees import check_fit, flatten, list_names, nest
from tests.toys.foreign_weights import STATE, as_trees, three_trees


def test_a_tree_is_flattened_and_nested_again():
    tree = {'a/b': {'w': np.zeros((2, 3)).T, 'b': np.zeros(3)}, 'c': {'w': np.ones(2)}}
    flat = flatten(tree)
    assert list(flat) == ['a/b:w', 'a/b:b', 'c:w'] and flat['c:w'] is tree['c']['w']
    nested = nest(flat)
    assert {module: [*values] for module, values in nested.items()} == {
        'a/b': ['w', 'b'],
        'c': ['w'],
    }
    assert nested['a/b']['w'].shape == (3, 2) and nested['a/b']['w'].flags.c_contiguous
    assert flatten(None) == {}


def test_nine_names_are_listed():
    assert list_names('abc') == 'a, b, c'
    assert list_names([str(i) for i in range(11)]) == '0, 1, 2, 3, 4, 5, 6, 7, 8 and 2 more'
    assert list_names([60 * 'x'] * 11) == ', '.join([60 * 'x'] * 3) + ' and 8 more'
    assert list_names([10**6 * 'x', 'y']) == 230 * 'x' + ' and 1 more'


def test_check_fit_names_another_kind_of_dtype():
    found, wanted = {'a': {'w': np.zeros(3, int)}}, {'a': {'w': np.zeros(3, np.float32)}}
    with pytest.raises(ValueError, match='a.pystate: a:w is int64, not float32'):
        check_fit(found, {}, wanted, {}, 'a.pystate')


def test_check_fit_names_every_difference():
    params, state = as_trees(three_trees('imagenet_conv')[0])
    check_fit(params, state, params, state, 'a.pystate')
    found = {**params, 'encoder': {'latents': np.zeros((3, 7))}, 'extra': {'w': np.zeros(2)}}
    with pytest.raises(ValueError) as error:
        check_fit(found, {}, params, state, 'a.pystate')
    norm = 'inputs/conv7x7/batch_norm'
    missing = ', '.join(f'{norm}:{name}' for name in sorted(STATE))
    assert str(error.value) == (
        f'a.pystate does not fit the model. missing: {missing}; left over: extra:w; '
        'of another shape: encoder:latents (3, 7), not (3, 5).'
    )
