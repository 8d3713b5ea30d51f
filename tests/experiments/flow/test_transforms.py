"""Augmented pairs: their flow is that of a motion known in closed form, and fits their frames."""

import dataclasses
import math

import cv2
import numpy as np
import pytest

from experiments.data.pipeline import BrokenExample
from experiments.flow import transforms
from experiments.flow.transforms import EvalTransform, TrainTransform
from perceiver_jax.tiling import tile_corners

HEIGHT, WIDTH = 83, 109
NONE = dict(
    crop_size=(53, 67),
    strength=1.0,
    both_directions=False,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    hue=0.0,
    asymmetric_probability=0.0,
    eraser_probability=0.0,
    eraser_sides=(11, 17),
    spatial_probability=1.0,
    log2_scale=(0.0, 0.0),
    stretch_probability=1.0,
    log2_stretch=0.0,
    rotation=0.0,
    relative_rotation=0.0,
    relative_log2_scale=0.0,
    relative_translation=0.0,
    flip_left_right=0.0,
    flip_up_down=0.0,
)
SPATIAL = {
    'crop': {},
    'enlarge': dict(log2_scale=(0.1, 0.8)),
    'shrink': dict(log2_scale=(-0.5, -0.1)),
    'stretch': dict(log2_stretch=0.4),
    'rotate': dict(rotation=20.0),
    'turn the second frame': dict(relative_rotation=4.0),
    'scale the second frame': dict(relative_log2_scale=0.1),
    'move the second frame': dict(relative_translation=0.05),
    'flip left to right': dict(flip_left_right=1.0),
    'flip upside down': dict(flip_up_down=1.0),
}
SPATIAL['all'] = {k: v for change in SPATIAL.values() for k, v in change.items()}
MOTION = np.array([[1.04, 0.05, -3.1], [-0.06, 0.97, 2.3]])  # from the first frame to the second


def grid(height, width):
    x, y = np.meshgrid(np.arange(width, dtype=float), np.arange(height, dtype=float))
    return np.stack([x, y], -1)


def apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


def texture(points):
    """Smooth colours [..., 3] of points of the first frame."""
    x, y = np.moveaxis(points, -1, 0)
    waves = [np.sin(x / 7 + y / 11), np.cos(x / 9 - y / 6), np.sin(y / 8 + 1)]
    return 128 + 100 * np.stack(waves, -1)


