"""The kernel against the definition, interpreted; and compiled for TPUs that are not there."""

import functools
import warnings

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from perceiver_jax import dot_product_attention
from perceiver_jax.attention import CrossAttend
from perceiver_jax.chunks import compiling_for
from perceiver_jax.dot_product_attention import attend
from perceiver_jax.encoder import Encoder
from perceiver_jax.errors import Refused
from perceiver_jax.grids import fourier_grid
from perceiver_jax.layers import normalise
from perceiver_jax.splash_attention import attend_by_splash, block_length
from tests.toys.modules import random


@pytest.fixture
def interpreted(monkeypatch):
    """As if there were a TPU, with the kernel in the interpreter."""
    by_interpreter = functools.partial(attend_by_splash, interpret=True)
    monkeypatch.setattr(dot_product_attention, 'attend_by_splash', by_interpreter)
    with compiling_for('tpu'):
        yield


def operands(batch, rows, keys, heads, channels, value_channels, *, bias=False):
    shapes = [(batch, rows, heads, channels), (batch, keys, heads, channels)]
    arrays = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    value = value_channels and random(batch, keys, heads, value_channels, seed=2)
    return (*arrays, value, 3 * random(batch, keys, heads, seed=3) if bias else None)


def output_and_gradients(implementation, operands, mask=None, **how):
    def run(query, key, value, key_bias):
        how_all = dict(key_bias=key_bias, implementation=implementation, **how)
        return attend(query, key, value, mask, **how_all)

    @jax.jit
    def both(*operands):
        output, pull = jax.vjp(run, *operands)
        return output, pull(jnp.cos(output))

    return both(*operands)


def assert_close(actual, expected, tolerance=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * (1 + abs(y).max())),
        actual,
        expected,
    )


@pytest.mark.parametrize(
    'sizes, mask, how',
    [
        ((2, 5, 7, 3, 11, 13), None, dict(scale=0.7)),
        ((2, 128, 256, 1, 11, None), None, dict(prepare_key=normalise)),
        ((2, 130, 150, 2, 11, 13), (2, 1, 150), {}),
        ((2, 130, 150, 1, 11, None), (1, 1, 150), dict(bias=True, prepare_query=normalise)),
        ((2, 600, 20, 1, 11, 5), (2, 600, 1), dict(bias=True)),
    ],
)
def test_outputs_and_gradients_are_those_of_the_definition(interpreted, sizes, mask, how):
    how = dict(how)
    arrays = operands(*sizes, bias=how.pop('bias', False))
    if mask is not None:
        mask = np.random.default_rng(4).random(mask) < 0.6
        mask[0, :, 0] = False
    actual, expected = (output_and_gradients(x, arrays, mask, **how) for x in ('splash', 'plain'))
    assert_close(actual, expected)


def test_a_query_that_may_look_at_nothing_gives_zeros_whatever_there_is(interpreted):
    arrays = operands(2, 5, 7, 1, 4, 3, bias=True)
    mask = np.ones((2, 1, 7), bool)
    mask[0], mask[1, :, 2] = False, False
    spoilt = [np.copy(x) for x in arrays]
    for x, anything in zip(spoilt[1:], (np.nan, np.inf, np.nan), strict=True):
        x[~mask[:, 0]] = anything
    output, gradients = output_and_gradients('splash', spoilt, mask)
    np.testing.assert_array_equal(output[0], 0)
    assert_close((output, gradients), output_and_gradients('plain', arrays, mask))


def test_a_bias_keeps_its_bits_in_bfloat16(interpreted):
    query, key, value, bias = operands(1, 3, 200, 1, 8, 8, bias=True)
    bias = 300 + bias  # bfloat16 knows 300 and 302
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
    (output, gradients), (expected, expected_gradients) = (
        output_and_gradients(x, (*arrays, bias), scale=0.25) for x in ('splash', 'plain')
    )
    assert output.dtype == jnp.bfloat16 and gradients[3].dtype == jnp.float32
    as_float32 = functools.partial(jax.tree.map, lambda x: x.astype(np.float32))
    assert_close(as_float32(output), as_float32(expected), 0.01)
    assert_close(as_float32(gradients), as_float32(expected_gradients), 0.02)


