import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from experiments.training import workdir
from experiments.training.workdir import Metrics
from tests.toys.full_disk import full_disk

TRAIN = {'loss': 1.5, 'learning_rate': 0.02, 'examples_per_second': 64.0}


def make_metrics(workdir, step=0):
    return Metrics(workdir, step=step, total_steps=1200, batch_size=32)


def test_one_json_object_a_line_and_what_came_after_the_checkpoint_is_dropped(tmp_path):
    metrics = make_metrics(tmp_path)
    metrics.write(2, 'train', TRAIN)
    metrics.write(2, 'eval', {'top1': 0.5})
    metrics.write(4, 'train', TRAIN)
    metrics.close()
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 5, "spl')  # killed while writing
    metrics = make_metrics(tmp_path, step=2)
    metrics.write(3, 'train', TRAIN)
    metrics.close()
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert rows == metrics.rows
    assert [(row['split'], row['step']) for row in rows] == [
        ('train', 2), ('eval', 2), ('train', 3)
    ]  # fmt: skip
    assert rows[0] == {'step': 2, 'split': 'train', **TRAIN}


def test_a_damaged_line_is_dropped_and_told(tmp_path, capsys):
    row = {'step': 2, 'split': 'train', **TRAIN}
    (tmp_path / 'metrics.jsonl').write_text(f'{json.dumps(row)}\n{{"step": 4, "sp\n')
    metrics = make_metrics(tmp_path, step=4)
    metrics.close()
    assert metrics.rows == [row]
    assert 'metrics.jsonl, line 2 is no whole JSON object' in capsys.readouterr().out


@pytest.mark.parametrize(
    'line', [b'', b'7', b'null', b'[]', b'{}', b'{"step": "1", "split": "eval"}', b'{"step": 1}',
             b'\0\0\0\0', b'"\xff"', b'[' * 100_000, b'{"step": null, "split": "eval"}',
             b'{"step": true, "split": "eval"}', b'{"step": 1, "split": ["eval"]}',
             b'{"step": 1, "split": "eval", "top1": "0.5"}', b'{"step": 1, "split": "eval\xff"}',
             b'{"step": 1, "split": "eval", "top1": 1%s}' % (b'0' * 400)]
)  # fmt: skip
def test_a_line_that_is_no_row_is_dropped_and_told(tmp_path, capsys, line):
    good = json.dumps({'step': 2, 'split': 'train', **TRAIN}).encode()
    (tmp_path / 'metrics.jsonl').write_bytes(b'\n'.join([good, line, good, b'']))
    assert workdir.read_rows(tmp_path / 'metrics.jsonl') == 2 * [json.loads(good)]
    assert capsys.readouterr().out.count('line 2 is no whole JSON object, dropped') == 1


def test_plain_lines_when_not_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workdir, '_QUIET_SECONDS', 0.0)
    metrics = make_metrics(tmp_path)
    metrics.write(1000, 'train', TRAIN)
    metrics.write(1100, 'train', {**TRAIN, 'broken_examples': 3.0})
    metrics.write(1100, 'eval', {'top1': 0.123456})
    metrics.close()
    assert capsys.readouterr().out.splitlines() == [
        # 200 updates of 32 examples at 64 examples/s
        'step 1,000/1,200  loss 1.5000  lr 2.00e-02  64.0 examples/s  0:01:40 left',
        'step 1,100/1,200  loss 1.5000  lr 2.00e-02  64.0 examples/s  0:00:50 left'
        '  3 broken examples',
        'step 1,100/1,200  evaluation: top1 0.1235',
    ]


def test_training_is_quiet_when_not_a_terminal(tmp_path, capsys):
    metrics = make_metrics(tmp_path)
    for step in (1, 2, 3):
        metrics.write(step, 'train', TRAIN)
    metrics.write(3, 'eval', {'top1': 0.5})
    metrics.write(4, 'train', TRAIN)
    metrics.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split('  ')[0] for line in lines] == ['step 1/1,200', 'step 3/1,200']
    assert 'evaluation' in lines[1]
    assert len(metrics.rows) == 5  # all of them are in the files


def test_one_line_written_over_in_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    metrics = make_metrics(tmp_path)
    metrics.write(1, 'train', TRAIN)
    metrics.write(2, 'train', TRAIN)
    metrics.write(2, 'eval', {'top1': 0.5})
    metrics.close()
    lines = capsys.readouterr().out.split('\n')
    assert [line.count('\r') for line in lines] == [3, 0, 0]
    assert lines[0].endswith('evaluation: top1 0.5000')


def read_events(path):
    """The events of a file, whose checksums are checked."""
    content, events = path.read_bytes(), []
    while content:
        length, length_crc = struct.unpack('<QI', content[:12])
        event, (crc,) = content[12 : 12 + length], struct.unpack_from('<I', content, 12 + length)
        assert (length_crc, crc) == (masked_crc32c(content[:8]), masked_crc32c(event))
        events.append(Event.FromString(event))
        content = content[16 + length :]
    return events


def test_events_are_what_tensorboard_reads(tmp_path):
    metrics = make_metrics(tmp_path, step=2)
    metrics.write(3, 'eval', {'top1': 0.5, 'a class, too': 0.25})
    (path,) = tmp_path.glob('events.out.tfevents.*')
    version, start, *scalars = read_events(path)  # before anything is closed
    assert version.file_version == 'brain.Event:2'
    assert (start.step, start.session_log.status) == (3, start.session_log.START)
    assert [(x.step, x.summary.value[0].tag, x.summary.value[0].simple_value) for x in scalars] == [
        (3, 'eval/top1', 0.5), (3, 'eval/a_class__too', 0.25)
    ]  # fmt: skip
    metrics.close()


def test_events_that_cannot_be_written_are_told_once(tmp_path, capsys):
    metrics = make_metrics(tmp_path)
    (path,) = tmp_path.glob('events.out.tfevents.*')
    size = path.stat().st_size
    path.rename(tmp_path / 'events')
    path.mkdir()
    for step in range(1, 21):  # more than a queue holds
        metrics.write(step, 'train', TRAIN)
    metrics.close()
    path.rmdir()
    (tmp_path / 'events').rename(path)
    metrics.write(21, 'eval', {'top1': 0.5})
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 21
    told = f'warning: {path}: Is a directory; training goes on without\n'
    assert capsys.readouterr().err == told
    assert path.stat().st_size > size and read_events(path)[-1].step == 21


def test_metrics_that_cannot_be_written_are_an_error_that_names_them(tmp_path):
    metrics = make_metrics(tmp_path)
    metrics.write(1, 'train', TRAIN)
    path = tmp_path / 'metrics.jsonl'
    content = path.read_bytes()
    with full_disk(len(content) + 5), pytest.raises(OSError) as error:
        metrics.write(2, 'train', TRAIN)
    metrics.close()
    assert error.value.filename == str(path)
    assert path.read_bytes() == content  # without a part of the line
