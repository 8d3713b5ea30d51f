import functools
import time

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.chunks import compiling_for
from perceiver_jax.encoder import Block, Encoder, repeats, schedule
from perceiver_jax.errors import Refused
from perceiver_jax.recording import record_attention

pytestmark = pytest.mark.gpu
B, M, C, N, D = 2, 11, 6, 5, 8
SMALL = dict(
    num_latents=N,
    latent_channels=D,
    num_blocks=2,
    num_self_attends_per_block=1,
    self_attend=dict(num_heads=2),
)


def inputs(seed=0):
    return np.random.default_rng(seed).normal(size=(B, M, C)).astype(np.float32)


def build(**fields):
    def forward(x, mask=None):
        return Encoder(**{**SMALL, **fields}, name='encoder')(x, mask, is_training=False)

    return hk.transform(forward)


def test_the_icml_schedule():
    steps = schedule(8, 8)
    assert steps[:4] == [('cross_attend', 1), ('block', 1), ('cross_attend', 2), ('block', 1)]
    assert steps[2:] == [('cross_attend', 2), ('block', 1)] * 7


def test_the_perceiver_io_schedule():
    assert schedule(1, 8) == [('cross_attend', 1)] + [('block', 1)] * 8


def test_cross_attends_at_the_start():
    steps = schedule(3, 2, cross_attend_placement='start')
    assert steps == [('cross_attend', 1), *[('cross_attend', 2)] * 2, *[('block', 1)] * 2]


def test_fewer_cross_attends_than_blocks_are_spread_evenly():
    blocks_before = [
        [kind for kind, _ in steps[: steps.index(cross)]].count('block')
        for steps in [schedule(4, 8, share_cross_attends=False)]
        for cross in [('cross_attend', i) for i in (1, 2, 3, 4)]
    ]
    assert blocks_before == [0, 2, 4, 6]


def test_nothing_shared():
    steps = schedule(2, 2, share_cross_attends=False, share_blocks=False)
    assert steps == [('cross_attend', 1), ('block', 1), ('cross_attend', 2), ('block', 2)]


def test_what_repeats_is_found():
    c1, c2, b = ('cross_attend', 1), ('cross_attend', 2), ('block', 1)
    assert repeats(schedule(8, 8)) == [([c1], 1), ([b, c2], 7), ([b], 1)]
    assert repeats(schedule(1, 8)) == [([c1], 1), ([b], 8)]
    assert repeats(schedule(4, 8)) == [([c1], 1), ([b, b, c2], 3), ([b], 2)]
    start = schedule(3, 2, cross_attend_placement='start')
    assert repeats(start) == [([c1], 1), ([c2], 2), ([b], 2)]
    apart = schedule(2, 2, share_cross_attends=False, share_blocks=False)
    assert repeats(apart) == [([step], 1) for step in apart]


@pytest.mark.parametrize('num_cross_attends, num_blocks', [(8, 8), (2, 6), (3, 7), (1, 1)])
def test_runs_are_the_schedule(num_cross_attends, num_blocks):
    steps = schedule(num_cross_attends, num_blocks)
    assert [step for run, times in repeats(steps) for step in run * times] == steps


@pytest.mark.parametrize(
    'fields',
    [
        dict(scan=False),
        dict(implementation='plain'),
        dict(remat_blocks=True),
        dict(remat_cross_attends=True),
        dict(scan=False, remat_blocks=True, remat_cross_attends=True),
    ],
)
def test_how_it_is_computed_changes_nothing(fields):
    assert_same(compute(), compute(**fields))


def test_a_block_that_repeats_within_a_loop_gives_what_is_written_out():
    twice = dict(num_cross_attends=2, num_blocks=4)
    assert_same(compute(**twice), compute(**twice, scan=False))


def assert_same(one, other):
    """Compares what `compute` returned."""
    (params, latents, gradients), (same, expected, others) = one, other
    jax.tree.map(np.testing.assert_array_equal, params, same)
    np.testing.assert_allclose(latents, expected, rtol=1e-4, atol=1e-5)
    scale = max(np.abs(g).max() for g in jax.tree.leaves(others))
    assert_close = functools.partial(np.testing.assert_allclose, atol=1e-4 * scale)
    jax.tree.map(assert_close, gradients, others)


@functools.cache
def compute(**fields):
    """Parameters, latents, and the gradients of a loss, of an encoder that repeats itself."""
    mask = jnp.asarray(np.arange(M) < np.array([[7], [M]]))
    sizes = {**SMALL, 'num_cross_attends': 3, 'num_blocks': 3}
    model = hk.transform(lambda x: Encoder(**{**sizes, **fields})(x, mask, is_training=True))
    params = jax.jit(model.init)(jax.random.key(0), inputs())

    def loss(params, x):
        latents = model.apply(params, jax.random.key(1), x)
        return (latents**3).sum(), latents

    gradients, latents = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, inputs())
    return params, latents, gradients


