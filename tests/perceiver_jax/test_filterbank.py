import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.errors import Refused
from perceiver_jax.filterbank import FilterbankElements, first_filters
from perceiver_jax.inputs import spectrogram_elements

FIELDS = dict(num_filters=6, length=40, stride=4, hop=20, patch=(2, 3), num_bands=2)
FIELDS['max_resolution'] = (5, 2)


def elements_of(sound, **fields):
    """Returns elements of `[B, samples, 1]` and the parameters."""

    def forward(x):
        return FilterbankElements(**{**FIELDS, **fields}, name='filterbank')(x)

    module = hk.without_apply_rng(hk.transform(forward))
    params = module.init(jax.random.key(0), sound)
    return module.apply(params, sound), params


def tone(frequency, samples=200, phase=0.0):
    """A sine of so many cycles a sample, `[1, samples, 1]`."""
    wave = np.sin(2 * np.pi * frequency * np.arange(samples) + phase)
    return jnp.asarray(wave[None, :, None], jnp.float32)


def test_values_are_those_of_sliding_filters():
    sound = jax.random.normal(jax.random.key(1), (2, 200, 1))
    elements, params = elements_of(sound)
    filters = np.asarray(params['filterbank']['filters'])
    assert filters.shape == (40, 2, 6)
    filters = filters * first_filters(40, 6)[1]
    padded = np.pad(np.asarray(sound)[..., 0], ((0, 0), (18, 18)))
    starts = range(0, 200, 4)
    heard = np.stack([np.einsum('bl,lpf->bpf', padded[:, s : s + 40], filters) for s in starts], 1)
    power = np.square(heard).sum(2).reshape(2, 10, 5, 6).mean(2)
    expected = spectrogram_elements(
        jnp.asarray((10 * np.log10(power) + 60) / 20),
        patch=(2, 3),
        num_bands=2,
        max_resolution=(5, 2),
    )
    np.testing.assert_allclose(elements.array(), expected.array(), rtol=1e-4, atol=1e-5)


def test_a_tone_is_heard_by_the_filter_of_its_frequency_at_any_phase():
    whole = dict(num_filters=16, length=400, stride=80, hop=400, patch=(1, 16))
    centre = np.abs(np.fft.rfft(first_filters(400, 16)[0][:, 0, 9], 4000)).argmax() / 4000
    for phase in (0.0, 1.0, 2.0):
        elements, _ = elements_of(tone(centre, 4000, phase), **whole, max_resolution=(10, 1))
        middle = 20 * np.asarray(elements.contents[0, 5, 0]) - 60  # dB
        assert middle.argmax() == 9
        assert abs(middle[9]) < 0.5
        assert middle[[0, 3, 15]].max() < -30


def test_filters_begin_from_low_to_high():
    spectra = np.abs(np.fft.rfft(first_filters(200, 24)[0][:, 1], 2000, axis=0))
    peaks = spectra.argmax(0)
    assert (np.diff(peaks) > 0).all()
    assert peaks[0] < 0.01 * 2000 and peaks[-1] > 0.44 * 2000


def test_weights_are_as_large_as_a_learning_rate_of_other_parameters_expects():
    weights, factors = first_filters(400, 16)
    largest = np.hypot(weights[:, 0], weights[:, 1]).max(0)
    np.testing.assert_allclose(largest, 1, atol=0.01)
    assert (factors < 0.2).all()


def test_a_mask_sets_values_to_the_mean():
    sound = jax.random.normal(jax.random.key(1), (2, 200, 1))

    def forward(x, mask=None):
        return FilterbankElements(**{**FIELDS, 'patch': (1, 6)}, name='filterbank')(x, mask)

    module = hk.without_apply_rng(hk.transform(forward))
    params = module.init(jax.random.key(0), sound)
    mask = np.ones((2, 10, 6), np.float32)
    mask[1, 3, 2:4] = 0
    whole = np.asarray(module.apply(params, sound).contents)
    masked = np.asarray(module.apply(params, sound, mask).contents)
    np.testing.assert_allclose(masked, whole * mask[:, :, None, :], atol=1e-6)
    with pytest.raises(Refused, match=r'A mask of \(2, 10, 5\) is not of the values'):
        module.apply(params, sound, mask[..., :5])


def test_silence_has_a_floor_and_no_gradient():
    def loudness(filters):
        forward = hk.without_apply_rng(
            hk.transform(lambda x: FilterbankElements(**FIELDS, name='filterbank')(x).contents)
        )
        return forward.apply({'filterbank': {'filters': filters}}, jnp.zeros((1, 40, 1))).sum()

    filters = jnp.asarray(first_filters(40, 6)[0])
    value, gradient = jax.value_and_grad(loudness)(filters)
    np.testing.assert_allclose(value, 2 * 6 * -2.0)  # -100 dB
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize(
    'shape, fields, message',
    [
        ((1, 200, 1), dict(stride=3), 'A stride of 3 samples must divide filters of 40'),
        ((1, 200, 1), dict(stride=0), 'A stride of 0'),
        ((1, 210, 1), {}, 'A hop of 20 samples must divide sound of one channel, not 210 x 1'),
        ((1, 200, 2), {}, 'not 200 x 2'),
        ((1, 200), {}, r'audio \[B, samples, channels\]; got \(1, 200\)'),
        ((1, 200, 1), dict(patch=(2, 4)), r'Patches of \(2, 4\) do not divide'),
        ((1, 200, 1), dict(num_filters=10**9), 'the filters'),
    ],
)
def test_what_does_not_fit_is_refused(shape, fields, message):
    with pytest.raises(ValueError, match=message):
        elements_of(jnp.zeros(shape), **fields)
