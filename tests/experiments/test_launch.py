import json
import subprocess
import sys

import pytest

from experiments import command_line, launch
from experiments.training import loop, parallel
from tests.toys.toy_task import ToyTask, get_config

DEMO = '--config=configs/imagenet.py:demo'


def run(*arguments):
    """Runs the command line; gives the exit code, standard output and standard error."""
    command = [sys.executable, '-m', 'experiments.launch', *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            [DEMO, '--config.optimzer.learning_rate=1'],
            "Unknown key 'optimzer' in --config.optimzer.learning_rate=1. Did you mean optimizer?",
        ),
        (
            [DEMO, '--config.optimizer.learning_rat=1'],
            "Unknown key 'learning_rat' in --config.optimizer.learning_rat=1. "
            'Did you mean learning_rate?',
        ),
        (
            ['--config=configs/imagenet.py:dem'],
            "Unknown variant 'dem'. Did you mean demo?",
        ),
        (
            ['--config=configs/imagnet.py:demo'],
            "No config file 'configs/imagnet.py'. Did you mean imagenet?",
        ),
        (
            [DEMO, '--config.train.steps=few', '--workdir=x'],
            "flag --config.train.steps=few: invalid literal for int() with base 10: 'few'",
        ),
        ([DEMO], '--mode=train needs --workdir'),
    ],
    ids=lambda x: x[-1] if isinstance(x, list) else '',
)
def test_mistakes_get_one_line(arguments, message):
    code, out, err = run(*arguments)
    assert (code, out, err.rstrip('\n')) == (2, '', f'error: {message}')


def test_an_unknown_task_gets_one_line():
    code, out, err = run(DEMO, '--config.task=imagnet', '--mode=describe')
    assert (code, out) == (2, '')
    assert err == "error: Unknown task 'imagnet'. Did you mean imagenet?\n"


def test_describe_as_json():
    code, out, err = run('--config=configs/imagenet.py:perceiver', '--mode=describe', '--json')
    assert (code, err) == (0, '')
    sizes = json.loads(out)
    assert sizes.keys() == {'inputs', 'latents', 'parameters', 'forward_flops', 'paper'}
    assert sizes['inputs'] == [224 * 224, 3 + 2 * (2 * 64 + 1)]
    assert sizes['latents'] == [512, 1024]


def test_a_checkpoint_is_evaluated_as_the_run_did(tmp_path):
    config = get_config(log_every_steps=1)
    task = ToyTask(config)
    loop.train(config, task, tmp_path, 'toy')
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    by_step = {row['step']: row['top1'] for row in rows if row['split'] == 'eval'}
    assert by_step.keys() == {4, 6} and by_step[4] != by_step[6]
    config.parallel = 'pmap'
    for best in (False, True):
        result = launch.evaluate_checkpoint(config, task, tmp_path, 'toy', best)
        assert result['step'] == (max(by_step, key=by_step.get) if best else 6)
        assert result['value'] == by_step[result['step']]
        assert json.loads((tmp_path / 'evaluation.json').read_text()) == result

    init = task.init
    task.init = lambda rng: ({**init(rng)[0], 'new': {'w': rng}}, {})
    with pytest.raises(ValueError, match='does not fit the model. missing: params/new/w'):
        launch.evaluate_checkpoint(config, task, tmp_path, 'toy', False)


def test_the_table_sets_the_sizes_beside_the_papers():
    table = launch.describe_table(
        {
            'inputs': [50176, 261],
            'latents': [512, 1024],
            'parameters': 44_912_254,
            'forward_flops': 706_279_096_320,
            'paper': {
                'source': 'Table 1',
                'metric': 'top1',
                'value': 0.78,
                'parameters': 44.9e6,
                'flops': None,
            },
        }
    )
    assert [line.split() for line in table.splitlines()] == [
        ['here', 'paper', '(Table', '1)'],
        ['inputs', '(M', 'x', 'C)', '50,176', 'x', '261'],
        ['latents', '(N', 'x', 'D)', '512', 'x', '1,024'],
        ['parameters', '44.9M', '44.9M'],
        ['forward', 'FLOPs', '706.3B'],
        ['top1', '0.780'],
    ]


def test_what_is_refused_is_one_line_and_a_bug_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit) as ended, command_line.one_line_errors():
        parallel.make('pjit')
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: config.parallel is 'pjit'")
    with pytest.raises(ValueError, match='length 1; 2 is required'), command_line.one_line_errors():
        dict([(1,)])
