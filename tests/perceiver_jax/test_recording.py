import numpy as np

from perceiver_jax.attention import CrossAttend
from perceiver_jax.recording import record_attention
from tests.toys.modules import random, run

B, T, S = 2, 5, 7


def test_attention_is_recorded_of_the_named_module_only():
    queries, inputs = random(B, T, 4), random(B, S, 6)

    def record(recorded):
        with record_attention(recorded) as weights:
            for name in ('first', 'second'):
                CrossAttend(name=name)(queries, inputs, is_training=False)
        return weights

    weights, _ = run(lambda: record, 'second')
    assert [w.shape for w in weights] == [(B, 1, T, S)]
    np.testing.assert_allclose(weights[0].sum(-1), 1, rtol=1e-5)
    assert run(lambda: record, 'econd')[0] == []
