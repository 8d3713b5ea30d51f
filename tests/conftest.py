"""Tests run on eight devices that the CPU is divided into, and compile a program once.

Where JAX_PLATFORMS names something else, those marked `gpu` run there, on one device. What has no
other tier is a unit test.
"""

import importlib.metadata
import os
import signal
import tempfile

import pytest

# What a script starts in the background ignores Ctrl-C, and the tests that send it would wait.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Arrays of different ranks do not broadcast: [B] losses times [B, K] weights are an error.
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
if os.environ.setdefault('JAX_PLATFORMS', 'cpu') == 'cpu':
    # Tests compile much and run each program for a moment: without LLVM's optimizations and the
    # slower of two ways to emit a fusion they take half of the time; and their processes keep the
    # cores busy without threads that share a compilation.
    os.environ['XLA_FLAGS'] = (
        '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
        ' --xla_cpu_parallel_codegen_split_count=1'
    )
    if importlib.metadata.version('jaxlib').startswith('0.10.'):  # newer ones abort: no such flag
        os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
else:
    # A GPU multiplies float32 in tf32, 11 bits of 24, unless it is told otherwise: tolerances are
    # those of float32. And the processes of pytest-xdist share its memory.
    os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

# Shared with pytest-xdist's workers and the processes that tests start.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix='jax_cache_')
    os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

os.environ['PYTHONPATH'] = os.pathsep.join(  # for the processes that tests start
    [os.path.dirname(os.path.dirname(__file__)), os.environ.get('PYTHONPATH', '')]
)


@pytest.hookimpl(tryfirst=True)  # before -m chooses among the markers
def pytest_collection_modifyitems(config, items):
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in ('golden', 'smoke')):
            item.add_marker('unit')
    if 'tpu' not in config.option.markexpr:  # these need libtpu: they run where -m asks for them
        for_tpus = [item for item in items if item.get_closest_marker('tpu')]
        config.hook.pytest_deselected(items=for_tpus)
        items[:] = [item for item in items if item not in for_tpus]
