import json

import jax
import numpy as np
import pytest

from experiments.training import evaluate, loop, parallel
from experiments.training.lock import lock
from tests.toys.full_disk import full_disk
from tests.toys.toy_task import EVAL_EXAMPLES, ToyTask, get_config


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