def test_on_gpus_what_repeats_is_written_out():
    def loops(platform, **fields):
        model = hk.transform(lambda x: Encoder(**{**SMALL, **fields})(x, is_training=True))
        params = jax.eval_shape(model.init, jax.random.key(0), inputs())
        with compiling_for(platform):
            return str(jax.make_jaxpr(model.apply)(params, None, inputs())).count('scan[')

    repeats_itself = dict(num_cross_attends=3, num_blocks=3)
    assert loops('gpu', **repeats_itself) == 0
    assert loops('gpu', scan=True, **repeats_itself) == 1
    assert loops('tpu', **repeats_itself) == 1
    assert loops('tpu', scan=False, **repeats_itself) == 0


def test_dropout_drops_something_else_each_time_it_repeats():
    def forward(x):
        encoder = Encoder(
            **{**SMALL, 'num_blocks': 2, 'self_attend': dict(num_heads=2, dropout_rate=0.5)},
            cross_attend=dict(dropout_rate=0.5),
        )
        return encoder(x, is_training=True)

    model = hk.transform(forward)
    params = jax.jit(model.init)(jax.random.key(0), inputs())
    # All zero but the biases in the block: each of its two layers adds 0 or 2, two times.
    params = {
        module: {name: jnp.full_like(x, name == 'b' and 'block' in module) for name, x in v.items()}
        for module, v in params.items()
    }
    latents = jax.jit(model.apply)(params, jax.random.key(1), inputs())
    assert set(np.unique(latents)) == {0, 2, 4, 6, 8}  # 0, 4 and 8 alone, if it drew but once


def test_attention_is_recorded_though_it_repeats():
    def forward(x):
        with record_attention('cross_attend_2') as weights:
            Encoder(**{**SMALL, 'num_blocks': 4}, num_cross_attends=4)(x, is_training=False)
        return weights

    model = hk.transform(forward)
    weights = model.apply(model.init(jax.random.key(0), inputs()), None, inputs())
    assert [w.shape for w in weights] == 3 * [(B, 1, N, M)]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(cross_attend_placement='end'), "'end'"),
        (dict(num_cross_attends=9), '9 cross-attends.*8 blocks'),
        (dict(num_cross_attends=0), 'not 0 and 8'),
        (dict(num_blocks=10**12), 'there are 1,000,000,000,002 cross-attends and blocks'),
    ],
)
def test_schedules_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule(**{'num_cross_attends': 2, 'num_blocks': 8, **arguments})


@pytest.mark.parametrize('fields', [{}, dict(share_blocks=False, share_cross_attends=False)])
def test_the_longest_schedule_is_soon_grouped(fields):
    start = time.perf_counter()
    steps = schedule(1000, 1000, **fields)
    assert sum(len(run) * times for run, times in repeats(steps)) == 2000
    assert time.perf_counter() - start < 5


def test_too_many_layers_are_refused():
    model = build(num_blocks=1000, num_self_attends_per_block=1000)
    with pytest.raises(Refused, match='there are 1,000,000 self-attends, expected at most 2,000'):
        jax.eval_shape(model.init, jax.random.key(0), inputs())


def test_sharing_is_visible_in_the_parameters():
    shared = build(num_cross_attends=2).init(jax.random.key(0), inputs())
    apart = build(num_cross_attends=2, share_blocks=False).init(jax.random.key(0), inputs())

    def owners(params):
        return {module.split('/')[1] for module in params if '/' in module}

    assert owners(shared) == {'cross_attend_1', 'cross_attend_2', 'block_1'}
    assert owners(apart) == {'cross_attend_1', 'cross_attend_2', 'block_1', 'block_2'}
    assert shared['encoder']['latents'].shape == (N, D)


def test_latents_start_small_and_truncated():
    model = build(num_latents=256, latent_channels=64)
    latents = np.asarray(model.init(jax.random.key(0), inputs())['encoder']['latents'])
    assert np.abs(latents).max() <= 0.04  # two standard deviations
    assert abs(latents.std() - 0.0176) < 2e-4


def test_the_order_of_the_inputs_does_not_matter():
    model = build(num_cross_attends=2)
    params = model.init(jax.random.key(0), inputs())
    latents = model.apply(params, None, inputs())
    assert latents.shape == (B, N, D)
    shuffled = inputs()[:, np.random.default_rng(1).permutation(M)]
    np.testing.assert_allclose(model.apply(params, None, shuffled), latents, atol=1e-5)
    assert np.abs(model.apply(params, None, inputs(seed=1)) - latents).max() > 1e-3