def test_blocks_are_as_long_as_they_may_and_pad_as_little_as_they_can():
    assert [block_length(n, 522) for n in (1, 512, 513, 784, 50_176, 182_528)] == [
        128,
        512,
        128,
        128,
        512,
        256,
    ]
    assert [block_length(512, n) for n in (1024, 1025, 2048, 4096)] == [512, 256, 256, 128]


def test_what_is_prepared_and_padded_is_not_kept(interpreted):
    arrays = operands(2, 5, 150, 1, 6, None)[:2]

    def run(query, key):
        return attend(query, key, None, prepare_key=normalise, implementation='splash')

    kept = jax.tree.leaves(jax.eval_shape(lambda *x: jax.vjp(run, *x)[1], *arrays))
    shapes = sorted(x.shape for x in kept if x.dtype == jnp.float32)
    # Queries, keys, what comes out and the logarithm of the sum of each of 128 rows.
    assert shapes == [(2, 1, 128), (2, 1, 128, 6), (2, 5, 1, 6), (2, 150, 1, 6)]


def test_forward_mode_needs_the_plain_definition(interpreted):
    query = random(1, 3, 1, 4)

    def run(query):
        return attend(query, query, None, implementation='splash')

    with pytest.raises(Refused, match="needs implementation='plain'"):
        jax.jvp(run, (query,), (query,))


REASONS = [
    (dict(platform='gpu'), 'a TPU, not a GPU'),
    (dict(kind='TPU v3', dtype='bfloat16'), 'float32 on a TPU v3, not bfloat16'),
    (dict(dtype='float16'), '.* all of bfloat16 or all of float32, not float16, float16, float16'),
    (dict(channels=1025), 'up to 1,024 channels a head in float32, not 1,025'),
    (dict(channels=1022, bias=True), 'up to 1,024 .* not 1,025'),
    (dict(channels=2049, dtype='bfloat16'), 'up to 2,048 channels a head in bfloat16, not 2,049'),
    (dict(mask=True), r'a mask of keys or one of queries, not one of both, \(2, 5, 7\)'),
]


@pytest.mark.parametrize('case, message', REASONS)
def test_what_the_kernel_does_not_take_is_said(case, message):
    case = dict(platform='tpu', kind=None, dtype='float32', channels=4, bias=False) | case
    query, key = (jnp.ones((2, n, 1, case['channels']), case['dtype']) for n in (5, 7))
    bias = jnp.ones((2, 7, 1)) if case['bias'] else None
    mask = jnp.ones((2, 5, 7), bool) if 'mask' in case else None
    with compiling_for(case['platform'], case['kind']):
        with pytest.raises(Refused, match=f"'splash' takes {message}"):
            attend(query, key, None, mask, key_bias=bias, implementation='splash')


def test_arrays_that_vary_along_an_axis_and_sizes_that_are_no_numbers_are_refused(interpreted):
    divided, mesh = PartitionSpec('data'), jax.make_mesh((2,), ('data',), (AxisType.Auto,))
    attend_to_itself = lambda x: attend(x, x, None, implementation='splash')  # noqa: E731
    mapped = jax.shard_map(attend_to_itself, mesh=mesh, in_specs=divided, out_specs=divided)
    with pytest.raises(Refused, match='check_vma=False'):
        jax.eval_shape(mapped, jnp.ones((2, 3, 1, 4)))
    batch = jax.ShapeDtypeStruct((*jax.export.symbolic_shape('batch'), 3, 1, 4), jnp.float32)
    with pytest.raises(Refused, match='sizes that are numbers, not .*batch'):
        jax.eval_shape(attend_to_itself, batch)


def read_a_grid(images, implementation):
    grid, queries = fourier_grid(images, 2, (4, 4)), jnp.ones((2, 5, 8))
    cross_attend = CrossAttend(implementation=implementation)
    return hk.remat(cross_attend)(queries, grid, is_training=True)