def as_frame(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


POINTS = grid(HEIGHT, WIDTH)
EXAMPLE = {
    'frames': np.stack(
        [
            as_frame(texture(POINTS)),
            as_frame(texture(apply(cv2.invertAffineTransform(MOTION), POINTS))),
        ]
    ),
    'flow': (apply(MOTION, POINTS) - POINTS).astype(np.float32),
    'valid': np.ones((HEIGHT, WIDTH), bool),
}


def residual(frames, flow, valid):
    """Mean difference in grey levels of the first frame and the second, looked up by the flow."""
    height, width = valid.shape
    ends = (grid(height, width) + flow).astype(np.float32)
    inside = (ends >= 0).all(-1) & (ends[..., 0] <= width - 1) & (ends[..., 1] <= height - 1)
    moved = cv2.remap(frames[1], ends[..., 0], ends[..., 1], cv2.INTER_LINEAR)
    # Beyond the given frames all is black, and their rims are partly so.
    shown = [cv2.erode(x.min(-1), np.ones((3, 3)), borderValue=255) for x in frames]
    shown[1] = cv2.remap(shown[1], ends[..., 0], ends[..., 1], cv2.INTER_NEAREST)
    difference = np.abs(moved.astype(float) - frames[0]).mean(-1)
    used = valid & inside & (np.minimum(*shown) > 0)
    assert used.mean() > 0.3
    return difference[used].mean()


@pytest.mark.parametrize('change', SPATIAL)
@pytest.mark.parametrize('seed', range(5))
def test_the_frames_fit_the_flow(change, seed):
    transform = TrainTransform(**{**NONE, **SPATIAL[change]})
    new = transform(EXAMPLE, np.random.default_rng(seed))
    assert new['frames'].shape == (2, 53, 67, 3) and new['frames'].dtype == np.uint8
    assert new['flow'].shape == (53, 67, 2) and new['flow'].dtype == np.float32
    assert new['valid'].mean() > 0.7  # rotated frames have empty corners
    assert not new['flow'][~new['valid']].any()
    # A pixel of error in the flow would be 12 grey levels.
    assert residual(**new) < 1


@pytest.mark.parametrize('change', SPATIAL)
def test_the_flow_is_the_maps_motion(change):
    """new flow(x) = S^-1(M(F x)) - x for the maps F and S of the frames and the motion M."""
    transform = TrainTransform(**{**NONE, **SPATIAL[change]})
    new = transform(EXAMPLE, np.random.default_rng(7))
    first, second = transform._draw_maps((HEIGHT, WIDTH), np.random.default_rng(7))
    points = grid(53, 67)
    expected = apply(cv2.invertAffineTransform(second), apply(MOTION, apply(first, points)))
    error = np.abs(new['flow'] - (expected - points))[new['valid']]
    assert error.max() < 0.05 and error.mean() < 0.003  # pixels; OpenCV looks up 32nds of one
    if change == 'crop':
        corner = first[:, 2]
        assert (corner == np.rint(corner)).all()
        left, top = corner.astype(int)
        np.testing.assert_array_equal(
            new['frames'], EXAMPLE['frames'][:, top : top + 53, left : left + 67]
        )


def test_a_crop_of_a_smaller_frame_enlarges_it():
    transform = TrainTransform(**{**NONE, 'crop_size': (97, 109)})
    new = transform(EXAMPLE, np.random.default_rng(0))
    assert new['frames'].shape == (2, 97, 109, 3)
    assert new['valid'].mean() > 0.97
    assert residual(**new) < 1


def test_flow_is_not_interpolated_across_its_edges_nor_into_the_unknown():
    flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    flow[:, 50:, 0] = 20
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[::3, ::2] = False
    example = {**EXAMPLE, 'flow': np.where(valid[..., None], flow, 0), 'valid': valid}
    transform = TrainTransform(**{**NONE, 'log2_scale': (0.5, 0.5)})
    new = transform(example, np.random.default_rng(1))
    u, v = new['flow'][new['valid']].T
    long = 20 * math.sqrt(2)
    assert np.minimum(np.abs(u), np.abs(u - long)).max() < 0.4  # 0 or 28.3, nothing between
    assert 0.3 < np.mean(u > 14) < 0.9 and np.abs(v).max() < 1e-4
    assert 0.7 < new['valid'].mean() < 0.95  # about the share of valid pixels, 5 / 6


def test_strength_scales_from_a_mere_crop():
    everything = {**NONE, **SPATIAL['all'], 'brightness': 0.4, 'eraser_probability': 1.0}
    still = TrainTransform(**{**everything, 'strength': 0.0})(EXAMPLE, np.random.default_rng(3))
    whole, crop = EXAMPLE['frames'][0], still['frames'][0]
    # Somewhere in the frame, untouched. How it is matched rounds, on some processors not to 0.
    shifts = cv2.matchTemplate(whole, crop, cv2.TM_SQDIFF)
    top, left = np.unravel_index(shifts.argmin(), shifts.shape)
    np.testing.assert_array_equal(
        whole[top : top + crop.shape[0], left : left + crop.shape[1]], crop
    )
    scales = []
    for strength in (0.25, 0.5, 1.0):
        transform = TrainTransform(
            **{**NONE, 'log2_scale': (0.8, 0.8), 'strength': strength, 'spatial_probability': 9.0}
        )
        first, _ = transform._draw_maps((HEIGHT, WIDTH), np.random.default_rng(0))
        scales.append(-math.log2(first[0, 0]))
    assert scales == pytest.approx([0.2, 0.4, 0.8])
    with pytest.raises(ValueError, match='strength is in 0..1, got 1.5'):
        TrainTransform(**{**NONE, 'strength': 1.5})


# Both directions


def test_inverse_flow_averages_what_ends_at_a_pixel():
    flow = np.zeros((1, 5, 2))
    flow[0, :, 0] = [2.4, 1, 7, -3, 0]  # ends at 2, 2, outside, 0, 4
    valid = np.array([[True, True, True, True, False]])
    inverse, known = transforms.inverse_flow(flow, valid)
    assert inverse[0, :, 0].tolist() == pytest.approx([3, 0, -1.7, 0, 0])
    assert known.tolist() == [[True, False, True, False, False]]
    assert inverse.dtype == np.float32 and not inverse[..., 1].any()


def test_inverse_flow_is_that_of_the_motion():
    inverse, known = transforms.inverse_flow(EXAMPLE['flow'], EXAMPLE['valid'])
    expected = apply(cv2.invertAffineTransform(MOTION), POINTS) - POINTS
    error = np.abs(inverse - expected)[known]
    assert error.max() < 0.5 * 0.11 + 1e-3  # half a pixel times how much the flow changes in one
    assert known.mean() > 0.9


def test_both_directions_are_the_same_crop_twice():
    transform = TrainTransform(**{**NONE, 'strength': 0.0, 'both_directions': True})
    new = transform(EXAMPLE, np.random.default_rng(2))
    assert {k: x.shape for k, x in new.items()} == {
        'frames': (2, 2, 53, 67, 3),
        'flow': (2, 53, 67, 2),
        'valid': (2, 53, 67),
    }
    np.testing.assert_array_equal(new['frames'][1], new['frames'][0][::-1])
    for i in range(2):
        assert residual(**{k: x[i] for k, x in new.items()}) < 1
    known = np.full_like(EXAMPLE['flow'], 3)
    exact = transform({**EXAMPLE, 'backward': known}, np.random.default_rng(2))
    assert (exact['flow'][1] == 3).all()
    with pytest.raises(ValueError, match='both directions are not augmented, got strength 0.5'):
        dataclasses.replace(transform, strength=0.5)


# Colours


FRAMES = np.random.default_rng(0).integers(40, 200, (2, 11, 13, 3), dtype=np.uint8)
COLOURS = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


def ratio_of_means(new):
    return new.mean() / FRAMES.mean()


def test_brightness_scales_and_contrast_and_saturation_keep_the_mean():
    def jitter(seed=0, **ranges):
        ranges = {**COLOURS, **ranges}
        return transforms.jitter_colours(FRAMES, np.random.default_rng(seed), **ranges)

    np.testing.assert_array_equal(jitter(), FRAMES)
    ratios = [ratio_of_means(jitter(seed, brightness=0.2)) for seed in range(40)]
    assert 0.79 < min(ratios) < 0.85 and 1.15 < max(ratios) < 1.21
    grey = [cv2.cvtColor(x.reshape(-1, 13, 3), cv2.COLOR_RGB2GRAY) for x in (jitter(contrast=0.2),)]
    before = cv2.cvtColor(FRAMES.reshape(-1, 13, 3), cv2.COLOR_RGB2GRAY)
    assert grey[0].mean() == pytest.approx(before.mean(), abs=1)
    assert grey[0].std() != pytest.approx(before.std(), rel=0.01)
    duller = jitter(3, saturation=0.9)
    spread = [np.ptp(x.astype(float), axis=-1).mean() for x in (duller, FRAMES)]
    assert spread[0] != pytest.approx(spread[1], rel=0.05)
    after = cv2.cvtColor(duller.reshape(-1, 13, 3), cv2.COLOR_RGB2GRAY)
    assert np.abs(after.astype(int) - before).max() < 25  # luminance stays, but where it saturates


def test_hue_turns_about_the_circle():
    red = np.zeros((1, 2, 2, 3), np.uint8)
    red[..., 0] = 200
    ranges = {**COLOURS, 'hue': 0.5}
    turned = [
        transforms.jitter_colours(red, np.random.default_rng(seed), **ranges) for seed in range(40)
    ]
    colours = np.array([x[0, 0, 0] for x in turned])
    assert (colours.max(-1) == 200).all()  # the value stays
    assert {*colours.argmax(-1).tolist()} == {0, 1, 2}


@pytest.mark.parametrize('probability, equal', [(0.0, True), (1.0, False)])
def test_frames_change_alike_unless_asymmetric(probability, equal):
    transform = TrainTransform(
        **{**NONE, 'brightness': 0.4, 'hue': 0.2, 'asymmetric_probability': probability}
    )
    alike = {**EXAMPLE, 'frames': np.stack([EXAMPLE['frames'][0]] * 2)}
    first, second = transform(alike, np.random.default_rng(0))['frames']
    assert (first == second).all() == equal


def test_the_eraser_fills_rectangles_of_the_second_frame_with_its_mean():
    transform = TrainTransform(**{**NONE, 'eraser_probability': 1.0})
    plain = TrainTransform(**NONE)(EXAMPLE, np.random.default_rng(5))
    new = transform(EXAMPLE, np.random.default_rng(5))
    np.testing.assert_array_equal(new['frames'][0], plain['frames'][0])
    np.testing.assert_array_equal(new['flow'], plain['flow'])
    changed = (new['frames'][1] != plain['frames'][1]).any(-1)
    assert 0 < changed.sum() <= 2 * 17 * 17
    mean = np.rint(plain['frames'][1].mean((0, 1)))
    assert (new['frames'][1][changed] == mean).all()


# Evaluation


def test_evaluation_fills_frames_up_and_tiles_them_as_they_are():
    transform = EvalTransform(frame_size=(84, 127), tile=(53, 67), placement='even')
    example = {**EXAMPLE, 'matched': EXAMPLE['valid'], 'unmatched': ~EXAMPLE['valid']}
    new = transform({**example, 'data': np.int32(4), 'name': 'a'})
    np.testing.assert_array_equal(new['frames'][:, :HEIGHT, :WIDTH], EXAMPLE['frames'])
    assert (new['frames'][:, HEIGHT:, :WIDTH] == EXAMPLE['frames'][:, -1:]).all()
    assert new['valid'].sum() == HEIGHT * WIDTH and new['valid'][:HEIGHT, :WIDTH].all()
    assert new['flow'].shape == (84, 127, 2) and new['data'] == 4
    assert new['size'].tolist() == [83, 109]
    # 83 x 109 pixels need two rows and two columns, 84 x 127 three columns.
    assert new['corners_1'].tolist() == [[0, 0], [0, 42], [30, 0], [30, 42], [30, 42], [30, 42]]
    assert new['is_tile_1'].tolist() == [True] * 4 + [False] * 2


def test_shrunk_frames_are_tiled_too():
    transform = EvalTransform(frame_size=(84, 127), tile=(27, 34), placement='even', factors=(2, 1))
    known = {**EXAMPLE, 'matched': EXAMPLE['valid'], 'unmatched': ~EXAMPLE['valid']}
    new = transform({**known, 'data': np.int32(4), 'name': 'a'})
    # 83 x 109 pixels become 42 x 55: tiles of 27 x 34 that overlap by at least 20.
    expected = tile_corners((42, 55), (27, 34))
    assert new['corners_2'][new['is_tile_2']].tolist() == [list(x) for x in expected]
    assert len(new['corners_2']) == len(tile_corners((42, 64), (27, 34)))


def test_frames_that_do_not_fit_are_named():
    transform = EvalTransform(frame_size=(83, 108), tile=(53, 67), placement='even')
    with pytest.raises(BrokenExample, match=r'alley: frames of \(83, 109\) are larger than config'):
        transform({**EXAMPLE, 'name': 'alley'})
