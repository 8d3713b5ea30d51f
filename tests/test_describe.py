"""The models that the configs name are the papers': parameters and arithmetic."""

import jax
import jax.numpy as jnp
import pytest

from configs import imagenet
from experiments.describe import count_flops
from experiments.tasks import TASKS

# variant -> input elements and channels, parameters, forward GFLOPs. Beside the papers' figures
# (rounded there, norms and softmax included) these are the exact counts of matrix products.
EXPECTED = {
    'perceiver': ([50176, 261], 44_912_254, 706.3),
    'perceiver_permuted': ([50176, 261], 44_912_254, 706.3),
    'perceiver_learned': ([50176, 131], 48_189_577, 380.1),
    'perceiver,cross_attends=1': ([50176, 261], 42_135_859, 404.0),
    'perceiver,cross_attends=4': ([50176, 261], 44_912_254, 533.5),
    'perceiver,share=no': ([50176, 261], 326_241_856, 706.3),
    'perceiver,cross_attends=4,self_attends=0,share=no': ([50176, 261], 12_654_868, 172.8),
    'io_fourier': ([50176, 261], 48_440_627, 406.1),
    'io_learned': ([50176, 512], 62_255_848, 478.0),
    'io_conv': ([3136, 322], 48_646_522, 369.4),
    'io_conv,decoder=average': ([3136, 322], 42_341_754, 367.2),
    'demo': ([64, 35], 171_916, 0.0),
}


@pytest.mark.parametrize('variant', EXPECTED)
def test_size_and_cost(variant):
    config = imagenet.get_config(variant)
    description = TASKS[config.task](config).describe()
    inputs, parameters, gflops = EXPECTED[variant]
    assert description['inputs'] == inputs
    assert description['parameters'] == parameters
    assert description['forward_flops'] / 1e9 == pytest.approx(gflops, abs=0.06)
    paper = config.paper
    if paper.parameters is not None:
        assert parameters == pytest.approx(paper.parameters, rel=0.007)
    if paper.flops is not None and variant != 'io_learned':  # the paper prints io_fourier's there
        assert description['forward_flops'] == pytest.approx(paper.flops, rel=0.003)


def test_flops_of_products_convolutions_and_loops():
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
