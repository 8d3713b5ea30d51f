"""Hardware that a config can be compiled for on a machine without it: what it has, how it is named.

XLA compiles for TPUs with the package libtpu, and for NVIDIA's GPUs with jax's CUDA 13 plugin; no
device, driver or network is needed. The names are those by which Google Cloud rents TPU slices,
and those of NVIDIA's cards, with their number behind an x.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.common import near_misses
from experiments.command_line import refuse

# Share of the peak at which time is estimated: ImageNet's models reached 0.35 to 0.41 on an H200.
SHARE_OF_PEAK = 0.4

_CARDS = Path(__file__).with_name('gpus')

# What of a GPU's memory the launcher can have: a CUDA context, and what libraries keep, stay out.
GPU_SHARE = 0.92
GPU_DEFAULT_SHARE = 0.75  # what jax takes where XLA_PYTHON_CLIENT_MEM_FRACTION says nothing

# By number of chips.
_TOPOLOGIES_2D = {
    **{1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8'},
    **{128: '8x16', 256: '16x16', 512: '16x32', 1024: '32x32'},
}
_TOPOLOGIES_3D = {
    **{4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8'},
    **{256: '4x8x8', 512: '8x8x8', 1024: '8x8x16'},
}


@dataclasses.dataclass(frozen=True)
class Device:
    """One device as jax counts them.

    Attributes:
      memory: Bytes that a program can use.
      preallocated: Bytes that jax takes by itself.
      flops: Peak operations per second of bfloat16 products that are added up in float32.
      float32_flops: The same of float32 products in the precision that XLA takes by itself.
    """

    memory: float
    preallocated: float
    flops: float
    float32_flops: float


@dataclasses.dataclass(frozen=True)
class Slice:
    """A kind of TPU slice.

    Attributes:
      device: What each device has.
      sizes: Topology of the slices, by their number of chips.
      named: How many of a chip the name counts: 2 where it counts cores, 1 where it counts chips.
      devices: How many devices of jax a chip makes.
      chip_config: What libtpu calls that.
    """

    device: Device
    sizes: dict[int, str]
    named: int
    devices: int
    chip_config: str = 'default'


def _tpu(gibibytes: float, teraflops: float) -> Device:
    # Float32 products are one pass in bfloat16 unless jax_default_matmul_precision says otherwise.
    return Device(*2 * [gibibytes * 2**30], *2 * [teraflops * 1e12])


def _some(topologies: dict[int, str], *sizes: int) -> dict[int, str]:
    return {size: topologies[size] for size in sizes}


# Memory: what libtpu 0.0.42.1 says a program can use. Peaks: cloud.google.com/tpu/docs/v2, v3, v4,
# v5e, v5p, v6e, per chip; a core of v2 or v3 has half of it.
SLICES = {
    'v2': Slice(_tpu(7.48, 22.5), _some(_TOPOLOGIES_2D, 4, 16, 64, 128, 256), 2, 2),
    'v3': Slice(_tpu(15.48, 61.5), _some(_TOPOLOGIES_2D, 4, 16, 32, 64, 128, 256, 512, 1024), 2, 2),
    'v4': Slice(_tpu(30.75, 275), _TOPOLOGIES_3D, 2, 1, 'megacore'),
    'v5e': Slice(_tpu(15.75, 197), _some(_TOPOLOGIES_2D, 1, 4, 8, 16, 32, 64, 128, 256), 1, 1),
    'v5p': Slice(_tpu(95.74, 459), _TOPOLOGIES_3D, 2, 1),
    'v6e': Slice(_tpu(31.25, 918), _some(_TOPOLOGIES_2D, 1, 4, 8, 16, 32, 64, 128, 256), 1, 1),
}

# Peaks without sparsity, in bfloat16 and TF32: NVIDIA's data sheets of A100, H100 SXM, H200 SXM and
# HGX B200, and the Ada whitepaper. What else XLA asks of a card is in gpus/*.txtpb.
_GPU_TERAFLOPS = {
    'a100': (312, 156),
    'a100-40gb': (312, 156),
    'b200': (2250, 1125),
    'h100': (989.4, 494.7),
    'h200': (989.4, 494.7),
    'rtx4090': (165.2, 82.6),
}
GPUS_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      name: As it was asked for: 'v3-64', 'h100x8'.
      platform: 'tpu' or 'gpu'.
      compiler: The package that compiles for them.
      num_devices: How many devices there are.
      device: What each has.
      options: What jax's `get_topology_desc` is given.
    """

    name: str
    platform: str
    compiler: str
    num_devices: int
    device: Device
    options: dict[str, Any]

    def devices(self) -> Sequence[Any]:
        """Returns the devices, which can be compiled for and hold nothing.

        Raises:
          Refused: Another process of this machine is compiling for TPUs.
        """
        from jax.experimental import topologies

        try:
            return topologies.get_topology_desc(**self.options).devices
        except Exception as error:  # of several kinds, and with libtpu's text
            if 'libtpu' in str(error) and 'lock' in str(error):
                refuse(_LOCKED)
            raise


