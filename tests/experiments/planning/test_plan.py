"""Plans, with this machine's CPUs in the place of devices that are not there."""

import dataclasses
import json
import subprocess
import sys

import jax
import pytest

from configs import audioset, flow, imagenet, modelnet40
from experiments.planning import plan, targets
from experiments.tasks import make_task
from perceiver_jax.errors import Refused

pytestmark = pytest.mark.smoke

NAME = 'configs/imagenet.py:demo'


@dataclasses.dataclass(frozen=True)
class Here(targets.Target):
    """CPUs that have as much memory as a test says."""

    def devices(self):
        return jax.devices()[: self.num_devices]


def here(memory: float, num_devices: int = 4) -> Here:
    device = targets.Device(memory, 0.75 * memory, 100e9, 50e9)
    return Here('here', 'cpu', 'jaxlib', num_devices, device, {})


def demo(**train):
    config = imagenet.get_config('demo')
    config.train.update(train)
    return config


@pytest.fixture(scope='module')
def whole():
    return plan.make_plan(demo(), NAME, here(2**30))


def test_a_plan_sums_what_a_device_holds(whole):
    assert whole['fits'] and whole['remedy'] is None and whole['as_written']['fits']
    parameters = 171_916
    assert whole['parameters'] == 4 * parameters
    assert whole['optimizer'] >= 2 * whole['parameters']
    parts = ('parameters', 'optimizer', 'batches', 'temporaries', 'program')
    assert whole['training'] == sum(whole[part] for part in parts)
    assert whole['sum'] == max(whole['training'], whole['evaluation'])
    images = 64 // 4 * 8 * 8 * 4
    assert plan.NUM_BATCHES * images <= whole['batches'] < 2 * plan.NUM_BATCHES * images
    assert json.loads(json.dumps(whole)) == whole


def test_the_gradients_are_what_devices_exchange(whole):
    found = whole['collectives']
    assert set(found) <= {'all-reduce', 'all-reduce in loops'}
    total = sum(kind['bytes'] for kind in found.values())  # in loops, of one turn
    assert total == pytest.approx(whole['parameters'], rel=0.2)


def test_time_is_operations_over_a_share_of_the_peak(whole):
    forward = make_task(demo()).describe()['computed_flops']
    assert whole['flops'] == pytest.approx(3 * 64 * forward, rel=0.1)
    assert whole['evaluation_flops'] == pytest.approx(128 * forward, rel=1e-3)
    assert whole['seconds_per_step'] == pytest.approx(whole['flops'] / (0.4 * 50e9 * 4))
    assert whole['examples_per_second'] == pytest.approx(64 / whole['seconds_per_step'])


def test_a_plan_is_shown_as_a_table(whole):
    table = plan.plan_table(whole)
    assert 'compiled, not run' in table and 'of 1.00 GiB: fits' in table
    assert 'at 40% of the peak' in table and 'an estimate' in table


@pytest.fixture
def linear(whole, monkeypatch):
    """Programs whose temporaries grow with the examples that a device works on at a time."""
    measured = []

    def measure(config, target, devices):
        size = config.train.batch_size // (4 * config.train.accumulate_steps)
        grown = size / 16 * whole['temporaries']
        kept = whole['training'] - whole['temporaries']
        measured.append(size)
        has = target.device.memory
        parts = {key: whole[key] for key in ('temporaries', 'flops', 'collectives')}
        return {**parts, 'sum': kept + grown, 'has': has, 'fits': kept + grown <= has}

    monkeypatch.setattr(plan, '_measure', measure)
    return measured


def test_what_does_not_fit_is_made_to_fit_by_the_first_way_that_does(linear, whole, capsys):
    memory = whole['training'] - 0.4 * whole['temporaries']
    tight = plan.make_plan(demo(), NAME, here(memory))
    assert tight['as_written'] == {'fits': False, 'sum': whole['training'], 'has': memory}
    assert tight['fits'] and tight['remedy'] == '--config.train.accumulate_steps=2'
    assert tight['accumulate_steps'] == 2 and tight['sum'] <= memory
    assert 'tried with --config.train.accumulate_steps=2' in capsys.readouterr().err
    untouched = plan.make_plan(demo(), NAME, here(memory), make_fit=False)
    assert not untouched['fits'] and untouched['remedy'] is None


def test_every_remedy_is_tried_before_it_is_given_up(monkeypatch):
    def too_large(*_, **__):
        raise plan.TooLarge(3 * 2**30)

    monkeypatch.setattr(plan, '_compile', too_large)
    hopeless = plan.make_plan(demo(), NAME, here(2**30))
    assert not hopeless['fits'] and hopeless['remedy'] is None
    assert hopeless['sum'] == 3 * 2**30
    table = plan.plan_table(hopeless)
    assert 'does not fit: 3.00 GiB of 1.00 GiB' in table
    assert 'made to fit by' in table
    assert 'neither micro-batches, rematerialisation nor bfloat16' in table
    tried = [changes for changes, _ in plan._remedies(demo(), 4, {'sum': 3.0, 'has': 1.0})]
    assert list(tried[-1]) == [
        'train.accumulate_steps',
        'model.encoder.remat_blocks',
        'model.encoder.remat_cross_attends',
        'model.dtype',
    ]
    assert tried[0] == {'train.accumulate_steps': 4}
    assert tried[2] == {'train.accumulate_steps': 16}


