"""The models that the configs name are the papers': parameters and arithmetic."""

import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from configs import flow, imagenet
from experiments import papers
from experiments.tasks import make_task
from experiments.training.describe import count_flops, describe_model, describe_table

pytestmark = pytest.mark.golden

# What results/described/ holds, of which docs/tables.md is made.
SIZES = {
    (task, variant): sizes
    for task in ('imagenet', 'audioset', 'modelnet40', 'flow')
    for variant, sizes in papers.read_sizes(papers.FOLDER / f'{task}.json').items()
}
# FLOPs of the matrix products that are computed, for some of them.
COMPUTED = {
    ('imagenet', 'perceiver'): 388_100_358_144,
    ('imagenet', 'io_fourier'): 364_209_113_088,
    ('imagenet', 'demo'): 9_294_848,
    ('flow', 'main'): 834_467_160_064,
}
# Where the paper's figure is not the model's, and what it is instead; see docs/tables.md.
KNOWN_DIFFERENCES = {
    ('perceiver,cross_attends=1,placement=start', 'parameters'): 'without the last layer',
    ('io_learned', 'flops'): 'those of io_fourier',
    ('io_learned,decoder=average', 'flops'): 'those of io_fourier',
    ('io_mel_video', 'parameters'): '1.6M more, which no part of the model accounts for',
    ('main', 'parameters'): 'of 16 self-attends and 1,024 latents',
    ('main', 'flops'): 'of 16 self-attends and 1,024 latents',
}


@pytest.mark.parametrize(('task', 'variant'), SIZES)
def test_size_and_cost(task, variant):
    sizes, described = SIZES[task, variant], papers.describe(task, variant)
    assert {key: described[key] for key in sizes} == sizes
    assert ('inputs' in described) == ('inputs' in sizes)
    computed = described['computed_flops']
    assert computed == COMPUTED.get((task, variant), computed) <= sizes['forward_flops']
    for key, ours in (('parameters', sizes['parameters']), ('flops', sizes['forward_flops'])):
        if (papers_count := described['paper'][key]) is not None:
            agrees = ours == pytest.approx(papers_count, rel=0.007)
            assert agrees != ((variant, key) in KNOWN_DIFFERENCES)


def test_what_another_cross_attend_to_a_grid_computes():
    one, two = (
        make_task(imagenet.get_config(f'perceiver,cross_attends={count}')).describe()
        for count in (1, 2)
    )
    latents, channels, inputs = 512, 1024, 3 + 2 * 129
    products = (
        2 * latents * channels * inputs  # projections of queries and output
        + 2 * latents * inputs**2  # those of keys and values, folded into the short side
        + 2 * latents * channels**2  # the MLP
        + 4 * latents * 224 * 129  # scores with rows and columns of pixels, and back
        + latents * 224**2 * ((3 + 1) + (3 + 2))  # with contents and mean, and back with the total
    )
    assert two['computed_flops'] - one['computed_flops'] == 2 * products


def test_the_papers_figure_for_flow_is_that_of_fewer_latents_and_layers():
    config = flow.get_config('main').unlock()
    config.model.encoder.update(num_latents=1024, num_self_attends_per_block=16)
    description = make_task(config).describe()
    assert description['parameters'] == pytest.approx(config.paper.parameters, rel=0.001)
    assert description['forward_flops'] == pytest.approx(config.paper.flops, rel=0.002)


def test_flops_of_products_convolutions_loops_and_branches():
    x, w = jnp.ones((2, 3, 5)), jnp.ones((5, 7))
    assert count_flops(lambda x: x @ w, x) == 2 * 2 * 3 * 5 * 7
    image, kernel = jnp.ones((1, 6, 6, 3)), jnp.ones((2, 2, 3, 11))

    def convolve(image):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    assert count_flops(convolve, image) == 2 * (3 * 3 * 11) * (2 * 2 * 3)

    def repeat(x):
        square = jax.checkpoint(jax.jit(lambda x: x @ x))
        return jax.lax.scan(lambda carry, _: (square(carry), None), x, length=4)[0]

    assert count_flops(repeat, jnp.ones((3, 3))) == 4 * 2 * 3**3

    def iterate(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: x @ x, x)

    assert count_flops(iterate, jnp.ones((3, 3))) == 5 * 2 * 3**3

    def choose(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

    assert count_flops(choose, jnp.ones((3, 3))) == 2 * 2 * 3**3


def test_the_table_sets_the_sizes_beside_the_papers():
    table = describe_table(
        {
            'inputs': [50176, 261],
            'latents': [512, 1024],
            'parameters': 44_912_254,
            'forward_flops': 706_279_096_320,
            'computed_flops': 388_100_358_144,
            'paper': {
                'source': 'Table 1',
                'metric': 'top1',
                'value': 0.78,
                'parameters': 44.9e6,
                'flops': None,
            },
        }
    )
    assert [line.split() for line in table.splitlines()] == [
        ['here', 'paper', '(Table', '1)'],
        ['inputs', '(M', 'x', 'C)', '50,176', 'x', '261'],
        ['latents', '(N', 'x', 'D)', '512', 'x', '1,024'],
        ['parameters', '44.9M', '44.9M'],
        ['forward', 'FLOPs', '706.3B'],
        ['computed', 'FLOPs', '388.1B'],
        ['top1', '0.780'],
    ]


def test_a_model_without_an_encoder_is_described_without_its_sizes():
    def forward(x, implementation):
        return hk.Linear(7)(x)

    sizes = describe_model(forward, jax.ShapeDtypeStruct((1, 5), jnp.float32))
    flops = 2 * 5 * 7
    assert sizes == {'parameters': 5 * 7 + 7, 'forward_flops': flops, 'computed_flops': flops}
    paper = dict(source='', metric='top1', value=None, parameters=None, flops=None)
    lines = describe_table({**sizes, 'paper': paper}).splitlines()
    names = ['here', 'parameters', 'forward', 'computed', 'top1']
    assert [line.split()[0] for line in lines] == names


def test_flops_of_what_each_device_runs():
    mesh = jax.make_mesh((4,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec('x')
    multiply = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert count_flops(multiply, jnp.ones((8, 3))) == 4 * 2 * (2 * 2 * 3)


def test_flops_of_a_kernel_are_those_of_its_whole_grid():
    def square(x, out):
        out[...] = x[...] @ x[...]

    kernel = pl.pallas_call(square, jax.ShapeDtypeStruct((3, 3), jnp.float32), grid=(5, 2))
    assert count_flops(kernel, jnp.ones((3, 3))) == 5 * 2 * 2 * 3**3
