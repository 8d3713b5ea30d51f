"""Flow as colours."""

import flow_vis
import numpy as np
import pytest

from experiments.pictures.flow_colours import flow_picture
from perceiver_jax.errors import Refused

RNG = np.random.default_rng(0)
FLOW = RNG.uniform(-400, 400, (5, 7, 2)).astype(np.float32)  # height 5, width 7
VALID = RNG.random((5, 7)) < 0.7


def test_valid_flow_that_is_not_finite_is_an_error():
    flow = FLOW.copy()
    flow[0, :3, 1] = np.nan
    with pytest.raises(Refused, match='flow_picture: .* got nan and 2 more'):
        flow_picture(flow)
    flow[2, 2], valid = 1, np.ones((5, 7), bool)
    valid[0, :3] = False
    flow_picture(flow, valid)  # elsewhere it does not matter


@pytest.mark.parametrize(
    'flow, valid, message',
    [
        (FLOW[..., :1], None, r'flow is \[height, width, 2\], got \(5, 7, 1\)'),
        (FLOW[None], None, r'got \(1, 5, 7, 2\)'),
        (FLOW[:0], None, r'got \(0, 7, 2\)'),
        (FLOW, VALID.T, r'validity is bool \(5, 7\), got bool \(7, 5\)'),
        (FLOW, VALID.astype(int), r'got int64 \(5, 7\)'),
    ],
)
def test_shapes_that_do_not_fit_are_errors(flow, valid, message):
    with pytest.raises(Refused, match=message):
        flow_picture(flow, valid)


def test_the_colours_are_middleburys():
    difference = flow_picture(FLOW).astype(int) - flow_vis.flow_to_color(FLOW)
    assert np.abs(difference).max() <= 1  # flow_vis divides by a little more than the longest
    compass = np.array([[[7, 0], [0, 7], [-7, 0], [0, -7], [0, 0]]])  # right, down, left, up
    assert flow_picture(compass)[0].tolist() == [
        [255, 0, 0],
        [255, 229, 0],
        [0, 209, 255],
        [88, 0, 255],
        [255, 255, 255],
    ]


def test_length_saturates_up_to_the_largest():
    right = np.array([[[5.5, 0], [11, 0], [22, 0]]])
    assert flow_picture(right, largest=11)[0].tolist() == [
        [255, 127, 127],
        [255, 0, 0],
        [255, 0, 0],
    ]
    assert flow_picture(right)[0, 1].tolist() == [255, 127, 127]
    assert (flow_picture(0 * right) == 255).all()
    with pytest.raises(ValueError, match='largest: expected a positive length in pixels, got 0'):
        flow_picture(right, largest=0)


def test_invalid_pixels_are_black_and_scale_nothing():
    flow = np.array([[[3.0, 0], [1e10, np.nan]]])
    valid = np.array([[True, False]])
    assert flow_picture(flow, valid)[0].tolist() == [[255, 0, 0], [0, 0, 0]]
