import jax
import jax.numpy as jnp
import pytest

from experiments import memory
from experiments.training.loop import TrainState
from perceiver_jax.errors import Refused


def shapes(parameters):
    params = {'linear': {'w': jax.ShapeDtypeStruct((parameters,), jnp.float32)}}
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, {}, (params, params), {})


def test_a_state_that_does_not_fit_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(memory, 'memory_of_device', lambda: 2_000_000_000)
    memory.check_state(shapes(100_000_000))  # 1.6 GB with the moments and the gradients
    with pytest.raises(Refused, match='take 3.2 GB, and cpu has 2.0 GB; .*latent_channels'):
        memory.check_state(shapes(200_000_000))
    monkeypatch.setattr(memory, 'memory_of_device', lambda: None)  # nobody tells
    memory.check_state(shapes(200_000_000))


@pytest.mark.parametrize(
    'error, asked',
    [
        (RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 400000000000 bytes.'), '400.0'),
        (RuntimeError('RESOURCE_EXHAUSTED: ... to allocate 8.00GiB. [tf-allocator]'), '8.6'),
        (RuntimeError('RESOURCE_EXHAUSTED: needs 1.5 TiB'), '1,649.3'),
        (MemoryError('Unable to allocate 72.8 TiB for an array with shape (3, 2)'), '80,044.4'),
    ],
)
def test_what_was_asked_for_is_read_from_the_error(monkeypatch, error, asked):
    monkeypatch.setattr(memory, 'memory_of_device', lambda: 24_000_000_000)
    assert memory.shortage(error) == (
        f'out of memory: {asked} GB were asked for at once, and cpu has 24.0 GB, some of it in use'
    )


def test_errors_without_a_size_and_other_errors():
    assert memory.shortage(MemoryError()).startswith('out of memory: more was asked for at once')
    assert memory.shortage(RuntimeError('INTERNAL: 8 bytes')) is None


def test_the_memory_of_this_machine_is_told():
    assert memory.memory_of_device() > 10**8
