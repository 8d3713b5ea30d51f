import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.errors import Refused
from perceiver_jax.tiling import (
    coarse_to_fine,
    deepmind_tiles,
    even_tiles,
    flow_of_tiles,
    tile_corners,
    tiled,
)


def positions(height, width):
    """Frames whose channels are each pixel's row, its column and one, the second frame negative."""
    rows, columns = np.mgrid[0:height, 0:width]
    frame = np.stack([rows, columns, np.ones_like(rows)], axis=-1).astype(np.float32)
    return np.stack([frame, -frame])


def rows_and_columns(frames):
    return frames[:, 0, :, :, :2]


@pytest.mark.parametrize(
    'size, tile, even, deepmind',
    [
        (436, 368, [0, 68], [0, 68]),  # Sintel
        (1024, 496, [0, 264, 528], [0, 476, 528]),
        (375, 368, [0, 7], [0, 7]),  # KITTI
        (1242, 496, [0, 373, 746], [0, 476, 746]),
        (368, 368, [0], [0]),
        (716, 368, [0, 348], [0, 348]),  # two tiles overlap by exactly 20
        (717, 368, [0, 174, 349], [0, 348, 349]),
    ],
)
def test_grids_by_hand(size, tile, even, deepmind):
    assert even_tiles(size, tile) == even
    assert deepmind_tiles(size, tile) == deepmind


@pytest.mark.parametrize('tiles', [even_tiles, deepmind_tiles])
def test_every_grid_covers_and_overlaps(tiles):
    for size in range(11, 97):
        starts = tiles(size, 11, min_overlap=3)
        assert starts[0] == 0 and starts[-1] == size - 11
        assert all(0 < step <= 11 - 3 for step in np.diff(starts))


@pytest.mark.parametrize('size, tile, min_overlap', [(7, 11, 3), (23, 11, 11), (23, 11, -1)])
def test_impossible_tiles_are_named(size, tile, min_overlap):
    for tiles in (even_tiles, deepmind_tiles):
        with pytest.raises(
            ValueError, match=f'min_overlap={min_overlap}, tile={tile}, size={size}'
        ):
            tiles(size, tile, min_overlap)


@pytest.mark.parametrize('placement', ['even', 'deepmind'])
@pytest.mark.parametrize('batch_size', [1, 4, 100])
def test_where_tiles_agree_nothing_changes(placement, batch_size):
    frames = positions(61, 83)
    flow = tiled(rows_and_columns, frames, (29, 37), placement, batch_size)
    assert flow.dtype == np.float32
    np.testing.assert_array_equal(flow, frames[0, ..., :2])


def test_overlap_is_averaged_by_the_distance_to_the_edge():
    def first_column(frames):
        return np.broadcast_to(rows_and_columns(frames)[:, :, :1], (len(frames), 3, 4, 2))

    # Tiles of columns 0..3 and 2..5; the weights of a middle row are 1, 2, 2, 1, of the others 1.
    flow = tiled(first_column, positions(3, 6), (3, 4), batch_size=2, min_overlap=2)
    outer = [0, 0, (0 + 2) / 2, (0 + 2) / 2, 2, 2]
    middle = [0, 0, (2 * 0 + 1 * 2) / 3, (1 * 0 + 2 * 2) / 3, 2, 2]
    np.testing.assert_allclose(flow[..., 1], [outer, middle, outer], rtol=1e-6)
    np.testing.assert_array_equal(flow[..., 0], [[0] * 6, [1] * 6, [2] * 6])


def test_constant_flow_stays_exactly():
    flow = np.float32([0.1, -7.3])
    made = tiled(lambda x: np.broadcast_to(flow, (len(x), 29, 37, 2)), positions(61, 83), (29, 37))
    np.testing.assert_array_equal(made, np.broadcast_to(flow, (61, 83, 2)))