def test_masked_inputs_are_not_there():
    model = build(num_cross_attends=2)
    params = model.init(jax.random.key(0), inputs())
    mask = np.arange(M) < np.array([[7], [M]])
    latents = model.apply(params, None, inputs(), jnp.asarray(mask))
    np.testing.assert_allclose(latents[:1], model.apply(params, None, inputs()[:1, :7]), atol=1e-5)
    np.testing.assert_allclose(latents[1:], model.apply(params, None, inputs()[1:]), atol=1e-5)


def test_shapes_that_do_not_fit_are_shown():
    model = build()
    with pytest.raises(ValueError, match=r'\(11, 6\)'):
        model.init(jax.random.key(0), inputs()[0])
    with pytest.raises(ValueError, match=r'\(2, 11, 6\) and \(2, 5\)'):
        model.init(jax.random.key(0), inputs(), jnp.ones((B, 5), bool))


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(self_attend=dict(num_heads=3)), 'self_attend.num_heads is 3 and must divide qk_chan'),
        (dict(self_attend=dict(num_heads=0)), 'self_attend.num_heads must be at least 1, not 0'),
        (
            dict(self_attend=dict(num_heads=3, qk_channels=6, v_channels=4)),
            'self_attend.num_heads is 3 and must divide v_channels, which are 4',
        ),
        (
            dict(cross_attend=dict(num_heads=5)),
            'cross_attend.num_heads is 5 and must divide qk_channels, which are 6',
        ),
    ],
)
def test_heads_that_do_not_divide_are_named_as_the_encoders_fields(fields, message):
    with pytest.raises(Refused, match=f'encoder.{message}'):
        jax.eval_shape(build(**fields).init, jax.random.key(0), inputs())


@pytest.mark.parametrize(
    'fields, message',
    [
        (
            dict(cross_attend=dict(num_head=2)),
            "CrossAttend has no field 'num_head' that can be set here; known: num_heads, qk_channe",
        ),
        (
            dict(self_attend=dict(use_query_residual=False)),
            "SelfAttend has no field 'use_query_residual'",
        ),
        (dict(cross_attend=dict(num_head=2)), 'Did you mean num_heads'),
        (dict(cross_attend=dict(implementation='plain')), "no field 'implementation'"),
        (dict(self_attend=dict(name='layer')), "no field 'name'"),
    ],
)
def test_unknown_fields_of_attention_are_named(fields, message):
    with pytest.raises(Refused, match=message):
        build(**fields).init(jax.random.key(0), inputs())
    if 'self_attend' in fields:
        with pytest.raises(Refused, match=message):
            hk.transform(lambda: Block(1, **fields)).init(None)


@pytest.mark.parametrize(
    'given, message',
    [
        ((inputs().tolist(),), 'Encoder takes inputs as an array, not as list'),
        ((inputs(), [[True] * M] * B), 'Encoder takes input_mask as an array, not as list'),
    ],
)
def test_lists_are_refused(given, message):
    with pytest.raises(Refused, match=message):
        hk.transform(lambda: Encoder()(*given, is_training=False)).init(None)


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'int32', 'bool'])
def test_integer_inputs_are_refused(dtype):
    """Latents of 0.02, cast to their dtype, would be zeros."""
    model = build()
    params = model.init(jax.random.key(0), inputs())
    with pytest.raises(Refused, match=f'Encoder takes inputs of a floating-point .* not {dtype}'):
        model.apply(params, None, inputs().astype(dtype))
    with pytest.raises(Refused, match='Block takes latents'):
        hk.transform(lambda x: Block(1)(x, is_training=False)).init(
            jax.random.key(0), np.ones((2, 3, 8), dtype)
        )


@pytest.mark.parametrize('implementation', ['auto', 'plain', 'chunked'])
@pytest.mark.parametrize('fields', [{}, dict(num_cross_attends=2), dict(remat_blocks=True)])
def test_an_empty_batch_gives_empty_latents(implementation, fields):
    model = build(implementation=implementation, **fields)
    params = model.init(jax.random.key(0), inputs())
    assert model.apply(params, None, inputs()[:0]).shape == (0, N, D)
    gradients = jax.grad(lambda p: model.apply(p, None, inputs()[:0]).sum())(params)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize('implementation', ['auto', 'plain', 'chunked'])
def test_no_inputs_are_as_if_all_were_masked(implementation):
    model = build(implementation=implementation)
    params = model.init(jax.random.key(0), inputs())
    expected = model.apply(params, None, inputs(), np.zeros((B, M), bool))
    np.testing.assert_allclose(
        model.apply(params, None, inputs()[:, :0]), expected, rtol=1e-5, atol=1e-5
    )
