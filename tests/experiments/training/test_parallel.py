import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax._src.clusters import cloud_tpu_cluster

from experiments.training import loop, parallel, watch
from experiments.training.checkpointing import load_params
from experiments.training.lock import lock
from perceiver_jax.errors import Refused
from tests.toys import toy_process
from tests.toys.toy_process import wait_for_step
from tests.toys.toy_task import ToyTask, get_config

pytestmark = pytest.mark.smoke

HERE = socket.gethostname()


def free_port():
    with socket.socket() as sock:
        sock.bind(('localhost', 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def gone_afterwards(processes):
    """Has processes end with a test; where it waits in vain, what they have said is shown."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        try:
            yield
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            for process in processes:
                process.kill()
            raise AssertionError([process.communicate()[0] for process in processes]) from error


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Two processes of two devices each, stopped by Ctrl-C, resumed, and once more with pmap.

    Then they are given what does not go together, and at last one of them is killed.
    """
    address = f'localhost:{free_port()}'
    script = toy_process.__file__
    processes = [
        subprocess.Popen(
            [sys.executable, script, address, '2', str(i), tmp_path],
            env={**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    with gone_afterwards(processes):
        wait_for_step(tmp_path / 'jit', 4)
        processes[1].send_signal(signal.SIGINT)  # to one: the other must stop with it
        (tmp_path / 'locked').mkdir()
        with lock(tmp_path / 'locked'):
            toy_process.wait_for((tmp_path / 'done').exists)
        processes[1].kill()
        killed = time.monotonic()
        outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert time.monotonic() - killed < 30
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL], outputs
    assert outputs[0].splitlines()[-1] == (
        f'error: process 1 on host {HERE} has ended, and the others end with it; '
        'the same command in all of them resumes from the last checkpoint'
    )
    who = f'process {{}} on host {HERE}'
    seen = f'in {tmp_path}/apart'
    for output, told_by in zip(outputs, ('', f'{who.format(0)}: '), strict=True):
        assert [line for line in output.splitlines() if line.startswith('refused: ')] == [
            f'refused: {who.format(1)} differs from {who.format(0)}: config.seed is 8, not 7',
            f'refused: {who.format(1)} sees no checkpoint {seen}1, {who.format(0)} sees step 4 as '
            f'the newest checkpoint {seen}0; all must see the same workdir',
            f'refused: {told_by}{tmp_path}/locked: another run writes there, process '
            f'{os.getpid()} on host {HERE}',
        ]
    assert '\nstopped\n' in outputs[0] and '\ninterrupted\n' in outputs[1], outputs
    assert '2 processes, 4 devices: cpu\n' in outputs[0]
    assert not re.search(r'^(step|2 processes) ', outputs[1], re.MULTILINE)  # one reports

    for kind, steps in (('jit', 30), ('pmap', 4)):
        task = ToyTask(get_config(steps=steps, log_every_steps=1, **toy_process.SELDOM))
        task.broken = 3
        result = loop.train(task.config, task, tmp_path / 'one process', 'toy')
        theirs = json.loads((tmp_path / kind / 'result.json').read_text())
        assert theirs['steps'] == steps
        assert theirs['device'] == 'cpu x4'
        assert theirs['value'] == result['value']
        jax.tree.map(
            lambda actual, expected: np.testing.assert_allclose(actual, expected, rtol=1e-4),
            (load_params(tmp_path / kind)[0], read_metrics(tmp_path / kind)),
            (load_params(tmp_path / 'one process')[0], read_metrics(tmp_path / 'one process')),
        )
        shutil.rmtree(tmp_path / 'one process')


def read_metrics(workdir):
    """{split: {step: metrics that do not depend on the clock}}."""
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    names = ('loss', 'gradient_norm', 'broken_examples', 'top1', 'mean_logit')
    return {
        split: {r['step']: {k: r[k] for k in names if k in r} for r in rows if r['split'] == split}
        for split in ('train', 'eval')
    }


def test_prefetch_is_one_batch_ahead():
    put = []

    def batches():
        yield from 'abc'

    seen = []
    for batch in parallel.prefetch(batches(), put=lambda x: put.append(x) or x.upper()):
        seen.append((batch, ''.join(put)))
    assert seen == [('A', 'ab'), ('B', 'abc'), ('C', 'abc')]


@pytest.mark.parametrize('kind', ['jit', 'pmap'])
def test_devices_can_be_chosen(kind):
    chosen = jax.devices()[2:4]
    devices = parallel.make(kind, chosen)
    batch = np.arange(12.0).reshape(6, 2)
    weights = devices.replicate(np.array(3.0))
    outputs = devices.compile_predict(lambda w, _, x: {'y': w * x})(
        weights, weights, devices.put_batch(batch)
    )
    assert outputs['y'].devices() == set(chosen)
    np.testing.assert_array_equal(devices.gather(outputs)['y'], 3 * batch)
    np.testing.assert_array_equal(devices.fetch(weights), 3)


def test_unknown_kind():
    with pytest.raises(ValueError, match="config.parallel is 'pjit', it must be one of jit, pmap"):
        parallel.make('pjit')


# As they stand in the metadata of the second of two workers of a Cloud TPU.
METADATA = {
    'agent-worker-number': '1',
    'worker-network-endpoints': 'unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3',
    'tpu-env': "ACCELERATOR_TYPE: 'v3-16'\nWORKER_ID: '1'",
}
SECOND_OF_TWO = ('10.0.0.2:8482', 2, 1)


@pytest.fixture
def initialized(monkeypatch):
    """The arguments of the calls that joined processes, on a machine without a TPU."""
    calls = []
    monkeypatch.setattr(jax.distributed, 'initialize', lambda **_: calls.append(()))
    monkeypatch.setattr(watch, 'leave_at_once', lambda: None)
    monkeypatch.setattr(watch, 'initialize', lambda *args: calls.append(args))
    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', False)
    monkeypatch.setattr(cloud_tpu_cluster, 'get_metadata', lambda key: pytest.fail(key))
    for name in os.environ:
        if name.startswith(('SLURM_', 'OMPI_', 'TPU_', 'MEGASCALE_')):
            monkeypatch.delenv(name)
    return calls


@pytest.fixture
def metadata(initialized, monkeypatch):
    """What the server of a Cloud TPU's VM answers."""
    answers = dict(METADATA)
    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
    monkeypatch.setattr(cloud_tpu_cluster, 'get_metadata', lambda key: (answers[key], 200))
    return answers


@pytest.mark.parametrize(
    ('name', 'one', 'several'),
    [('SLURM_STEP_NUM_TASKS', '1', '4'), ('OMPI_COMM_WORLD_SIZE', '1', '2')],
)
def test_several_processes_of_a_launcher_are_found(initialized, monkeypatch, name, one, several):
    monkeypatch.setenv('SLURM_NTASKS', '4')  # a shell within an allocation has it too
    parallel.initialize()
    monkeypatch.setenv(name, one)
    parallel.initialize()
    assert initialized == []
    monkeypatch.setenv(name, several)
    parallel.initialize()
    assert initialized == [()]


def test_workers_of_a_tpu_vm_are_found(initialized, metadata):
    metadata['worker-network-endpoints'] = '10.0.0.3'
    parallel.initialize()
    assert initialized == []
    metadata.update(METADATA)
    parallel.initialize()
    assert initialized == [SECOND_OF_TWO]
    slices = "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'"
    metadata['tpu-env'] = f"{slices}\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.9'"
    parallel.initialize()
    assert initialized == [SECOND_OF_TWO, ('10.0.0.9:8482', 4, 3)]
    metadata['worker-network-endpoints'] = 'a:b'
    with pytest.raises(Refused, match='of this TPU: unsupported .* a:b; tell each of them --coord'):
        parallel.initialize()


def test_workers_on_gke_are_found(initialized, metadata, monkeypatch):
    monkeypatch.setenv('TPU_WORKER_ID', '1')
    monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'localhost')
    parallel.initialize()
    assert initialized == []  # though the node's own metadata tell of two
    monkeypatch.setenv('TPU_WORKER_HOSTNAMES', '10.0.0.2,10.0.0.3')
    parallel.initialize()
    assert initialized == [SECOND_OF_TWO]


def test_where_jax_cannot_tell_the_workers_of_gke_are_found(initialized, monkeypatch, caplog):
    def no_answer(key):
        raise ConnectionError(f'no {key}')

    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
    monkeypatch.setattr(cloud_tpu_cluster, 'get_metadata', no_answer)
    parallel.initialize()
    (message,) = caplog.messages
    assert message == 'other workers of this TPU are not looked for: no agent-worker-number'
    monkeypatch.setitem(sys.modules, 'jax._src.clusters', None)  # jax has moved it
    parallel.initialize()
    assert initialized == []
    monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'host0,host1')
    parallel.initialize()
    assert initialized == [()]


def test_processes_that_jax_does_not_find_are_to_be_told(initialized, monkeypatch):
    def fail(**_):
        raise ValueError('coordinator_address should be defined.')

    monkeypatch.setattr(jax.distributed, 'initialize', fail)
    with pytest.raises(Refused, match='should be defined.; tell each of them --coordinator=host'):
        parallel.initialize('auto')
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(Refused, match='devices are of 2 processes, which have not joined; tell'):
        parallel.say_who_takes_part()


def test_who_takes_part_is_said(monkeypatch, capsys):
    parallel.say_who_takes_part()
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'device_count', lambda: 1024)
    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    parallel.say_who_takes_part()
    assert capsys.readouterr().out == (
        '1 process, 8 devices: cpu\n2 processes, 1,024 devices: cpu\n'
    )


def test_processes_can_be_told(initialized):
    parallel.initialize('host:1234', 2, 0)
    parallel.initialize('auto')
    assert initialized == [('host:1234', 2, 0), ()]
    with pytest.raises(ValueError, match='go together, got host:1234, 2, None'):
        parallel.initialize('host:1234', 2)
