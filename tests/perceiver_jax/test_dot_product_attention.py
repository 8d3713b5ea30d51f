import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax import dot_product_attention
from perceiver_jax.chunks import compiling_for
from perceiver_jax.dot_product_attention import attend, attention_weights
from perceiver_jax.errors import Refused
from perceiver_jax.layers import normalise
from tests.toys.modules import random

pytestmark = pytest.mark.gpu
B, T, S, H, F, V = 2, 5, 7, 3, 11, 13


IMPLEMENTATIONS = ('plain', 'chunked')


def attend_one(query, key, value, mask):
    """One head of one example, by loops: [T, F], [S, F], [S, V], [T, S] -> [T, V]."""
    output = np.zeros((len(query), value.shape[1]))
    for t, q in enumerate(query.astype(np.float64)):
        visible = [s for s in range(len(key)) if mask[t, s]]
        scores = np.array([np.exp(q @ key[s] / np.sqrt(len(q))) for s in visible])
        for score, s in zip(scores, visible, strict=True):
            output[t] += score / scores.sum() * value[s]
    return output


MASKS = [None, (B, T, S), (B, 1, S), (1, T, S), (B, T, 1)]


@pytest.mark.parametrize(
    'implementation, chunk_size', [('plain', None), ('auto', None), ('chunked', 3), ('chunked', 1)]
)
@pytest.mark.parametrize('mask_shape', MASKS)
def test_attend_equals_a_loop(implementation, chunk_size, mask_shape):
    query, key, value = random(B, T, H, F), random(B, S, H, F, seed=1), random(B, S, H, V, seed=2)
    mask = None
    if mask_shape is not None:
        mask = np.random.default_rng(3).random(mask_shape) < 0.6
    full = np.broadcast_to(True if mask is None else mask, (B, T, S))
    expected = np.stack(
        [
            np.stack(
                [
                    attend_one(query[b, :, h], key[b, :, h], value[b, :, h], full[b])
                    for h in range(H)
                ],
                axis=1,
            )
            for b in range(B)
        ]
    )
    output = attend(
        query,
        key,
        value,
        mask if mask is None else jnp.asarray(mask),
        implementation=implementation,
        chunk_size=chunk_size,
    )
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_a_query_that_may_look_at_nothing_gives_zeros_and_finite_gradients(implementation):
    query, key, value = random(B, T, H, F), random(B, S, H, F), random(B, S, H, V)
    mask = jnp.ones((B, T, S), bool).at[0, 2].set(False)

    def total(*qkv):
        output = attend(*qkv, mask, implementation=implementation, chunk_size=2)
        return output.sum(), output

    gradients, output = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)
    np.testing.assert_array_equal(output[0, 2], 0)
    assert np.abs(output[0, 1]).min() > 0
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(gradients[0][0, 2], 0)


@pytest.mark.parametrize('large', [1e4, -1e4])
def test_large_logits_do_not_overflow(large):
    query, key, value = (jnp.asarray(random(1, 6, 1, 4, seed=i)) for i in range(3))
    key = key.at[:, 3].set(large)

    def total(query, implementation):
        how = dict(implementation=implementation, chunk_size=2)
        return (attend(query, key, value, **how) ** 2).sum()

    gradients = [jax.grad(total)(query, implementation) for implementation in IMPLEMENTATIONS]
    assert np.isfinite(gradients[1]).all()
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_without_values_the_keys_are_the_values(implementation):
    query, key = random(B, T, H, F), random(B, S, H, F, seed=1)
    how = dict(implementation=implementation, chunk_size=2)

    def outputs_and_gradients(value_is_none):
        def loss(key):
            output = attend(query, key, None if value_is_none else key, **how)
            return (output**2).sum(), output

        return jax.grad(loss, has_aux=True)(key)

    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        outputs_and_gradients(value_is_none=True),
        outputs_and_gradients(value_is_none=False),
    )