def encode_and_decode(images, implementation):
    """Attends in a loop, then queries that are folded, with a bias of keys."""
    encoder = Encoder(
        num_latents=5,
        latent_channels=8,
        num_cross_attends=2,
        num_blocks=2,
        num_self_attends_per_block=1,
        self_attend=dict(num_heads=2),
        implementation=implementation,
        scan=True,
    )
    queries = jnp.tile(images.reshape(2, 15, 1), (1, 20, 1))
    latents = encoder(fourier_grid(images, 2, (4, 4)), jnp.ones((2, 15), bool), is_training=True)
    decoder = CrossAttend(qk_channels=8, v_channels=8, implementation=implementation)
    return decoder(queries, latents, is_training=True)


def value_and_gradients(net):
    """A function of parameters and images, and these."""
    model, images = hk.without_apply_rng(hk.transform(net)), random(2, 3, 5, 1)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    params = jax.tree.map(lambda p: np.sin(np.arange(p.size, dtype='f').reshape(p.shape)), params)

    def loss(params, images):
        outputs = model.apply(params, images)
        return jnp.square(outputs).sum(), outputs

    return jax.jit(jax.value_and_grad(loss, has_aux=True)), params, images


def test_a_module_has_the_same_gradients(interpreted):
    actual, expected = (
        run(*arguments)
        for run, *arguments in (
            value_and_gradients(functools.partial(read_a_grid, implementation=x))
            for x in ('splash', 'plain')
        )
    )
    assert_close(actual, expected, 1e-4)


def kernels_in(run, *arguments):
    with compiling_for('tpu'):
        program = jax.export.export(run, platforms=['tpu'])(*arguments)
    return program.mlir_module().count('@tpu_custom_call')


def test_a_model_is_lowered_for_tpus():
    net = functools.partial(encode_and_decode, implementation='splash')
    with compiling_for('tpu'):
        run, *arguments = value_and_gradients(net)
    # Forward; then the gradient of the queries, and that of keys and values. Nobody asks for those
    # of the images, the keys of the cross-attend and the queries of the decoder.
    assert kernels_in(run, *arguments) == 2 + 3 + 2


def test_what_a_model_cannot_do_by_the_kernel_is_told_once_and_goes_the_other_way():
    net = functools.partial(encode_and_decode, implementation='splash')
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('default')
        run, *arguments = value_and_gradients(net)
        jax.eval_shape(run, *arguments)
    assert [str(x.message) for x in told] == [
        "'splash' takes a TPU, not a CPU: 'auto' serves such attends"
    ]


@pytest.mark.parametrize('kind', ['explicit', 'automatic', 'shard_map', 'pmap'])
def test_each_device_attends_for_its_examples(interpreted, kind):
    query, key, mask = random(2, 3, 1, 4), random(2, 5, 1, 4, seed=1), np.ones((1, 1, 5), bool)
    mask[..., 2] = False

    def run(query, key):
        output, pull = jax.vjp(
            lambda *x: attend(*x, None, mask, implementation='splash'), query, key
        )
        return output, pull(output)

    expected = output_and_gradients('plain', (query, key, None, None), mask)[0]
    mesh = jax.make_mesh(
        (2,),
        ('data',),
        (AxisType.Explicit if kind == 'explicit' else AxisType.Auto,),
        devices=jax.devices()[:2],
    )
    divided = NamedSharding(mesh, PartitionSpec('data'))
    if kind == 'pmap':
        output, _ = jax.pmap(run)(query[:, None], key[:, None])
        return assert_close(output[:, 0], expected)
    if kind == 'shard_map':
        run = jax.shard_map(
            run, mesh=mesh, in_specs=divided.spec, out_specs=divided.spec, check_vma=False
        )
    query, key = jax.device_put((query, key), divided)
    if kind == 'automatic':
        with jax.set_mesh(mesh):
            output, gradients = jax.jit(run)(query, key)
    else:
        output, gradients = jax.jit(run)(query, key)
    assert output.sharding.is_equivalent_to(divided, 4)
    assert gradients[1].sharding.is_equivalent_to(divided, 4)
    assert_close(output, expected)


def loss_of(query, key, value, key_bias, mask):
    how = dict(key_bias=key_bias, implementation='splash')
    return attend(query, key, value, mask, **how).astype(jnp.float32).sum()


