"""Flow, and pairs of frames with it."""

import struct

import cv2
import numpy as np

from tests.faults.door import Sample, door


@door('experiments.flow.files.read_flo', 'experiments.flow.files.read_flow')
def flo(folder):
    from experiments.flow.files import read_flow, write_flo

    file = folder / 'flow.flo'
    write_flo(file, np.ones((5, 7, 2), np.float32))
    return Sample(file, lambda: read_flow(file))


@door('experiments.flow.files.read_pfm', 'experiments.flow.files.read_flow')
def pfm(folder):
    from experiments.flow.files import read_flow

    file = folder / 'flow.pfm'
    file.write_bytes(b'PF\n7 5\n-1.0\n' + np.ones((5, 7, 3), '<f4').tobytes())

    def wrong(rng):
        sizes = [0, 1, 7, -1, 10**8, 10**30, 'nan', '1e9999', '7.5', 4000 * '9']
        width, height, scale = (rng.choice(sizes) for _ in range(3))
        return f'PF\n{width} {height}\n-{scale}\n'.encode() + bytes(420)

    return Sample(file, lambda: read_flow(file), wrong=wrong)


@door('experiments.flow.files.read_kitti_flow', 'experiments.flow.files.read_flow')
def kitti_png(folder):
    from experiments.flow.files import read_flow, write_kitti_flow

    file = folder / 'flow.png'
    write_kitti_flow(file, np.ones((5, 7, 2), np.float32))
    content = file.read_bytes()

    def wrong(rng):  # other sizes in the header, with the right checksum
        import zlib

        sizes = struct.pack('>II', *(rng.choice([0, 1, 7, 10**5, 2**31 - 1]) for _ in range(2)))
        header = (
            b'IHDR' + sizes + bytes([rng.choice([8, 16, 3]), rng.choice([0, 2, 3, 6]), 0, 0, 0])
        )
        return content[:12] + header + struct.pack('>I', zlib.crc32(header)) + content[33:]

    return Sample(file, lambda: read_flow(file), wrong=wrong)


def _pair(folder):
    from experiments.flow.files import write_flo

    pairs = folder / 'pairs'
    pairs.mkdir()
    for number in (1, 2):
        cv2.imwrite(str(pairs / f'x_img{number}.png'), np.full((5, 7, 3), 40 * number, np.uint8))
    write_flo(pairs / 'x_flow.flo', np.ones((5, 7, 2), np.float32))
    return pairs


@door('experiments.flow.sources.open_source', 'experiments.flow.sources._Pairs')
def frame_of_a_pair(folder):
    from experiments.flow.sources import open_source

    file = _pair(folder) / 'x_img2.png'
    return Sample(file, lambda: open_source('pairs', folder, 'train')[0])


@door('experiments.flow.sources.open_source', 'experiments.flow.sources._Pairs')
def flow_of_a_pair(folder):
    from experiments.flow.sources import open_source

    file = _pair(folder) / 'x_flow.flo'
    return Sample(file, lambda: open_source('pairs', folder, 'train')[0])


@door('experiments.flow.sources.open_source', slow=2)
def split_of_flyingchairs(folder):
    from experiments.flow.sources import open_source

    chairs = _pair(folder).rename(folder / 'flyingchairs')
    for file in list(chairs.iterdir()):
        file.rename(chairs / file.name.replace('x_', '00001_'))
    file = chairs / 'FlyingChairs_train_val.txt'
    file.write_text('1\n')
    return Sample(file, lambda: open_source('flyingchairs', folder, 'train'), 'text')
