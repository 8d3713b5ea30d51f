"""Batches of CIFAR-10 as they are published."""

import struct


def pickled_by_python_2(content):
    """A pickle as Python 2 with protocol 2 and its NumPy wrote it: texts are strings of bytes."""

    def dump(value):
        if isinstance(value, bytes):
            return b'T' + struct.pack('<i', len(value)) + value
        if isinstance(value, bool):
            return b'\x88' if value else b'\x89'
        if value is None:
            return b'N'
        if isinstance(value, int):
            return b'J' + struct.pack('<i', value)
        if isinstance(value, list):
            return b'](' + b''.join(map(dump, value)) + b'e'
        if isinstance(value, tuple):
            return b'(' + b''.join(map(dump, value)) + b't'
        if isinstance(value, dict):
            items = b''.join(dump(k) + dump(v) for k, v in value.items())
            return b'}(' + items + b'u'
        dtype = b'cnumpy\ndtype\n' + dump((b'u1', 0, 1)) + b'R'
        dtype += dump((3, b'|', None, None, None, -1, -1, 0)) + b'b'
        empty = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n'
        empty += dump((0,)) + dump(b'b') + b'tR'
        state = b'(' + dump(1) + dump(value.shape) + dtype + dump(False) + dump(value.tobytes())
        return empty + state + b'tb'

    return b'\x80\x02' + dump(content) + b'.'


def batch_of(name, images, labels):
    """A batch of the Python version: images uint8 [N, 3072], and labels."""
    return pickled_by_python_2(
        {
            b'batch_label': name.encode(),
            b'labels': labels,
            b'data': images,
            b'filenames': [b'a.png'],
        }
    )