def test_heads_that_fit_a_kernel_of_a_gpu():
    """On a GPU 'auto' is cuDNN's kernel here, elsewhere chunks."""
    arrays = [jnp.asarray(random(B, 64, H, 16, seed=i), jnp.bfloat16) for i in range(4)]

    def output_and_gradients(arrays, implementation):
        *arrays, cotangent = arrays
        output, pull = jax.vjp(lambda *x: attend(*x, implementation=implementation), *arrays)
        return output, *pull(cotangent)

    actual = output_and_gradients(arrays, 'auto')
    expected = output_and_gradients([x.astype(jnp.float32) for x in arrays], 'plain')
    for x, y in zip(actual, expected, strict=True):
        assert x.dtype == jnp.bfloat16
        difference = np.linalg.norm(x.astype(jnp.float32) - y)
        assert difference < 0.01 * np.linalg.norm(y)  # numbers of 8 bits are within 1 / 512


@pytest.fixture
def gpu(monkeypatch):
    """As if there were a GPU; cuDNN's kernel is stood in for by XLA's version of it."""
    calls, original = [], jax.nn.dot_product_attention

    def stand_in(query, key, value, *, scale, implementation):
        calls.append(implementation)
        return original(query, key, value, scale=scale, implementation='xla')

    monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
    with compiling_for('gpu'):
        yield calls


def test_the_fused_kernel_serves_heads_that_fit(gpu):
    query, key, value = (
        jnp.asarray(random(B, n, H, 16, seed=i), jnp.bfloat16) for i, n in enumerate((T, S, S))
    )
    expected = attend(query, key, value, implementation='plain')
    fused = attend(query, key, value, implementation='fused')
    assert gpu == ['cudnn']
    np.testing.assert_allclose(*(x.astype(np.float32) for x in (fused, expected)), atol=0.02)


def test_a_program_for_any_platform_holds_the_fused_kernel_for_gpus_alone(gpu):
    query, key, value = (jnp.asarray(random(B, n, H, 16), jnp.bfloat16) for n in (T, S, S))

    def loss(query):
        return attend(query, key, value).astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(loss))(query)  # of the other way, on this CPU
    assert set(gpu) == {'cudnn'}
    plain = jax.grad(
        lambda q: attend(q, key, value, implementation='plain').astype(jnp.float32).sum()
    )
    np.testing.assert_allclose(*(g.astype(np.float32) for g in (gradient, plain(query))), atol=0.02)


def test_the_fused_kernel_prepares_values_that_are_the_keys(gpu, monkeypatch):
    def take_the_gpus_branch(*arrays, cuda, default):
        return jax.jit(cuda)(*arrays)

    monkeypatch.setattr(jax.lax, 'platform_dependent', take_the_gpus_branch)
    query, key = (jnp.asarray(3 + random(B, n, 1, 16), jnp.bfloat16) for n in (T, S))
    how = dict(prepare_query=normalise, prepare_key=normalise)
    fused = attend(query, key, None, **how)
    assert gpu == ['cudnn']
    expected = attend(query, key, None, **how, implementation='plain')
    np.testing.assert_allclose(*(x.astype(np.float32) for x in (fused, expected)), atol=0.03)


@pytest.mark.parametrize('implementation', ['plain', 'chunked'])
def test_the_keys_are_the_values_where_none_or_the_same_array_is_given(implementation):
    query, key = random(B, T, H, F), random(B, S, H, F)
    how = dict(prepare_key=lambda x: x**3, implementation=implementation)
    expected = attend(query, key**3, key**3, implementation='plain')
    for value in (None, key):
        np.testing.assert_allclose(attend(query, key, value, **how), expected, atol=1e-5)
    copied = attend(query, key, jnp.array(key), **how)  # another array is not prepared
    assert not np.allclose(copied, expected, atol=1e-3)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(dtype='float32'), 'bfloat16 or float16, not float32'),
        (dict(channels=12), 'a multiple of 8 up to 128 a head, not 12'),
        (dict(channels=264), 'not 264'),
        (dict(value_channels=8), 'not 16 and 8'),
        (dict(mask=np.ones((1, 1, S), bool)), 'no mask'),
    ],
)
def test_what_the_fused_kernel_does_not_take_is_said_and_goes_elsewhere(gpu, changes, message):
    case = {**dict(dtype='bfloat16', channels=16, value_channels=None, mask=None), **changes}
    query, key = (jnp.ones((B, n, H, case['channels']), case['dtype']) for n in (T, S))
    value = jnp.ones((B, S, H, case['value_channels'] or case['channels']), case['dtype'])
    with pytest.raises(ValueError, match=f"'fused' takes .*{message}"):
        attend(query, key, value, case['mask'], implementation='fused')
    attend(query, key, value, case['mask'])
    assert gpu == []