def gradient_of_an_attend(case, dtype, sharding=None):
    """A function, and the shapes that it is compiled for."""
    batch, rows, keys, heads, channels, value_channels, kind = case

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    value = value_channels and shape(batch, keys, heads, value_channels)
    bias = shape(batch, keys, heads, dtype='float32') if kind == 'bias' else None
    mask = shape(batch, 1, keys, dtype='bool') if kind == 'mask' else None
    key = shape(batch, keys, heads, channels)
    arguments = shape(batch, rows, heads, channels), key, value, bias, mask
    return jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1))), arguments


# B, T, S, H, F, V, what else there is.
ATTENDS = {
    'ImageNet, Fourier features': (2, 512, 50_176, 1, 261, None, None),
    'ImageNet, learned positions': (2, 512, 50_176, 1, 512, None, None),
    'ImageNet, convolution': (2, 512, 3136, 1, 322, None, None),
    'ImageNet, latents': (2, 512, 512, 8, 128, 128, None),
    'ImageNet, a query for classes': (2, 1, 512, 1, 1024, None, None),
    'AudioSet': (2, 512, 13_024, 1, 487, None, 'mask'),
    'ModelNet40': (2, 512, 2048, 1, 387, None, 'mask'),
    'flow': (1, 2048, 182_528, 1, 322, None, None),
    'flow, latents': (1, 2048, 2048, 16, 32, 32, None),
    'flow, decoder': (1, 182_528, 2048, 1, 322, 322, 'bias'),
    'flow, decoder of 512 channels': (1, 182_528, 2048, 1, 512, 512, None),
    'text': (2, 256, 2048, 8, 32, 160, 'mask'),
    'text, latents': (2, 256, 256, 8, 32, 160, None),
    'text, decoder': (2, 2048, 256, 8, 32, 96, None),
    'Kinetics': (1, 784, 52_097, 1, 704, None, None),
    'Kinetics, latents': (1, 784, 784, 8, 64, 64, None),
    'Kinetics, decoder': (1, 16_352, 784, 1, 1026, 1026, 'bias'),
    'widest, bfloat16': (1, 512, 1024, 1, 2048, 2048, 'mask'),
    'widest, float32': (1, 512, 1024, 1, 1024, 1024, 'mask'),
}
# A head has too many channels for float32.
BFLOAT16_ALONE = ('Kinetics, decoder', 'widest, bfloat16')


@pytest.mark.parametrize('case', ['AudioSet', 'flow, decoder'])
def test_the_kernel_is_lowered_for_tpus(case):
    gradient, arguments = gradient_of_an_attend(ATTENDS[case], 'bfloat16')
    assert kernels_in(gradient, *arguments) == 3


# Compiled for TPUs that are not there: `make test-tpu`.


@functools.cache
def topology(kind):
    from jax.experimental import topologies

    more = dict(chip_config_name='megacore') if kind.startswith('v4') else {}
    return topologies.get_topology_desc(kind, 'tpu', **more).devices[0]


@pytest.mark.tpu
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
@pytest.mark.parametrize('kind', ['v4:2x2x1', 'v5e:2x2', 'v6e:2x2'])
@pytest.mark.parametrize('case', ATTENDS)
def test_attends_of_the_papers_compile(case, kind, dtype):
    device = topology(kind)
    with compiling_for('tpu', device.device_kind):
        gradient, arguments = gradient_of_an_attend(
            ATTENDS[case], dtype, SingleDeviceSharding(device)
        )
        if case in BFLOAT16_ALONE and dtype == 'float32':
            with pytest.raises(Refused, match='up to 1,024 channels a head'):
                gradient.lower(*arguments)
        else:
            gradient.lower(*arguments).compile()


@pytest.mark.tpu
def test_v3_takes_float32_alone():
    device = topology('v3:2x2')
    case = ATTENDS['ImageNet, latents']
    with compiling_for('tpu', device.device_kind):
        gradient, arguments = gradient_of_an_attend(case, 'float32', SingleDeviceSharding(device))
        gradient.lower(*arguments).compile()
        gradient, arguments = gradient_of_an_attend(case, 'bfloat16', SingleDeviceSharding(device))
        with pytest.raises(Refused, match='float32 on a TPU v3'):
            gradient.lower(*arguments)
