import contextlib

from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments.pictures import bars


def drawn(monkeypatch, values):
    figure = Figure()
    monkeypatch.setattr(bars, 'saved_figure', lambda *_, **__: contextlib.nullcontext(figure))
    results = [[0.1 * i] for i in range(len(values))]
    papers = len(values) * [None]
    bars.write_bars('x.png', values, results, papers, metric='accuracy', title='some sounds')
    return figure.axes[0]


def test_each_value_of_the_last_key_has_a_colour_of_its_own(monkeypatch):
    values = [{'seed': str(s), 'fold': str(f)} for s in range(2) for f in range(1, 6)]
    axes = drawn(monkeypatch, values)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f'fold: {f}' for f in range(1, 6)]
    assert [x.get_text() for x in axes.get_xticklabels()] == ['0', '1']
    colours = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert len(set(colours)) == 5 and len(colours) == 10
    places = sorted((bar.get_x(), to_hex(bar.get_facecolor())) for bar in axes.patches)
    assert [c for _, c in places[:5]] == [c for _, c in places[5:]]


def test_one_key_alone_makes_groups_and_no_legend(monkeypatch):
    axes = drawn(monkeypatch, [{'fold': str(f)} for f in range(1, 4)])
    assert axes.get_legend() is None
    assert [x.get_text() for x in axes.get_xticklabels()] == ['1', '2', '3']
