import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from perceiver_jax.front_ends.spectrogram import log_mel, mel_filters

PLAIN = dict(mean_db=0.0, std_db=1.0)


def hertz_to_mel(hertz):
    return 1127 * np.log(1 + hertz / 700)  # the same scale, by natural logarithms


def independent_log_mel(sound, sample_rate, hop, window, num_bins, low, high):
    """The same from SciPy's short-time Fourier transform, and filters written as a loop."""
    margin = (window - hop) // 2
    padded = np.pad(sound.astype(np.float64), margin)
    _, _, spectrum = scipy.signal.stft(
        padded,
        sample_rate,
        window='hann',
        nperseg=window,
        noverlap=window - hop,
        boundary=None,
        padded=False,
        scaling='spectrum',
    )
    power = np.abs(2 * spectrum.T) ** 2  # [frames, frequencies]
    mels = np.linspace(hertz_to_mel(low), hertz_to_mel(high), num_bins + 2)
    edges = 700 * np.expm1(mels / 1127)
    bands = np.zeros((len(power), num_bins))
    for band in range(num_bins):
        left, centre, right = edges[band : band + 3]
        for k in range(window // 2 + 1):
            frequency = k * sample_rate / window
            if left < frequency <= centre:
                bands[:, band] += power[:, k] * (frequency - left) / (centre - left)
            elif centre < frequency < right:
                bands[:, band] += power[:, k] * (right - frequency) / (right - centre)
    return 10 * np.log10(np.maximum(bands, 1e-10))


@pytest.mark.parametrize(
    'settings',
    [
        dict(sample_rate=48_000, hop=1024, window=2048, num_bins=80, low=50.0, high=20_000.0),
        dict(sample_rate=8_000, hop=150, window=400, num_bins=23, low=0.0, high=4_000.0),
        dict(sample_rate=16_000, hop=256, window=256, num_bins=13, low=100.0, high=7_000.0),
    ],
)
def test_it_equals_an_independent_statement(settings):
    rng = np.random.default_rng(0)
    samples = 13 * settings['hop']
    chirp = scipy.signal.chirp(np.arange(samples) / settings['sample_rate'], 200, 0.1, 3_000)
    sound = (0.3 * chirp + 0.01 * rng.normal(size=samples)).astype(np.float32)
    ours = log_mel(jnp.asarray(sound), **settings, **PLAIN)
    expected = independent_log_mel(sound, **settings)
    assert ours.shape == (13, settings['num_bins'])
    # Beside a loud chirp, float32 rounds away what is 100 dB below it.
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_a_full_sine_at_a_filters_centre_is_zero_decibels():
    settings = dict(sample_rate=8_000, window=400, num_bins=23, low=0.0, high=4_000.0)
    filters = mel_filters(**settings)
    k = 60  # 1,200 Hz, a frequency of the transform
    band = filters[k].argmax()
    sine = np.sin(2 * np.pi * k * np.arange(8_000) / 400)
    mel = log_mel(jnp.asarray(sine), hop=200, **settings, **PLAIN)
    # A Hann window spreads a sine over three frequencies, the outer two a quarter of the power.
    expected = 10 * np.log10(filters[k - 1 : k + 2, band] @ [0.25, 1, 0.25])
    assert mel.shape == (40, 23)
    np.testing.assert_allclose(mel[1:-1, band], expected, atol=1e-3)


def test_silence_is_the_floor_and_decibels_are_scaled():
    settings = dict(sample_rate=8_000, hop=200, window=400, num_bins=7, low=0.0, high=4_000.0)
    mel = log_mel(jnp.zeros((2, 3, 800)), **settings, mean_db=-60.0, std_db=20.0)
    assert mel.shape == (2, 3, 4, 7)
    np.testing.assert_allclose(mel, -2.0, atol=1e-6)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(hop=300), 'A hop of 300 samples must divide the sound of 800'),
        (dict(hop=[200]), r'hop as an integer, not \[200\]'),
        (dict(window=100), 'and a window, of 100'),
        (dict(high=5_000.0), 'low, 0.0 Hz, to high, 5000.0 Hz, are not within 0 to 4000'),
        (
            dict(num_bins=300),
            'num_bins=300 mel filters from low=0.0 to high=4000.0 Hz',
        ),
        (dict(window=10**9), 'the windows of the sound would take 32,000,000,000 bytes of memory'),
        (dict(num_bins=10**9), 'the mel filters would take 1,608,000,000,000 bytes of memory'),
    ],
)
def test_settings_that_make_no_spectrogram_are_refused(change, message):
    settings = dict(sample_rate=8_000, hop=200, window=400, num_bins=7, low=0.0, high=4_000.0)
    with pytest.raises(ValueError, match=message):
        log_mel(jnp.zeros(800), **{**settings, **change}, **PLAIN)
    with pytest.raises(ValueError, match='log_mel takes sound as an array, not as list'):
        log_mel([0.0] * 800, **settings, **PLAIN)
