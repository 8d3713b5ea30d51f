import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from configs import imagenet
from experiments import command_line, launch, open_model, tasks
from experiments.imagenet.task import ImageNet
from experiments.pictures import report
from experiments.results import load_result
from experiments.training import compiling, loop, stopping
from experiments.training.checkpointing import digest, flatten, load_params
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends import prepare_image
from perceiver_jax.weights.loading import load
from perceiver_jax.weights.released import RELEASED
from perceiver_jax.weights.trees import flatten as flatten_weights
from perceiver_jax.weights.trees import nest
from tests.toys.demo_run import write_demo_run
from tests.toys.golden import (
    OURS,
    SMALL,
    SMALL_INPUTS,
    image_model,
    read_arrays,
    write_pystate,
    write_validation_images,
)
from tests.toys.toy_task import ToyTask, get_config

pytestmark = pytest.mark.smoke

DEMO = '--config=configs/imagenet.py:demo'


def run(*arguments):
    """Runs the command line; gives the exit code, standard output and standard error."""
    command = [sys.executable, '-m', 'experiments.launch', *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


def set_flags(monkeypatch, **values):
    """Gives flags their values, as the command line does, and keeps no programs."""
    defaults = dict(weights=None, checkpoint='last', model_from='config', compilation_cache='')
    for name, value in {**defaults, 'profile': None, **values}.items():
        monkeypatch.setattr(launch, name.upper(), types.SimpleNamespace(value=value))
    monkeypatch.setattr(compiling, 'keep_programs', lambda *_: None)


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
            ['--config=configs/imagnet.py:demo', '--config.seed=1'],
            "No config file 'configs/imagnet.py'. Did you mean imagenet?",
        ),
        (
            [DEMO, '--config.train.steps=few', '--workdir=x'],
            "flag --config.train.steps=few: invalid literal for int() with base 10: 'few'",
        ),
        ([DEMO], '--mode=train needs --workdir'),
        ([DEMO, '--workdir=x', '--profile=0'], 'flag --profile=0: 0 is not a positive integer'),
        (
            [DEMO, '--mode=describe', '--profile=2'],
            '--profile=2 is of updates: it goes with --mode=train alone',
        ),
        ([DEMO, '--mode=compile'], '--mode=compile and --target go together, got --mode=compile'),
        (
            [DEMO, '--mode=describe', '--target=v3-8'],
            '--mode=compile and --target go together, got --mode=describe',
        ),
        (
            [DEMO, '--mode=describe', '--target_batch=max'],
            '--target_batch goes with --mode=compile alone',
        ),
        (
            [DEMO, '--mode=compile', '--target=h1000'],
            '--target=h1000 names no hardware that is known. Did you mean h100 or h200 or a100? '
            'TPU slices are called like v3-64, and GPUs like h100 and h100x8',
        ),
        (['--mode=eval'], '--mode=eval needs --workdir'),
        (
            [DEMO, '--workdir=x', '--weights=y'],
            '--weights goes with --mode=eval alone; a run starts from --config.init_from',
        ),
        (
            [DEMO, '--workdir=x', '--model_from=weights'],
            '--model_from=weights goes with --weights, or with training from config.init_from',
        ),
        (
            ['--mode=eval', '--workdir=no run'],
            'no run/config.json is not the config of a run: there is no such file',
        ),
        (['--workdir=x'], 'flag --config=None: Flag --config must have a value other than None.'),
    ],
    ids=lambda x: x[-1] if isinstance(x, list) else '',
)
def test_mistakes_get_one_line(arguments, message):
    code, out, err = run(*arguments)
    assert (code, out, err.rstrip('\n')) == (2, '', f'error: {message}')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A run of the demo with another model; its config.json does not hold what the file says."""
    workdir = tmp_path_factory.mktemp('run')
    write_demo_run(workdir)
    return workdir


@pytest.mark.slow
def test_a_run_is_evaluated_with_its_own_config(workdir):
    code, out, err = run('--mode=eval', f'--workdir={workdir}')
    assert (code, err) == (0, '')
    own = json.loads((workdir / 'evaluation.json').read_text())
    assert out == (
        f'Compiled programs are kept in {os.environ["JAX_COMPILATION_CACHE_DIR"]}; '
        "--compilation_cache='' keeps none.\n1 process, 8 devices: cpu\n"
        f'top1 {own["value"]:.4f} at step 5\n'
    )
    assert own['config'] == f'{workdir}/config.json'  # the run has no result yet

    (workdir / 'result.json').write_text(json.dumps({'config': f'{DEMO[9:]} --config.x=1'}))
    keys = ['--config.images.mean=(0.9,)', '--config.train.steps', '9']
    code, _, err = run(*keys, DEMO, '--mode', 'eval', '--workdir', str(workdir))
    assert code == 2 and 'was specified' in err and err.count('\n') == 1  # the order, as ever
    code, _, err = run(DEMO, *keys, '--mode', 'eval', '--workdir', str(workdir))
    assert code == 0
    assert err == (
        f'config.model.decoder.query_channels is 7 in {workdir}/config.json, which counts, '
        'and None in configs/imagenet.py:demo\n'
        f'config.model.encoder.num_cross_attends is 1 in {workdir}/config.json, which counts, '
        'and 2 in configs/imagenet.py:demo\n'
    )
    changed = json.loads((workdir / 'evaluation.json').read_text())
    assert changed['config'] == (
        'configs/imagenet.py:demo --config.x=1 --config.images.mean=(0.9,) --config.train.steps=9'
    )
    assert changed['metrics']['loss'] != own['metrics']['loss']


def test_a_damaged_result_is_refused_or_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, 'WORKDIR', types.SimpleNamespace(value=str(tmp_path)))
    for content in (b'', b'[1]', 10_000 * b'[', b'\xff', b'{"config": 3}'):
        (tmp_path / 'result.json').write_bytes(content)
        with pytest.raises(Refused, match='result.json: '):
            launch.train(None, None, '')  # a run that is finished ends with its result
        assert launch.evaluated_name() == str(tmp_path / 'config.json')


@pytest.mark.parametrize('by_ctrl_c', [False, True])
def test_a_run_that_is_left_early_is_told_so(tmp_path, monkeypatch, capsys, by_ctrl_c):
    def train(*_):
        raise stopping.StoppedEarly(by_ctrl_c)

    def end_at_once(code):
        raise SystemExit(code)

    set_flags(monkeypatch, workdir=str(tmp_path))
    monkeypatch.setattr(loop, 'train', train)
    for module in (launch, command_line):
        monkeypatch.setattr(module, 'end_at_once', end_at_once)
    with pytest.raises(SystemExit) as ended, command_line.one_line_errors():
        launch.train(None, None, '')
    assert ended.value.code == (130 if by_ctrl_c else 0)
    out, err = capsys.readouterr()
    rest = (
        'before the first update of this start: it has saved nothing, and the same command '
        'begins where it began'
    )
    assert out == ('' if by_ctrl_c else f'Stopped by SIGTERM {rest}.\n')
    assert err == (f'error: interrupted {rest}\n' if by_ctrl_c else '')


def test_unknown_keys_of_a_run_get_one_line(workdir):
    key = '--config.model.decoder.query_chanels=9'
    code, out, err = run('--mode=eval', f'--workdir={workdir}', key)
    assert (code, out) == (2, '')
    assert err == f"error: Unknown key 'query_chanels' in {key}. Did you mean query_channels?\n"


def test_an_unknown_task_gets_one_line():
    code, out, err = run(DEMO, '--config.task=imagnet', '--mode=describe')
    assert (code, out) == (2, '')
    assert err == "error: config.task is 'imagnet', an unknown task. Did you mean imagenet?\n"


def test_describe_as_json():
    code, out, err = run('--config=configs/imagenet.py:perceiver', '--mode=describe', '--json')
    assert (code, err) == (0, '')
    sizes = json.loads(out)
    measured = {'inputs', 'latents', 'parameters', 'forward_flops', 'computed_flops'}
    assert sizes.keys() == {*measured, 'paper'}
    assert sizes['inputs'] == [224 * 224, 3 + 2 * (2 * 64 + 1)]
    assert sizes['latents'] == [512, 1024]


@pytest.mark.parametrize(
    ('content', 'error', 'message'),
    [
        ("raise ValueError('no such size')", Refused, 'no such size'),
        ("raise TypeError('a bug')", TypeError, 'a bug'),
        ("{}['task']", KeyError, 'task'),
        ("''.task", AttributeError, "'str' object has no attribute 'task'"),
    ],
)
def test_a_config_refuses_with_a_value_error_and_all_else_is_a_bug(
    tmp_path, monkeypatch, content, error, message
):
    path = tmp_path / 'config.py'
    path.write_text(f'def get_config():\n  {content}\n')
    monkeypatch.setattr(sys, 'argv', ['launch', f'--config={path}'])
    with pytest.raises(error, match=message) as raised:
        launch.parse_flags(sys.argv)
    assert raised.type is error
    assert error is Refused or raised.traceback[-1].path == path  # where the bug is


def test_keys_of_a_config_are_listed_at_once():
    script = (
        'import sys; from experiments import launch\n'
        f'sys.argv = ["launch", "{DEMO}", "--mode=keys", "--config.train.steps=7"]\n'
        'try: launch.run()\n'
        'finally: print(*sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    *lines, modules = done.stdout.splitlines()
    lines = [' '.join(line.split()) for line in lines]
    assert 'config.images.image_size = 8' in lines
    assert "config.parallel = 'jit' # or 'pmap'" in lines
    assert {'config.train.steps = 7 # instead of epochs', 'config.train.epochs = None'} < set(lines)
    assert not {'jax', 'numpy', 'perceiver_jax'} & set(modules.split())


def test_what_is_slow_to_import_is_imported_where_it_is_used():
    modules = ['launch', 'open_model', 'convert', 'training.describe', 'training.loop']
    script = f'import sys; {"; ".join(f"import experiments.{x}" for x in modules)}'
    done = subprocess.run(
        [sys.executable, '-c', f'{script}; print(*sys.modules)'], capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert 'experiments.training.loop' in loaded, done.stderr
    slow = {'matplotlib', 'orbax', 'tensorboardX', 'tensorflow_datasets', 'grain', 'sklearn'}
    assert not slow & loaded


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder of validation images alone, the images and their labels."""
    folder = tmp_path_factory.mktemp('images')
    return folder, *write_validation_images(folder)