_EXTRAS = {
    'libtpu': ('compile', ''),
    'jax-cuda13-plugin': ('compile-gpu', ', in an environment of its own with Python 3.12'),
}
_LOCKED = (
    'another process of this machine uses libtpu, which one process at a time may: wait for it, '
    'or set ALLOW_MULTIPLE_LIBTPU_LOAD=1'
)


def find(name: str) -> Target:
    """Finds the devices of a name.

    Args:
      name: 'v3-64', 'v5e-16', 'h100', 'h100x8'; 'v5litepod-16' is 'v5e-16'.

    Raises:
      Refused: There is no such hardware; the message names what is near.
    """
    asked = name.lower().replace('v5litepod', 'v5e')
    if found := re.fullmatch(rf'({"|".join(_GPU_TERAFLOPS)})(?:x([1-9]\d*))?', asked):
        return _gpus(name, found[1], int(found[2] or 1))
    kind, _, number = asked.partition('-')
    if kind in SLICES and number.isdecimal():
        slice_ = SLICES[kind]
        chips, rest = divmod(int(number), slice_.named)
        if not rest and chips in slice_.sizes:
            return _tpus(name, kind, chips)
    known = [f'{kind}-{n * x.named}' for kind, x in SLICES.items() for n in x.sizes]
    refuse(
        f'--target={name} names no hardware that is known. '
        f'{near_misses(asked, [*known, *_GPU_TERAFLOPS])} TPU slices are called like v3-64, and '
        'GPUs like h100 and h100x8'
    )


def prepare(target: Target) -> None:
    """Makes this process one that compiles for absent devices. Call it before jax is imported.

    Args:
      target: The devices.

    Raises:
      Refused: What compiles for them is not installed.
    """
    if importlib.util.find_spec(target.compiler.replace('-', '_')) is None:
        extra, where = _EXTRAS[target.compiler]
        refuse(
            f'--target={target.name}: {target.compiler}, which compiles for it, is not installed: '
            f"pip install '.[{extra}]'{where}"
        )
    os.environ |= {
        'JAX_PLATFORMS': 'cpu',  # of what this machine has
        'TPU_SKIP_MDS_QUERY': '1',  # else libtpu asks Google's servers what this machine is
        'TPU_ACCELERATOR_TYPE': 'v5litepod-4',  # and complains that it is none of theirs
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',  # there is no driver
    }


def _tpus(name: str, kind: str, chips: int) -> Target:
    slice_ = SLICES[kind]
    options: dict[str, Any] = {
        'topology_name': f'{kind}:{slice_.sizes[chips]}',
        'platform': 'tpu',
        'chip_config_name': slice_.chip_config,
    }
    if chips == 1:
        options['chips_per_host_bounds'] = (1, 1, 1)
    return Target(name, 'tpu', 'libtpu', chips * slice_.devices, slice_.device, options)


def _gpus(name: str, kind: str, count: int) -> Target:
    if count > GPUS_A_HOST and count % GPUS_A_HOST:
        refuse(f'--target={name}: a host has up to {GPUS_A_HOST} GPUs, several have that many each')
    hosts = max(count // GPUS_A_HOST, 1)
    card = (_CARDS / f'{kind}.txtpb').read_text()
    size = re.search(r'device_memory_size: (\d+)', card)
    assert size is not None, kind
    teraflops, float32 = _GPU_TERAFLOPS[kind]
    memory = int(size[1])
    device = Device(
        memory * GPU_SHARE, memory * GPU_DEFAULT_SHARE, teraflops * 1e12, float32 * 1e12
    )
    options = {
        'platform': 'cuda',
        'target_config': card,
        'topology': f'1x{hosts}x{count // hosts}',
    }
    return Target(name, 'gpu', 'jax-cuda13-plugin', count, device, options)
