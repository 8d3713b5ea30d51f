import numpy as np
import pytest

from experiments.imagenet.checksum import masked_crc32c


def byte_by_byte(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF


def test_known_value():
    crc = 0xE3069283  # of CRC32C's usual example
    masked = (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF
    assert masked_crc32c(np.frombuffer(b'123456789', np.uint8)) == masked


# Data of more than 4,092 bytes is folded.
@pytest.mark.parametrize('length', [0, 1, 2, 3, 4, 7, 8, 4091, 4092, 4093, 8188, 8189, 20_011])
def test_any_length(length):
    data = np.random.default_rng(length).integers(0, 256, length, np.uint8)
    assert masked_crc32c(data) == byte_by_byte(data.tolist())


def test_rows_are_alone():
    data = np.random.default_rng(0).integers(0, 256, (3, 5, 11), np.uint8)
    checksums = masked_crc32c(data)
    assert checksums.shape == (3, 5) and checksums.dtype == np.uint32
    for index in np.ndindex(3, 5):
        assert checksums[index] == byte_by_byte(data[index].tolist())
    long = np.random.default_rng(0).integers(0, 256, (2, 5003), np.uint8)
    assert masked_crc32c(long).tolist() == [byte_by_byte(row.tolist()) for row in long]