@pytest.mark.parametrize(
    'shapes',
    [
        ((B, T, F), (B, S, F), (B, S, F), None),
        ((B, T, H, F), (B, S, H, F + 1), (B, S, H, V), None),
        ((B, T, H, F), (B, S, H, F), (B, S + 1, H, V), None),
        ((B, T, H, F), (B, S, H, F + 1), None, None),
        ((B, T, H, F), (B, S, H, F), (B, S, H, V), (B, S)),
        ((B, T, H, F), (B, S, H, F), (B, S, H, V), (B, T, S + 1)),
    ],
)
def test_shapes_that_do_not_fit_are_shown(shapes):
    arrays = [None if s is None else jnp.zeros(s) for s in shapes]
    with pytest.raises(ValueError, match=r'\(2, '):
        attend(*arrays)


@pytest.mark.parametrize(
    'how, message',
    [
        (dict(implementation='flash'), "not 'flash'"),
        (dict(chunk_size=0), 'at least 1, not 0'),
        (dict(key_bias=jnp.zeros((B, H, S))), r'\[B, S, H\] = \(2, 7, 3\); got \(2, 3, 7\)'),
    ],
)
def test_arguments_that_mean_nothing_are_named(how, message):
    with pytest.raises(ValueError, match=message):
        attend(jnp.zeros((B, T, H, F)), jnp.zeros((B, S, H, F)), jnp.zeros((B, S, H, V)), **how)


def test_the_softmax_is_float32_in_bfloat16():
    query, key = (jnp.asarray(random(B, T, H, F, seed=i)).astype(jnp.bfloat16) for i in (0, 1))
    weights = attention_weights(query, key)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize('implementation', ['auto', 'plain', 'chunked'])
@pytest.mark.parametrize('mask_shape', [None, (B, T, 0), (B, T, 1)])
@pytest.mark.parametrize('options', [{}, dict(chunk_size=3, prepare_key=normalise)])
def test_without_keys_outputs_and_gradients_are_zeros(implementation, mask_shape, options):
    query, key, value = random(B, T, H, F), random(B, 0, H, F), random(B, 0, H, V)
    mask = None if mask_shape is None else jnp.ones(mask_shape, bool)

    def total(*qkv):
        output = attend(*qkv, mask, implementation=implementation, **options)
        return output.sum(), output

    gradients, output = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)
    np.testing.assert_array_equal(output, np.zeros((B, T, H, V)))
    np.testing.assert_array_equal(gradients[0], np.zeros_like(query))
    assert [g.shape for g in gradients[1:]] == [key.shape, value.shape]


@pytest.mark.parametrize('value', [True, False])
def test_the_fused_kernel_is_not_asked_about_no_keys(monkeypatch, value):
    def fused(*args, **kwargs):
        raise AssertionError('the kernel was called')

    monkeypatch.setattr(jax.nn, 'dot_product_attention', fused)
    query, key = jnp.ones((B, T, H, 16), 'bfloat16'), jnp.ones((B, 0, H, 16), 'bfloat16')
    output = attend(query, key, key + 1 if value else None, implementation='fused')
    assert output.dtype == jnp.bfloat16
    np.testing.assert_array_equal(output, np.zeros(query.shape))


