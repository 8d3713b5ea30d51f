"""Names of hardware, and what of it is known."""

import math
import subprocess
import sys

import pytest

from experiments.planning import targets
from perceiver_jax.errors import Refused


@pytest.mark.parametrize(
    'name, num_devices, topology',
    [
        ('v2-8', 8, 'v2:2x2'),  # cores are devices
        ('v3-64', 64, 'v3:4x8'),
        ('v4-32', 16, 'v4:2x2x4'),  # two cores make a device
        ('v5p-8', 4, 'v5p:2x2x1'),
        ('v5e-1', 1, 'v5e:1x1'),
        ('v5litepod-16', 16, 'v5e:4x4'),  # chips
        ('v6e-8', 8, 'v6e:2x4'),
        ('V6E-8', 8, 'v6e:2x4'),
    ],
)
def test_slices_are_called_as_they_are_rented(name, num_devices, topology):
    target = targets.find(name)
    assert (target.platform, target.num_devices) == ('tpu', num_devices)
    assert target.options['topology_name'] == topology


@pytest.mark.parametrize(
    'name, num_devices, topology',
    [
        ('h100', 1, '1x1x1'),
        ('rtx4090', 1, '1x1x1'),
        ('a100-40gbx2', 2, '1x1x2'),
        ('h100x8', 8, '1x1x8'),
        ('b200x16', 16, '1x2x8'),
    ],
)
def test_gpus_are_called_by_their_card_and_their_number(name, num_devices, topology):
    target = targets.find(name)
    assert (target.platform, target.num_devices) == ('gpu', num_devices)
    assert target.options['topology'] == topology


def test_every_gpu_has_a_file_and_a_peak():
    files = {path.stem for path in targets._CARDS.glob('*.txtpb')}
    assert files == set(targets._GPU_TERAFLOPS)
    for name in files:
        device = targets.find(name).device
        assert 2**34 < device.preallocated < device.memory < 2**38
        assert device.float32_flops == pytest.approx(device.flops / 2)


def test_the_chips_of_every_slice_are_those_of_its_topology():
    for kind, family in targets.SLICES.items():
        for chips, topology in family.sizes.items():
            sides = [int(side) for side in topology.split('x')]
            assert chips == math.prod(sides), (kind, topology)


@pytest.mark.parametrize(
    'name, message',
    [
        ('v3-65', 'Did you mean v3-64'),
        ('v3-16', 'names no hardware'),  # two hosts of TPUv3 are not rented
        ('h1000', 'Did you mean h100'),
        ('h100x12', 'a host has up to 8 GPUs'),
        ('h100x0', 'names no hardware'),
        ('', 'Known: v2-8'),
        ('v3-', 'names no hardware'),
        ('v3-²', 'names no hardware'),
    ],
)
def test_unknown_hardware_is_refused_with_what_is_near(name, message):
    with pytest.raises(Refused, match=message):
        targets.find(name)


@pytest.mark.parametrize('name, extra', [('v3-8', 'compile'), ('h100', 'compile-gpu')])
def test_a_missing_compiler_says_what_to_install(name, extra, monkeypatch):
    monkeypatch.setattr(targets.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(Refused, match=rf"pip install '\.\[{extra}\]'"):
        targets.prepare(targets.find(name))


def test_finding_hardware_does_not_import_jax():
    script = 'import sys; from experiments.planning import targets; targets.find("v3-64")'
    script += '; print("jax" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.stdout.strip() == 'False', done.stderr


def test_another_compiler_at_work_is_explained(monkeypatch):
    from jax.experimental import topologies

    def locked(**options):
        raise RuntimeError(
            'ABORTED: Internal error when accessing libtpu multi-process lockfile. Run '
            '"$ sudo rm /tmp/libtpu_lockfile".'
        )

    monkeypatch.setattr(topologies, 'get_topology_desc', locked)
    with pytest.raises(Refused, match='ALLOW_MULTIPLE_LIBTPU_LOAD=1'):
        targets.find('v3-8').devices()
