import json
import types

import jax
import numpy as np
import pytest

from experiments.results import load_result
from experiments.training import evaluate, loop, parallel
from experiments.training.checkpointing import digest, flatten
from experiments.training.lock import lock
from perceiver_jax.errors import Refused
from tests.toys.full_disk import full_disk
from tests.toys.toy_task import EVAL_EXAMPLES, ToyTask, get_config

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize('kind', ['jit', 'pmap'])
def test_evaluation_counts_every_example_once(kind):
    task = ToyTask(get_config())
    params, state = jax.jit(task.init)(jax.random.key(0))
    devices = parallel.make(kind)
    predict = evaluate.compile_predict(task, devices)
    actual, predictions = evaluate.evaluate(
        task, devices, predict, devices.replicate(params), devices.replicate(state)
    )
    batches = list(task.eval_batches())
    assert len(batches) == 3  # 37 examples in batches of 16: the last is padded
    examples = {k: np.concatenate([b[k] for b in batches])[:EVAL_EXAMPLES] for k in batches[0]}
    expected = task.summarise(jax.device_get(jax.jit(task.predict)(params, state, examples)))
    assert actual == pytest.approx(expected, rel=1e-5)
    assert predictions['label'].tolist() == examples['label'].tolist()


def test_examples_left_out_of_the_evaluation_are_told():
    task = ToyTask(get_config())
    with_mask = task.eval_batches

    def eval_batches():
        for batch in with_mask():
            yield batch | {'broken': np.arange(16) < 2, 'mask': batch['mask'] & (np.arange(16) > 1)}

    task.eval_batches = eval_batches
    task.summarise = lambda predictions: {'count': len(predictions['label'])}
    devices = parallel.make('jit')
    params, state = devices.replicate(jax.jit(task.init)(jax.random.key(0)))
    predict = evaluate.compile_predict(task, devices)
    numbers, _ = evaluate.evaluate(task, devices, predict, params, state)
    assert numbers == {'count': 37 - 3 * 2, 'broken_examples': 3 * 2}


def test_a_checkpoint_is_evaluated_as_the_run_did(tmp_path, capsys):
    config = get_config(log_every_steps=1)
    task = ToyTask(config)
    loop.train(config, task, tmp_path, 'toy')
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    by_step = {row['step']: row['top1'] for row in rows if row['split'] == 'eval'}
    assert by_step.keys() == {4, 6} and by_step[4] != by_step[6]
    config.parallel = 'pmap'
    for best in (False, True):
        with lock(tmp_path):  # a run that goes on does not keep anyone from evaluating it
            result = evaluate.evaluate_checkpoint(config, task, tmp_path, 'toy', best)
        assert result['step'] == (max(by_step, key=by_step.get) if best else 6)
        assert result['value'] == by_step[result['step']]
        assert json.loads((tmp_path / 'evaluation.json').read_text()) == result

    # The number is told where it cannot be written.
    told = f'1 process, 8 devices: cpu\ntop1 {by_step[6]:.4f} at step 6\n'
    capsys.readouterr()
    with full_disk(10), pytest.raises(OSError) as error:
        evaluate.evaluate_checkpoint(config, task, tmp_path, 'toy', False)
    assert error.value.filename == str(tmp_path / 'evaluation.json')
    assert capsys.readouterr().out == told

    init = task.init
    task.init = lambda rng: ({**init(rng)[0], 'new': {'w': rng}}, {})
    with pytest.raises(ValueError, match='does not fit the model. missing: params/new/w'):
        evaluate.evaluate_checkpoint(config, task, tmp_path, 'toy', False)


def test_weights_are_evaluated_into_a_folder_without_a_run(tmp_path, capsys):
    config = get_config()
    task = ToyTask(config)
    task.eval_paper_value = 0.75
    params, state = jax.device_get(jax.jit(task.init)(jax.random.key(3)))
    model = types.SimpleNamespace(params=params, state=state)
    result = evaluate.evaluate_weights(
        config, task, tmp_path / 'new', 'toy.py', '/data/x.pystate', model
    )
    assert load_result(tmp_path / 'new' / 'evaluation.json') == result
    assert (tmp_path / 'new' / 'evaluation.png').exists()
    assert result['value'] == result['metrics']['top1']
    assert result['params_sha256'] == digest(flatten(params))
    expected = dict(weights='/data/x.pystate', examples=EVAL_EXAMPLES, parameters=66, data='toy')
    assert {key: result[key] for key in expected} == expected
    assert capsys.readouterr().out == (
        f'1 process, 8 devices: cpu\ntop1 {result["value"]:.4f} (paper: 0.7500) at x.pystate\n'
    )
    again = evaluate.evaluate_weights(config, task, tmp_path / 'new', 'toy.py', 'y', model)
    assert load_result(tmp_path / 'new' / 'evaluation.json') == again

    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text('{}')
    with pytest.raises(Refused) as refused:
        evaluate.evaluate_weights(config, task, tmp_path / 'run', 'toy.py', 'x', model)
    assert str(refused.value) == (
        f'--workdir={tmp_path}/run holds a run, and --weights names other weights: choose another '
        'folder for their evaluation'
    )