@pytest.mark.parametrize('implementation', ['auto', 'plain', 'chunked'])
@pytest.mark.parametrize('batch, rows, keys', [(0, T, S), (B, 0, S), (0, 0, 0)])
def test_nothing_that_asks_gives_nothing(implementation, batch, rows, keys):
    query, key, value = (
        np.ones(x, 'f') for x in ((batch, rows, H, F), (batch, keys, H, F), (batch, keys, H, V))
    )

    def total(*qkv):
        output = attend(*qkv, implementation=implementation)
        return output.sum(), output.shape

    gradients, shape = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)
    assert shape == (batch, rows, H, V)
    for gradient, x in zip(gradients, (query, key, value), strict=True):
        np.testing.assert_array_equal(gradient, np.zeros_like(x))


@pytest.mark.parametrize('implementation', dot_product_attention.IMPLEMENTATIONS)
@pytest.mark.parametrize('integer', ['query', 'key', 'value'])
def test_integers_are_refused(implementation, integer):
    arrays = {name: np.ones((B, S, H, F), np.float32) for name in ('query', 'key', 'value')}
    arrays[integer] = arrays[integer].astype(np.int32)
    with pytest.raises(Refused, match=f'attend takes {integer} of a floating-point .* not int32'):
        attend(**arrays, implementation=implementation)


@pytest.mark.parametrize('implementation', ['auto', 'plain', 'chunked'])
@pytest.mark.parametrize('rows, keys', [(3, 9), (9, 3)])
@pytest.mark.parametrize('values, prepare', [(True, None), (False, normalise)])
def test_what_no_query_attends_to_may_hold_anything(implementation, rows, keys, values, prepare):
    mask = np.ones((2, rows, keys), bool)
    mask[..., 1] = mask[1, :, 2] = mask[0, 0] = False
    unused = ~mask.any(1)
    arrays = [random(2, rows, 2, 4), random(2, keys, 2, 4, seed=1), random(2, keys, 2, seed=2)]
    arrays += [random(2, keys, 2, 5, seed=3)] * values
    spoilt = [np.copy(x) for x in arrays]
    for x, anything in zip(spoilt[1:], (np.nan, np.inf, np.nan), strict=False):
        x[unused] = anything

    def run(query, key, key_bias, value=None):
        how = dict(key_bias=key_bias, prepare_key=prepare, chunk_size=2)
        return attend(query, key, value, mask, **how, implementation=implementation)

    weights = [
        attention_weights(*x[:2], mask, key_bias=x[2], prepare_key=prepare)
        for x in (arrays, spoilt)
    ]
    np.testing.assert_array_equal(*weights)
    (expected, pull), (output, pull_spoilt) = (jax.vjp(run, *x) for x in (arrays, spoilt))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_array_equal(output, expected)
    jax.tree.map(np.testing.assert_array_equal, pull_spoilt(output), pull(output))


def test_forward_mode_needs_the_plain_definition():
    query, key = random(1, 3, 1, 4), random(1, 5, 1, 4, seed=1)

    def loss(query, implementation='plain'):
        return (attend(query, key, None, implementation=implementation) ** 3).sum()

    gradient = jax.grad(loss)(query)
    np.testing.assert_allclose(jax.jacfwd(loss)(query), gradient, rtol=1e-4, atol=1e-5)
    for implementation in ('auto', 'chunked'):
        one = functools.partial(loss, implementation=implementation)
        for differentiate in (
            lambda one: jax.jvp(one, (query,), (query,)),
            lambda one: jax.grad(lambda q: jax.jvp(one, (q,), (query,))[1])(query),
        ):
            with pytest.raises(Refused, match="Forward-mode .* needs implementation='plain'"):
                differentiate(one)


def test_forward_mode_over_reverse_mode_runs():
    query, key = random(1, 3, 1, 2), random(1, 5, 1, 2, seed=1)

    def loss(query, implementation):
        return (attend(query, key, None, implementation=implementation, chunk_size=2) ** 3).sum()

    expected = jax.hessian(loss)(query, 'plain')
    for implementation in ('auto', 'chunked'):
        result = jax.hessian(loss)(query, implementation)
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


def test_an_error_of_a_preparation_stays_what_it_is():
    def prepare(x):
        raise TypeError('mine')

    with pytest.raises(TypeError, match='mine'):
        attend(*[random(1, 3, 1, 4)] * 2, None, prepare_key=prepare)