def test_small_frames_repeat_their_last_pixels():
    seen = []

    def record(frames):
        seen.append(frames)
        return rows_and_columns(frames)

    frames = positions(7, 53)
    flow = tiled(record, frames, (29, 37))
    np.testing.assert_array_equal(flow, frames[0, ..., :2])
    assert [tile.shape for tile in seen] == 2 * [(1, 2, 29, 37, 3)]
    np.testing.assert_array_equal(seen[0][0, :, 7:], np.repeat(frames[:, 6:, :37], 22, axis=1))


def test_one_shape_for_all_batches_and_progress():
    shapes, calls = set(), []

    def record(frames):
        shapes.add(frames.shape)
        return rows_and_columns(frames)

    progress = lambda *counts: calls.append(counts)  # noqa: E731
    tiled(record, positions(31, 83), (29, 37), batch_size=4, progress=progress)
    assert shapes == {(4, 2, 29, 37, 3)}
    assert calls == [(4, 8), (8, 8)]


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(placement='random'), "'random'"),
        (dict(batch_size=0), 'batch_size must be at least 1, got 0'),
        (dict(frames=np.zeros((3, 31, 37, 3))), r'\(3, 31, 37, 3\)'),
        (dict(frames=np.zeros((2, 0, 37, 3))), r'\(2, 0, 37, 3\)'),
        (dict(tile=(17, 29)), 'tile=17'),
        (dict(tile=29), 'tile 29 must have one entry for each of the 2 sides, height and width'),
        (dict(tile=(29.5, 31)), 'tile_height as an integer, not 29.5'),
        (dict(min_overlap=(5, 5)), r'min_overlap as an integer, not \(5, 5\)'),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = dict(function=rows_and_columns, frames=positions(31, 37), tile=(29, 31))
    with pytest.raises(ValueError, match=message):
        tiled(**arguments | changes)


@pytest.mark.parametrize('shape', [(1, 4, 5, 1), (4, 5, 2), (1, 5, 4, 2)])
def test_a_function_of_something_else_is_refused(shape):
    with pytest.raises(ValueError, match=r'must return \(1, 4, 5, 2\), got'):
        tiled(lambda frames: np.zeros(shape), np.zeros((2, 4, 5, 3)), (4, 5), min_overlap=1)


def test_a_tile_has_two_sides():
    with pytest.raises(
        ValueError, match=r'tile \(4,\) must have one entry for each of the 2 sides'
    ):
        tiled(lambda frames: frames, np.zeros((2, 4, 5, 3)), (4,))


def test_corners_are_row_by_row():
    expected = [(0, 0), (0, 476), (0, 528), (68, 0), (68, 476), (68, 528)]
    assert tile_corners((436, 1024), (368, 496), 'deepmind') == expected
    assert tile_corners((11, 13), (11, 13), min_overlap=3) == [(0, 0)]
    with pytest.raises(ValueError, match='size 436 must have one entry for each of the 2 sides'):
        tile_corners(436, (368, 496))
    with pytest.raises(ValueError, match="placement must be one of .*, got 'odd'"):
        tile_corners((436, 1024), (368, 496), 'odd')


@pytest.mark.parametrize('tiles_at_once', [1, 2, 5])
def test_frames_of_several_sizes_in_one_compiled_function(tiles_at_once):
    """A batch of frames filled up to one size gives what each of them gives alone."""
    tile, sizes, largest = (41, 43), [(47, 97), (61, 71), (41, 43)], (61, 101)
    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(2, *size, 3)).astype(np.float32) for size in sizes]

    def flow(frames):  # depends on all of the tile, and on where in it a pixel is
        ramp = jnp.linspace(0, 1, tile[1])[None] * jnp.linspace(1, 2, tile[0])[:, None]
        return (
            frames[:, 0, ..., :2] * ramp[None, ..., None]
            + frames[:, 1].mean((1, 2, 3))[:, None, None, None]
        )

    corners = [tile_corners(size, tile) for size in sizes]
    count = len(tile_corners(largest, tile))
    batch = np.zeros((3, 2, *largest, 3), np.float32)
    for i, pair in enumerate(pairs):
        batch[i, :, : sizes[i][0], : sizes[i][1]] = pair
    got = jax.jit(flow_of_tiles, static_argnums=(0, 4, 5))(
        flow,
        batch,
        np.array([x + (count - len(x)) * x[-1:] for x in corners]),
        np.array([np.arange(count) < len(x) for x in corners]),
        tile,
        tiles_at_once,
    )
    for i, (pair, (height, width)) in enumerate(zip(pairs, sizes, strict=True)):
        np.testing.assert_allclose(
            got[i, :height, :width], tiled(flow, pair, tile), rtol=1e-5, atol=1e-5
        )
        assert not np.asarray(got[i, height:]).any() and not np.asarray(got[i, :, width:]).any()