@pytest.mark.parametrize(
    ('name', 'form', 'on_command_line'),
    [
        ('fourier', 'deepmind', True),
        ('fourier', 'hugging face', False),
        ('learned', 'deepmind', False),
        ('conv', 'hugging face', False),
    ],
)
def test_weights_of_others_are_evaluated_as_load_reads_them(
    tmp_path, monkeypatch, images, name, form, on_command_line
):
    folder, pixels, labels = images
    workdir, weights = tmp_path / 'evaluation', OURS / f'hf_imagenet_{name}.safetensors'
    if form == 'deepmind':
        weights = write_pystate(tmp_path / f'{name}.pystate', f'imagenet_{name}')
    data = {'source': 'folder', 'path': str(folder), 'num_workers': 0}
    keys = {f'data.{key}': value for key, value in data.items()}
    keys |= {**SMALL, **SMALL_INPUTS[name], 'evaluation.batch_size': 8}
    if on_command_line:
        config = [f'--config=configs/imagenet.py:io_{name}']
        config += [f'--config.{key}={value}' for key, value in keys.items()]
        code, out, err = run(*config, '--mode=eval', f'--weights={weights}', f'--workdir={workdir}')
        result = load_result(workdir / 'evaluation.json')
        assert (code, err) == (0, '')
        assert out.endswith(
            f'{weights} does not say what its model is: its shapes are compared with config.model; '
            'heads, resolutions and divisors are taken to be as the config says.\n'
            f'1 process, 8 devices: cpu\ntop1 {result["value"]:.4f} at {weights.name}\n'
        )
        assert (workdir / 'evaluation.png').read_bytes().startswith(b'\x89PNG')
    else:
        config = imagenet.get_config(f'io_{name}')
        config.update_from_flattened_dict(keys)
        set_flags(monkeypatch, weights=str(weights), workdir=str(workdir))
        monkeypatch.setattr(ImageNet, 'draw', lambda *_, **__: None)  # takes as long as the rest
        launch.evaluate_weights(config, 'x')
        result = load_result(workdir / 'evaluation.json')

    # The reference's outputs for its inputs, and what the library makes of the same images.
    golden = read_arrays(OURS / f'imagenet_{name}.npz')
    inputs, outputs = golden['input|images'], golden['output']
    front_end = {**RELEASED[f'imagenet_{name}'].front_end, 'size': 16}
    arguments = image_model(json.loads(str(golden['config'])))
    model = load(weights, arguments=arguments, front_end=front_end)
    assert result['params_sha256'] == digest(flatten(model.params))
    prepared = [prepare_image(image, **front_end) for image in pixels]
    logits = np.asarray(model(np.concatenate([inputs, prepared])))
    difference, logits = logits[: len(inputs)] - outputs, logits[len(inputs) :]
    assert np.linalg.norm(difference) < 1e-5 * np.linalg.norm(outputs)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    right = np.argsort(-logits) == labels[:, None]
    assert result['metrics'] == pytest.approx(
        {
            'loss': -np.log(chances[np.arange(len(labels)), labels]).mean(),
            'top1': right[:, :1].any(-1).mean(),
            'top5': right[:, :5].any(-1).mean(),
        },
        rel=1e-5,
    )
    assert 0 < result['metrics']['top5'] < 1
    assert result['data'] == 'folder (15 images)' and result['examples'] == 15


