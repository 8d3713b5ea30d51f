import pytest

from perceiver_jax import limits
from perceiver_jax.errors import Refused


@pytest.fixture(autouse=True)
def no_factor(monkeypatch):
    monkeypatch.delenv('PERCEIVER_JAX_LIMITS', raising=False)


def test_what_is_within_the_limits_passes():
    limits.check_bytes('x', limits.BYTES)
    limits.check_bytes('x', 50 * limits.BYTES, file_bytes=limits.BYTES)  # a large file
    limits.check_pixels('x', 2**14, 2**14)
    limits.check_sample_rate(100)
    limits.check_sample_rate(192_000)
    limits.check_steps('layers', 2000)


@pytest.mark.parametrize(
    'check, message',
    [
        (lambda: limits.check_bytes('x', 2**30 + 1), '^x would take 1,073,741,825 bytes of memory'),
        (lambda: limits.check_bytes('x', 2**38, 2**30), 'expected at most 107,374,182,400; '),
        (lambda: limits.check_bytes('x', float('nan')), '^x would take'),
        (lambda: limits.check_bytes('x', 10**9999), '^x would take more than 10[*][*]18 bytes'),
        (
            lambda: limits.check_pixels('x', 2**14, 2**14 + 1),
            '^x has 16,384 x 16,385 pixels, expected at most 268,435,456 in all; ',
        ),
        (lambda: limits.check_sample_rate(1), 'rate of 1 Hz, expected 100 to 10,000,000; '),
        (lambda: limits.check_sample_rate(2**31), 'rate of 2,147,483,648 Hz, expected 100 to'),
        (
            lambda: limits.check_steps('layers', 2001),
            '^there are 2,001 layers, expected at most 2,',
        ),
    ],
)
def test_what_is_beyond_them_is_refused(check, message):
    with pytest.raises(Refused, match=message) as refused:
        check()
    assert str(refused.value).endswith('; PERCEIVER_JAX_LIMITS, a factor, widens the limits')


def test_the_environment_widens_them(monkeypatch):
    monkeypatch.setenv('PERCEIVER_JAX_LIMITS', '2.5')
    limits.check_bytes('x', 5 * 2**29)
    limits.check_pixels('x', 5 * 2**27, 1)
    limits.check_sample_rate(40)
    limits.check_sample_rate(25_000_000)
    limits.check_steps('layers', 5000)
    with pytest.raises(Refused, match='expected at most 5,000; '):
        limits.check_steps('layers', 5001)


@pytest.mark.parametrize('text', ['', 'no', '0', '-1', 'nan', 'inf'])
def test_a_factor_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv('PERCEIVER_JAX_LIMITS', text)
    with pytest.raises(Refused, match=f"PERCEIVER_JAX_LIMITS is '{text}', it must be a number"):
        limits.check_bytes('x', 1)
