import numpy as np

from experiments.pictures import curves


def test_smoothing_averages_over_the_neighbours_that_are_there():
    values = np.zeros(200)
    values[[0, 100]] = 6.0  # the window of 200 values is 2 to each side
    smooth = curves.smooth(values)
    np.testing.assert_allclose(smooth[:4], [2, 1.5, 1.2, 0])
    np.testing.assert_allclose(smooth[97:104], [0, 1.2, 1.2, 1.2, 1.2, 1.2, 0])
    np.testing.assert_array_equal(curves.smooth(values[:99]), values[:99])
