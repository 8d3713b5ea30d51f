import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.describe import count_flops
from perceiver_jax import chunked_attention
from perceiver_jax.dot_product_attention import attend, attention_weights
from perceiver_jax.layers import normalise

B, T, S, H, F, V = 2, 5, 7, 3, 11, 13
IMPLEMENTATIONS = ('plain', 'chunked')


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


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


def random_case(seed):
    """Arrays of random sizes with a random mask, bias, scale, preparation and chunk size."""
    rng = np.random.default_rng(seed)
    batch, heads = rng.integers(1, 4, size=2)
    rows, keys, channels, value_channels = rng.integers(1, 40, size=4)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    query, key = array(batch, rows, heads, channels + 1), array(batch, keys, heads, channels + 1)
    value = None if seed % 3 == 0 else array(batch, keys, heads, value_channels)
    mask = None
    if seed % 4:
        sides = [n if rng.random() < 0.7 else 1 for n in (batch, rows, keys)]
        mask = jnp.asarray(rng.random(sides) < rng.choice([0.1, 0.5, 0.9]))
    how = dict(
        scale=float(rng.uniform(0.1, 1)),
        key_bias=array(batch, keys, heads) if seed % 2 else None,
        prepare_query=normalise if rng.random() < 0.5 else None,
        prepare_key=normalise if rng.random() < 0.5 else None,
    )
    return query, key, value, mask, how, int(rng.integers(1, 45))


@pytest.mark.parametrize('seed', range(16))
def test_chunks_give_the_outputs_and_gradients_of_the_plain_definition(seed):
    query, key, value, mask, how, chunk_size = random_case(seed)
    arrays = {'query': query, 'key': key, 'value': value, 'key_bias': how.pop('key_bias')}

    def run(arrays, **implementation):
        value = arrays['key'] if arrays['value'] is None else arrays['value']
        return attend(
            arrays['query'],
            arrays['key'],
            value,
            mask,
            key_bias=arrays['key_bias'],
            **how,
            **implementation,
        )

    @functools.partial(jax.jit, static_argnums=0)
    def output_and_gradients(implementation, arrays):
        output, pull = jax.vjp(functools.partial(run, **dict(implementation)), arrays)
        return output, pull(random(*output.shape, seed=seed))

    ways = (
        [('implementation', 'plain')],
        [('implementation', 'chunked'), ('chunk_size', chunk_size)],
    )
    expected, result = (output_and_gradients(tuple(way), arrays) for way in ways)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), result, expected
    )


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


@pytest.mark.parametrize('rows, keys', [(64, 3000), (3000, 64)])
def test_the_whole_matrix_never_exists(rows, keys):
    query, key = random(1, rows, 1, 8), random(1, keys, 1, 8)

    def largest(implementation):
        def loss(query, key):
            how = dict(implementation=implementation, chunk_size=256)
            return attend(query, key, key, **how).sum()

        jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(query, key).jaxpr
        return max(math.prod(shape) for shape in shapes_in(jaxpr))

    assert largest('plain') == rows * keys
    assert largest('chunked') == max(64 * 256, 3000 * 8)


def test_chunks_are_of_the_longer_side_and_fill_a_tile():
    chunks, tile = chunked_attention._chunks, chunked_attention.TILE_ELEMENTS['cpu']
    assert chunks(1, 1, 512, 50_176, None) == ('keys', tile // 512)
    assert chunks(4, 8, 50_176, 128, None) == ('rows', tile // (4 * 8 * 128))
    assert chunks(64, 16, 2048, 2048, None) == ('rows', chunked_attention.SMALLEST_CHUNK)
    assert chunks(1, 1, 512, 512, None) == ('rows', 512)
    assert chunks(1, 1, 512, 3000, None) == ('keys', 3000)  # a loop of two is not worth it
    assert chunks(1, 1, 512, 50_176, 100) == ('keys', 100)


def test_the_work_is_that_of_the_definition():
    query, key, value = random(1, 20, 1, 8), random(1, 300, 1, 8), random(1, 300, 1, 16)
    for how in (dict(implementation='plain'), dict(implementation='chunked', chunk_size=64)):
        flops = count_flops(functools.partial(attend, **how), query, key, value)
        assert flops == 2 * 20 * 300 * (8 + 16)


def test_in_bfloat16_sums_are_float32():
    arrays = [jnp.asarray(random(1, n, 1, 16, seed=i)) for i, n in enumerate((8, 4096, 4096))]
    narrow = [x.astype(jnp.bfloat16) for x in arrays]
    expected = attend(*[x.astype(jnp.float32) for x in narrow], implementation='plain')
    output = attend(*narrow, implementation='chunked', chunk_size=128)
    assert output.dtype == jnp.bfloat16
    difference = output.astype(jnp.float32) - expected
    assert np.linalg.norm(difference) / np.linalg.norm(expected) < 4e-3  # one rounding, not 32
    gradients = jax.grad(lambda *x: attend(*x, chunk_size=128).astype(jnp.float32).sum(), (0, 1, 2))
    assert {g.dtype for g in gradients(*narrow)} == {jnp.dtype('bfloat16')}


@pytest.fixture
def gpu(monkeypatch):
    """As if there were a GPU; cuDNN's kernel is stood in for by XLA's version of it."""
    calls, original = [], jax.nn.dot_product_attention

    def stand_in(query, key, value, *, scale, implementation):
        calls.append(implementation)
        return original(query, key, value, scale=scale, implementation='xla')

    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
    return calls


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
    fused = attend(query, key, key, **how)
    assert gpu == ['cudnn']
    expected = attend(query, key, key, **how, implementation='plain')
    np.testing.assert_allclose(*(x.astype(np.float32) for x in (fused, expected)), atol=0.03)


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


def test_second_derivatives():
    query, key, value = (jnp.asarray(random(1, n, 1, 3, seed=i)) for i, n in enumerate((2, 5, 5)))

    def norm_of_gradient(query, implementation):
        def loss(query):
            how = dict(implementation=implementation, chunk_size=2)
            return (attend(query, key, value, **how) ** 3).sum()

        return (jax.grad(loss)(query) ** 2).sum()

    both = [jax.grad(norm_of_gradient)(query, i) for i in IMPLEMENTATIONS]
    np.testing.assert_allclose(*both, rtol=1e-3, atol=1e-5)


def test_under_vmap():
    arrays = [random(4, 1, n, 1, 3, seed=i) for i, n in enumerate((2, 5, 5))]
    chunked = functools.partial(attend, implementation='chunked', chunk_size=2)
    outputs = jax.vmap(chunked)(*arrays)
    for one, output in zip(
        itertools.starmap(attend, zip(*arrays, strict=True)), outputs, strict=True
    ):
        np.testing.assert_allclose(output, one, rtol=1e-5, atol=1e-6)
