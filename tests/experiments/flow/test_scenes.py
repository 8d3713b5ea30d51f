"""Generated scenes: their flow is exact, and a pair depends on its index alone."""

import pickle

import cv2
import numpy as np
import pytest

from experiments.flow.scenes import MovingScenes

PLAIN = dict(
    num_pairs=1000,
    num_evaluation_pairs=7,
    frame_size=(97, 131),
    num_shapes=(2, 5),
    motion=6.0,
    turn=3.0,
    zoom=0.05,
    perspective=0.1,
    bend=4.0,
    blur=0.0,
    fog=0.0,
    noise=0.0,
)


def look_up(values, flow):
    """What lies where the flow ends."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(values, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)


def inner(mask):
    """Without the rim, where bilinear interpolation mixes two layers."""
    return cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0) > 0


@pytest.mark.parametrize('index', range(8))
def test_forward_and_backward_flow_undo_each_other(index):
    example = MovingScenes('train', **PLAIN)[index]
    ways = [('flow', 'backward', 'matched'), ('backward', 'flow', 'backward_matched')]
    for there, back, matched in ways:
        seen = inner(example[matched])
        assert seen.mean() > 0.4
        rest = example[there] + look_up(example[back], example[there])
        error = np.linalg.norm(rest, axis=-1)[seen]
        assert np.median(error) < 0.01  # pixels: flow is smooth, looking it up is nearly exact
        assert np.mean(error > 0.1) < 0.02  # thin parts of shapes remain within the rim


@pytest.mark.parametrize('index', range(8))
def test_the_second_frame_shows_the_first_where_the_flow_ends(index):
    example = MovingScenes('train', **PLAIN)[index]
    first, second = example['frames'].astype(np.float32)
    seen = inner(example['matched'])
    moved = np.abs(look_up(second, example['flow']) - first).mean(-1)[seen].mean()
    still = np.abs(second - first).mean(-1)[seen].mean()
    assert moved < 6  # grey levels, of two interpolations of a fine texture
    assert moved < still / 3


def test_what_leaves_or_is_covered_is_unmatched():
    example = MovingScenes('train', **PLAIN)[3]
    height, width = PLAIN['frame_size']
    x = np.arange(width) + example['flow'][..., 0]
    y = np.arange(height)[:, None] + example['flow'][..., 1]
    outside = (x < -0.5) | (x > width - 0.5) | (y < -0.5) | (y > height - 0.5)
    assert outside.any() and example['unmatched'][outside].all()
    assert (example['unmatched'] & ~outside).any()
    np.testing.assert_array_equal(example['matched'], ~example['unmatched'])
    assert example['valid'].all()


def test_a_pair_depends_on_its_index_and_split_alone():
    scenes = MovingScenes('train', **{**PLAIN, 'noise': 0.05, 'blur': 0.5, 'fog': 0.5})
    later = pickle.loads(pickle.dumps(scenes))
    expected = scenes[5]
    scenes[6]
    for example in (scenes[5], later[5]):
        for key, value in expected.items():
            np.testing.assert_array_equal(example[key], value)
    others = [scenes[6], MovingScenes('evaluation', **PLAIN)[5]]
    assert all((x['flow'] != expected['flow']).any() for x in others)


def test_blur_fog_and_noise_change_frames_and_no_flow():
    plain = MovingScenes('train', **PLAIN)
    for change in (dict(blur=1.0), dict(fog=1.0)):
        changed = MovingScenes('train', **{**PLAIN, **change})
        assert (changed[2]['frames'] != plain[2]['frames']).any()
        np.testing.assert_array_equal(changed[2]['flow'].shape, plain[2]['flow'].shape)
    noisy = [MovingScenes('train', **{**PLAIN, 'noise': 0.2})[i] for i in range(4)]
    still = [plain[i] for i in range(4)]
    differences = [
        np.std(a['frames'] - b['frames'].astype(float)) for a, b in zip(noisy, still, strict=True)
    ]
    assert min(differences) == 0 and max(differences) > 1  # half of the scenes, about
    for a, b in zip(noisy, still, strict=True):
        np.testing.assert_array_equal(a['flow'], b['flow'])


def test_blur_is_centred_on_where_things_are():
    scenes = MovingScenes('train', **{**PLAIN, 'blur': 1.0, 'num_shapes': (0, 0)})
    example = scenes[1]
    first, second = example['frames'].astype(np.float32)
    seen = inner(example['matched'])
    assert np.abs(look_up(second, example['flow']) - first).mean(-1)[seen].mean() < 2


def test_textures_come_from_a_folder(tmp_path):
    image = np.zeros((60, 90, 3), np.uint8)
    image[..., 2] = 200  # OpenCV's third channel is red
    (tmp_path / 'more').mkdir()
    cv2.imwrite(str(tmp_path / 'more' / 'a.png'), image)
    for hidden in ('._a.png', '.trash/b.png', 'more/__MACOSX/c.png', 'more/Thumbs.db'):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b'left by another program')
    scenes = MovingScenes('train', **PLAIN, textures=str(tmp_path))
    assert scenes._textures == [str(tmp_path / 'more' / 'a.png')]
    frames = scenes[0]['frames']
    assert (frames[..., 0] > 150).all() and (frames[..., 1:] < 50).all()


def test_what_cannot_be_generated_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"generated for .*, not for 'test'"):
        MovingScenes('test', **PLAIN)
    with pytest.raises(ValueError, match='num_shapes as .fewest, most., got 7, .* .5, 2.'):
        MovingScenes('evaluation', **{**PLAIN, 'num_shapes': (5, 2)})
    with pytest.raises(ValueError, match='textures: .* holds no images'):
        MovingScenes('train', **PLAIN, textures=str(tmp_path))
    with pytest.raises(IndexError, match='are 7, there is none of index 7'):
        MovingScenes('evaluation', **PLAIN)[7]