@pytest.fixture
def weights_of_toy(tmp_path, monkeypatch):
    """A file that a run of the toy task can start from, in the place of a model's weights."""
    path = tmp_path / 'weights.npz'
    params, _ = jax.jit(ToyTask(get_config()).init)(jax.random.key(99))
    np.savez(path, **flatten_weights(params))

    def open_to_start(config, side):
        assert (config.init_from, side) == (str(path), 'config')
        task = ToyTask(config)
        fresh, state = jax.device_get(jax.jit(task.init)(jax.random.key(config.seed)))
        with np.load(path) as arrays:
            params = {**nest(arrays), 'output': fresh['output']}
        facts = dict(weights=str(path), params_sha256=digest(flatten(params)))
        facts |= dict(taken=42, resampled=0, new=24)
        facts |= dict(resampled_names=[], new_names=['output:w', 'output:b'])
        return task, loop.Start(facts, params, state)

    monkeypatch.setattr(open_model, 'open_to_start', open_to_start)
    monkeypatch.setattr(tasks, 'make_task', ToyTask)
    return path


def test_a_run_reads_the_weights_it_starts_from_once(tmp_path, monkeypatch, capsys, weights_of_toy):
    monkeypatch.setattr(report, 'write_report', lambda *_: None)  # which is slow

    def config():
        config = get_config(freeze=['mlp/~/linear_0:b'])
        config.init_from = str(weights_of_toy)
        config.optimizer.loaded_scale = 0.5
        return config

    def start(workdir, steps=()):
        set_flags(monkeypatch, workdir=str(tmp_path / workdir))
        capsys.readouterr()
        task, start = launch.start_of(settings := config())
        told = capsys.readouterr().out
        task.on_step = lambda step: stop(step) if step in steps else None
        launch.train(settings, task, 'toy', start)
        return told, start

    def stop(step):
        raise KeyboardInterrupt

    told, from_weights = start('alone')
    assert told == f'Parameters from {weights_of_toy}: 42 taken, 0 resampled, 24 new.\n'
    alone = load_result(tmp_path / 'alone' / 'result.json')
    saved = json.loads((tmp_path / 'alone' / 'config.json').read_text())
    assert saved.pop('started_from') == from_weights.facts
    assert saved['init_from'] == str(weights_of_toy)
    params, _, _ = load_params(tmp_path / 'alone')
    frozen, first = (x['mlp/~/linear_0']['b'] for x in (params, from_weights.params))
    np.testing.assert_array_equal(frozen, first)

    for before in ([0], [5]):  # before the first checkpoint the weights are needed again
        with pytest.raises(KeyboardInterrupt):
            start('stopped', before)
    weights_of_toy.unlink()
    told, resumed = start('stopped')
    assert told == '' and resumed == (from_weights.facts, None, None)
    result = load_result(tmp_path / 'stopped' / 'result.json')
    assert result['params_sha256'] == alone['params_sha256']
    saved = json.loads((tmp_path / 'stopped' / 'config.json').read_text())
    assert saved['started_from'] == from_weights.facts