def test_no_frames_have_no_flow():
    got = flow_of_tiles(
        lambda frames: frames[:, 0, ..., :2],
        np.zeros((0, 2, 11, 13, 3), np.float32),
        np.zeros((0, 3, 2), int),
        np.zeros((0, 3), bool),
        (5, 7),
        2,
    )
    assert got.shape == (0, 11, 13, 2)


def waves(height, width, right, down):
    """A smooth picture of two colours, moved by some pixels."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x - right) / width, (y - down) / height
    return np.stack([np.sin(7 * x + 3 * y), np.cos(5 * y - 2 * x)], axis=-1)


def test_motion_is_found_from_coarse_to_fine():
    """A model that tells a part of the motion at each size, and sees what is left of it."""
    frames = np.stack([waves(61, 83, 0, 0), waves(61, 83, 9, -6)])[None]
    told = {4: (2.0, -1.5), 2: (0.5, -0.25), 1: (0.25, 0.75)}
    factors = (4, 2, 1)
    rest, size = np.array([9.0, -6.0]), np.array([64, 84])  # filled up to multiples of 4

    def estimate(small, place):
        nonlocal rest
        factor = factors[place]
        assert small.shape == (1, 2, -(-61 // factor), -(-83 // factor), 2)
        expected = np.stack([waves(61, 83, 0, 0), waves(61, 83, *rest)])
        fill = ((0, 0), (0, 3), (0, 1), (0, 0))
        expected = np.pad(expected, fill, mode='edge').reshape(
            2, size[0] // factor, factor, size[1] // factor, factor, 2
        )
        inner = (slice(None), *(slice(16 // factor, (s - 20) // factor) for s in size))
        np.testing.assert_allclose(
            small[0][inner], expected.mean((2, 4))[inner], atol=0.02 * factor
        )
        rest = rest - factor * np.array(told[factor])
        return jnp.broadcast_to(jnp.array(told[factor]), (*small.shape[:1], *small.shape[2:4], 2))

    flow = coarse_to_fine(estimate, jnp.asarray(frames), factors)
    assert flow.shape == (1, 61, 83, 2)
    np.testing.assert_allclose(flow, np.broadcast_to([9.25, -5.75], flow.shape), atol=1e-5)


def test_what_is_left_is_added_where_the_pixel_comes_from():
    """The flow so far belongs to the second frame as it was warped: it is looked up there."""
    slope = jnp.stack(jnp.meshgrid(jnp.arange(40.0), jnp.arange(30.0)), -1)[None] / 10
    answers = [slope, jnp.full_like(slope, 2.0)]
    flow = coarse_to_fine(lambda _, place: answers[place], jnp.zeros((1, 2, 30, 40, 3)), (1, 1))
    np.testing.assert_allclose(flow[0, :27, :37], slope[0, :27, :37] + 0.2 + 2, rtol=1e-5)


@pytest.mark.parametrize('factors', [(), (2,), (3, 2, 1), (2, 0, 1), (2.0, 1), (-2, 1)])
def test_other_factors_are_refused(factors):
    with pytest.raises(Refused, match='factors: expected whole numbers, each a multiple of'):
        coarse_to_fine(lambda frames, _: frames, jnp.zeros((1, 2, 8, 8, 3)), factors)
