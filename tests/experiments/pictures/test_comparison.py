"""The picture of several runs: whose curves stand where."""

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from experiments.pictures import comparison
from experiments.pictures.comparison import Group


def rows(values, metric=None):
    found = [{'step': i, 'split': 'train', 'loss': x} for i, x in enumerate(values, start=1)]
    return found + ([{'step': 2, 'split': 'eval', metric: 0.25}] if metric else [])


def drawn(group):
    axes = Figure().subplots(1, 3)
    comparison._draw_group(*axes, group)
    return axes


def test_every_run_has_its_curve_and_its_name_in_one_colour():
    runs = {'first': [rows([3.0, 1.0], 'top1')], 'second': [rows([2.0, 2.5])], 'none yet': [[]]}
    loss, metric, names = drawn(Group('imagenet', 'top1', runs))
    curves = loss.get_lines()
    assert [x.get_xydata().tolist() for x in curves] == [[[1, 3], [2, 1]], [[1, 2], [2, 2.5]]]
    assert metric.get_lines()[0].get_xydata().tolist() == [[2, 0.25]]
    texts = names.get_legend().get_texts()
    assert [x.get_text() for x in texts] == [
        'first\n25.0 %',
        'second\nnot evaluated',
        'none yet\nnot evaluated',
    ]
    assert [x.get_color() for x in texts[:2]] == [x.get_color() for x in curves]
    assert (loss.get_title(), metric.get_title()) == (
        'imagenet: loss in training, smoothed',
        'imagenet: top1',
    )
    assert loss.get_xlim() == metric.get_xlim() == (0, 2)


def test_seeds_have_one_colour_and_their_mean_behind_the_name():
    seeds = [rows([3.0, 1.0], 'top1'), rows([4.0, 2.0])]
    seeds[1].append({'step': 2, 'split': 'eval', 'top1': 0.35})
    loss, metric, names = drawn(Group('imagenet', 'top1', {'a': seeds, 'b': [rows([5.0, 6.0])]}))
    curves = loss.get_lines()
    assert [x.get_ydata().tolist() for x in curves] == [[3, 1], [4, 2], [5, 6]]
    assert curves[0].get_color() == curves[1].get_color() != curves[2].get_color()
    assert {x.get_ydata()[0] for x in metric.get_lines()} == {0.25, 0.35}
    # 25 and 35 %: the mean is 30, the sample deviation 7.1.
    assert names.get_legend().get_texts()[0].get_text() == 'a\n30.0 ± 7.1 %, 2 runs'


def test_runs_are_told_apart_by_colour_and_line():
    runs = {str(i): [rows([1.0, 2.0])] for i in range(24)}
    looks = {(x.get_color(), x.get_linestyle(), str(x._dash_pattern)) for x in
             drawn(Group('flow', None, runs))[0].get_lines()}  # fmt: skip
    assert len(looks) == 24


@pytest.mark.parametrize(
    'values, scale', [([5.0, 0.6], 'linear'), ([5.0, 0.4], 'log'), ([5.0, -1.0], 'linear'),
                      ([5.0, 0.4, float('nan')], 'log'), ([], 'linear')]
)  # fmt: skip
def test_losses_over_more_than_a_decade_are_logarithmic(values, scale):
    assert drawn(Group('flow', None, {'a': [rows(values)]}))[0].get_yscale() == scale


def test_each_group_has_a_row(tmp_path):
    groups = [
        Group('imagenet', 'top1', {'a $1': [rows([3.0, 1.0], 'top1')], 'b' * 70: [rows([1.0])]}),
        Group('flow', 'epe', {'c': [rows([0.1], 'epe')]}),
    ]
    shapes = []
    for count in (1, 2):
        comparison.write_comparison(tmp_path / 'x.png', 'title', groups[:count])
        shapes.append(imread(tmp_path / 'x.png').shape)
    assert shapes[0][1] == shapes[1][1] and 1.5 < shapes[1][0] / shapes[0][0] < 2
    with pytest.raises(ValueError, match='there are no runs to draw'):
        comparison.write_comparison(tmp_path / 'x.png', 'title', [])
