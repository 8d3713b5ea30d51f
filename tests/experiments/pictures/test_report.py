"""The picture of a run: which curves are drawn, and that it is written atomically."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from experiments.pictures import report


def draw_nothing(subfigure):
    pass


def train_row(step, loss=1.0):
    return {'step': step, 'split': 'train', 'loss': loss, 'learning_rate': 0.5}


def axes_for(draw, rows):
    axes = Figure().add_subplot()
    draw(axes, rows)
    return axes


def line(axes, label):
    (found,) = [line for line in axes.get_lines() if line.get_label() == label]
    return found.get_xdata().tolist(), found.get_ydata().tolist()


@pytest.mark.parametrize('count', [1, 2, 5000])
def test_writes_a_picture_from_one_row_to_many(tmp_path, count):
    rows = []
    for step in range(1, count + 1):
        rows.append(train_row(step, loss=1 / step))
        if step % 1000 == 0:
            rows.append({'step': step, 'split': 'eval', 'loss': 1 / step, 'top1': 0.5})
    path = tmp_path / 'report.png'
    drawn = []
    report.write_report(path, rows, 'costs $1 and $2', drawn.append, {'seed': 3}, 'nats')
    assert imread(path).std() > 0.01  # not one colour
    assert len(drawn) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_draw_leaves_the_old_picture(tmp_path):
    path = tmp_path / 'report.png'
    path.write_text('old')

    def draw(subfigure):
        raise RuntimeError('no data')

    with pytest.raises(RuntimeError, match='no data'):
        report.write_report(path, [train_row(1)], 'title', draw)
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_no_rows_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='report.png: a report needs at least one row'):
        report.write_report(tmp_path / 'report.png', [], 'title', draw_nothing)


def test_loss_is_drawn_in_order_and_the_later_line_of_a_step_counts():
    rows = [train_row(7, 3.0), train_row(14, 9.0), train_row(14, 2.0), train_row(3, 5.0)]
    rows.append({'step': 14, 'split': 'eval', 'loss': 2.5, 'top1': 0.3})
    axes = axes_for(report._draw_loss, rows)
    assert line(axes, 'train (augmented)') == ([3, 7, 14], [5, 3, 2])
    assert line(axes, 'evaluation') == ([14], [2.5])


@pytest.mark.parametrize('lowest, scale', [(0.3, 'linear'), (0.05, 'log'), (-1.0, 'linear')])
def test_loss_over_more_than_a_decade_is_logarithmic(lowest, scale):
    axes = axes_for(report._draw_loss, [train_row(1, 1.0), train_row(2, lowest)])
    assert axes.get_yscale() == scale


def test_metrics_of_the_headlines_unit_end_in_their_values():
    rows = [
        {'step': 5, 'split': 'eval', 'loss': 1, 'top1': 0.4, 'top5': 0.9, 'entropy': 3.1},
        {'step': 9, 'split': 'eval', 'loss': 1, 'top1': 0.512, 'top5': 0.93, 'entropy': 2.7},
    ]
    axes = axes_for(report._draw_metrics, rows)
    labels = {text.get_text(): text.get_fontweight() for text in axes.texts}
    assert labels == {'top1\n51.2 %': 'bold', 'top5\n93.0 %': 'normal'}


def texts(figure):
    """All texts in a figure that are not empty."""
    found = (text.get_text() for text in figure.findobj(Text) if text.get_visible())
    return [text for text in found if text]


def test_a_single_evaluation_is_written_out_and_not_an_empty_half():
    row = {'step': 1200, 'split': 'eval', 'loss': 0.51, 'top1': 0.4, 'epe_all': 2.5}
    axes = axes_for(report._draw_numbers, row)
    assert 'Evaluation at step 1,200' in (axes.get_title('left'), axes.get_title())
    written = [text.get_text() for text in axes.texts]
    assert written == ['40.0 %', 'top1', 'epe_all', '2.50 px', 'loss', '0.51']


@pytest.mark.parametrize('count', [8, 9, 36, 60])
def test_the_numbers_of_an_evaluation_do_not_overlap(count):
    numbers = {f'epe_sintel_final_{i}': i for i in range(count)}
    figure = Figure((11, 9.8))
    axes = figure.subplots(2, 2)[0, 1]
    report._draw_numbers(axes, {'step': 1, 'split': 'eval', 'epe_sintel_final': 1, **numbers})
    left_out = max(count - 40, 0)
    words = [text.get_text() for text in axes.texts]
    assert len(words) == 2 + 2 * min(count, 40) + (left_out > 0)
    assert not left_out or words[-1] == f'{left_out} more are in metrics.jsonl'
    heights = sorted({text.get_position()[1] for text in axes.texts[2:]})
    pitch = np.diff(heights).min() * 72 * axes.bbox.height / figure.dpi
    assert pitch >= axes.texts[-1].get_fontsize()


def test_numbers_curves_or_neither_stand_beside_the_loss(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda f, *a, **k: [figures.append(f), save(f, *a, **k)])
    rows = [train_row(1), train_row(2)]
    evaluations = [
        {'step': 1, 'split': 'eval', 'loss': 1, 'top1': 0.1},
        {'step': 2, 'split': 'eval', 'loss': 1, 'top1': 0.125},
    ]
    facts = {'seed': 3, 'config': 'x.py', 'git_commit': None, 'data': 'digits'}
    for evaluated in ([], evaluations[1:], evaluations[1:] * 2, evaluations):
        report.write_report(
            tmp_path / 'a.png', rows + evaluated, 'x.py', draw_nothing, facts, 'fathoms'
        )
    for figure in figures:
        shown = texts(figure)
        assert {'x.py', 'fathoms', 'seed 3  ·  digits', 'train (augmented)'} <= {*shown}
    titles = [[axes.get_title('left') for axes in figure.axes] for figure in figures]
    without, one, resumed, several = titles
    assert without == ['Learning rate', 'Loss']
    assert one == resumed == ['Learning rate', 'Loss', 'Evaluation at step 2']
    assert several == ['Learning rate', 'Loss', 'Evaluation']
    report.write_samples(tmp_path / 'b.png', 'x.py, step 2', draw_nothing, facts)
    assert texts(figures[-1]) == ['x.py, step 2', 'seed 3  ·  digits']


@pytest.mark.parametrize(
    'facts, expected',
    [
        ({}, ''),
        ({'seed': None, 'task': 'flow'}, ''),
        ({'seed': 0}, 'seed 0'),
        ({'date': '2026-11-26', 'git_commit': 'ab' * 20}, '2026-11-26  ·  commit ababababab'),
        ({'date': 'in May'}, 'in May'),
        (
            {
                'data': 'digits (5 images)',
                'git_commit': f'{"cd" * 20}-dirty',
                'seed': 42,
                'date': '2026-11-26T20:17:27+00:00',
            },
            '2026-11-26 20:17 UTC  ·  seed 42  ·  commit cdcdcdcdcd, with changes  ·  '
            'digits (5 images)',
        ),
    ],
)
def test_the_caption_tells_what_is_known_of_a_run(facts, expected):
    assert report.caption(facts) == expected


def test_labels_are_moved_apart():
    assert report._apart([0.1, 0.5], gap=0.2) == [0.1, 0.5]
    np.testing.assert_allclose(report._apart([0.0, 0.1, 0.1], gap=0.2), [0, 0.2, 0.4])
    np.testing.assert_allclose(report._apart([0.9, 0.95, 1.0], gap=0.2), [0.6, 0.8, 1.0])