@pytest.mark.parametrize('factor', [0.3, 1.0, 1.7, 9.0, 40.0])
def test_the_largest_batch_fits_and_one_a_sixteenth_larger_does_not(linear, whole, factor):
    memory = whole['training'] + (factor - 1) * whole['temporaries'] + 1
    most = plan.make_plan(demo(), NAME, here(memory), largest_batch=True)
    assert most['fits']
    fitting = int(16 * factor)
    assert fitting - max(fitting // 16, 1) < most['batch_size'] / 4 <= fitting
    assert len(linear) < 10


def test_no_batch_is_larger_than_configs_allow(linear):
    most = plan.make_plan(demo(), NAME, here(2**50), largest_batch=True)
    assert most['batch_size'] == 2**17


def test_the_largest_batch_of_what_never_fits_is_refused(linear):
    with pytest.raises(Refused, match='not even one example a device fits here'):
        plan.make_plan(demo(), NAME, here(2**10), largest_batch=True)


def test_what_cannot_be_compiled_is_refused():
    config = demo()
    config.parallel = 'pmap'
    with pytest.raises(Refused, match="config.parallel is 'pmap'"):
        plan.make_plan(config, NAME, here(2**30))
    with pytest.raises(Refused, match='config.train.batch_size is 30'):
        plan.make_plan(demo(batch_size=30), NAME, here(2**30))


@pytest.mark.parametrize('configs', [imagenet, audioset, modelnet40, flow])
def test_batches_have_the_shapes_of_real_ones(configs):
    config = configs.get_config('demo')
    config.train.batch_size, config.evaluation.batch_size = 4, 4
    task = make_task(config)
    for batches, shapes in zip(
        (task.train_batches(0), task.eval_batches()), plan.batch_shapes(config), strict=True
    ):
        batch = next(batches)
        batches.close()
        assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
            k: (x.shape, x.dtype) for k, x in shapes.items()
        }


def test_batches_of_the_papers_need_no_data():
    images, _ = plan.batch_shapes(imagenet.get_config('io_fourier'))
    assert images['image'].shape == (1024, 2, 224, 224, 3)  # pairs, to be mixed
    clips, whole = plan.batch_shapes(audioset.get_config('mel_video'))
    assert clips['video'].shape == (512, 32, 224, 224, 3)
    pairs, _ = plan.batch_shapes(flow.get_config('main'))
    assert pairs['frames'].shape == (512, 2, 368, 496, 3)
    points, _ = plan.batch_shapes(modelnet40.get_config('perceiver'))
    assert points['points'].shape == (512, 2048, 3)
    assert whole['video'].shape[0] == 16


@pytest.mark.parametrize(
    'message, needs',
    [
        (
            'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
            'temporaries (512.00G) exceeds available HBM (15.48G).',
            512 * 2**30,
        ),
        (
            'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory '
            'space hbm. Used 22.25G of 15.48G hbm. Exceeded hbm capacity by 6.77G.',
            22.25 * 2**30,
        ),
        ('RESOURCE_EXHAUSTED: of something else', None),
    ],
)
def test_out_of_memory_is_an_answer(message, needs):
    assert plan._needs(message) == needs


def test_collectives_are_counted_by_kind():
    hlo = """HloModule jit_update_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: f32[8]) -> f32[8] {
  ROOT %all-reduce.1 = f32[8]{0} all-reduce(%p), channel_id=1, to_apply=%add
}

%body (p: (f32[8])) -> (f32[8]) {
  %called = f32[8]{0} call(%p), to_apply=%inner
}

%once (p: f32[4]) -> f32[4] {
  ROOT %all-reduce.9 = f32[4]{0} all-reduce(%p), channel_id=9, to_apply=%add
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %all-reduce.2 = (f32[3,5]{1,0:T(8,128)}, bf16[7]{0}) all-reduce(%a, %b), channel_id=2
  %get-tuple-element = f32[3,5] get-tuple-element(%all-reduce.2), index=0
  %while.1 = (f32[8]) while(%e), condition=%less, body=%body, metadata={op_name="x"}
  %either = f32[4]{0} conditional(%f, %a, %b), branch_computations={%once, %other}
  %start = f32[]{:T(128)} all-reduce-start(%c), channel_id=3
  %done = f32[] all-reduce-done(%start)
  ROOT %all-gather.1 = f32[16]{0} all-gather(%d), dimensions={0}
}
"""
    assert plan.collectives(hlo) == {
        'all-gather': {'count': 1, 'bytes': 64},
        'all-reduce': {'count': 3, 'bytes': 94},
        'all-reduce in loops': {'count': 1, 'bytes': 32},
    }


@pytest.mark.tpu
@pytest.mark.parametrize(
    'target, num_devices', [('v3-8', 8), ('v4-8', 4), ('v5e-4', 4), ('v6e-1', 1)]
)
def test_a_run_is_compiled_for_tpus_that_are_not_there(target, num_devices):
    command = [sys.executable, '-m', 'experiments.launch', f'--config={NAME}', '--mode=compile']
    command += [f'--target={target}', '--json']
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout)
    assert (compiled['num_devices'], compiled['fits']) == (num_devices, True)
    assert compiled['temporaries'] > 2**20
    assert ('all-reduce' in compiled['collectives']) == (num_devices > 1)


@pytest.mark.tpu
def test_too_little_memory_for_the_compiler_is_an_answer():
    command = [sys.executable, '-m', 'experiments.launch', '--mode=compile', '--target=v5e-1']
    command += [f'--config={NAME}', '--config.train.batch_size=131072', '--json']
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout)
    assert not compiled['as_written']['fits']
    assert compiled['as_written']['sum'] > compiled['has']
    assert compiled['fits'] and compiled['remedy'].startswith('--config.train.accumulate_steps=')
