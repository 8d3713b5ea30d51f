import contextlib

import jax
import jax.numpy as jnp
import pytest

from experiments.training import profiling
from experiments.training.profiling import (
    Kernel,
    Profile,
    UpdatesProfile,
    kernel_table,
    profile_of,
    read_profile,
    traced,
)
from perceiver_jax.errors import Refused

pytestmark = pytest.mark.smoke


def trace_of(planes):
    """A trace as jax's profiler makes it: {plane: {line: [(event, start, duration)]}}, in ns."""
    names = sorted({x for lines in planes.values() for xs in lines.values() for x, _, _ in xs})
    text = ''
    for plane, lines in planes.items():
        text += f"planes {{ name: '{plane}' "
        for number, name in enumerate(names, 1):
            text += f"event_metadata {{ key: {number} value {{ id: {number} name: '{name}' }} }} "
        for line, events in lines.items():
            text += f"lines {{ name: '{line}' timestamp_ns: 1000 "
            for name, start, duration in events:
                text += f'events {{ metadata_id: {names.index(name) + 1} '
                text += f'offset_ps: {1000 * start} duration_ps: {1000 * duration} }} '
            text += '} '
        text += '} '
    return jax.profiler.ProfileData.from_serialized_xspace(
        jax.profiler.ProfileData.text_proto_to_serialized_xspace(text)
    )


def test_kernels_of_gpus_are_added_up_over_streams_and_devices():
    kernels = [('loop_add_fusion_3', 0, 300), ('MemcpyD2D', 300, 50), ('loop_add_fusion', 400, 100)]
    product = 'void cutlass::Kernel2<gemm_bf16_128x64>(cutlass::Params)'
    profile = profile_of(
        trace_of(
            {
                '/device:GPU:0': {
                    'Stream #13(Compute,MemcpyD2D)': kernels,
                    'XLA Modules': [('jit_update', 0, 900)],
                },
                '/device:GPU:1': {'Stream #4(Compute)': [(product, 10, 550)]},
                '/host:CPU': {'python': [('dot.1', 0, 900)]},
            }
        )
    )
    assert profile.kernels == [
        Kernel('cutlass::Kernel2<gemm_bf16_128x64>', 1, pytest.approx(550e-9)),
        Kernel('loop_add_fusion', 2, pytest.approx(400e-9)),
        Kernel('MemcpyD2D', 1, pytest.approx(50e-9)),
    ]
    assert profile.seconds == pytest.approx(1000e-9)
    assert profile.num_devices == 2


def test_a_loop_of_a_tpu_is_not_counted_beside_what_runs_in_it():
    operations = [
        ('%while.2 = (s32[], f32[7]) while(%tuple)', 0, 700),
        ('%fusion.3 = f32[7] fusion(%x)', 100, 200),
        ('%fusion.4.remat = f32[7] fusion(%x)', 400, 250),
        ('%call.1 = f32[7] call(%x)', 800, 100),
    ]
    lines = {'XLA Ops': operations, 'Steps': [('1', 0, 1000)], 'Async XLA Ops': operations[3:]}
    profile = profile_of(trace_of({'/device:TPU:0': lines}))
    assert profile.kernels == [
        Kernel('fusion', 2, pytest.approx(450e-9)),
        Kernel('call', 1, pytest.approx(100e-9)),
    ]


def test_a_trace_of_the_cpu_holds_each_operation_once(tmp_path):
    @jax.jit
    def program(x):
        x, _ = jax.lax.scan(lambda carry, _: (jnp.sort(carry, axis=0) * 0.9, None), x, length=5)
        return jnp.fft.fft(x).real

    x = jnp.ones((64, 64))
    jax.block_until_ready(program(x))
    with pytest.raises(FileNotFoundError, match='no trace'):
        read_profile(tmp_path)
    for _ in range(2):  # the newer one counts
        with traced(tmp_path):
            jax.block_until_ready([program(x) for _ in range(3)])
    profile = read_profile(tmp_path)
    calls = {kernel.name: kernel.calls for kernel in profile.kernels}
    assert calls['sort'] == 3 * 5
    assert calls['fft'] == 3
    assert 'while' not in calls
    assert profile.num_devices == 1
    seconds = [kernel.seconds for kernel in profile.kernels]
    assert seconds == sorted(seconds, reverse=True)
    assert profile.seconds == pytest.approx(sum(seconds))

    head, *rows, last = kernel_table(profile, steps=3, rows=2).splitlines()
    assert head.split() == ['ms', 'a', 'step', 'share', 'calls', 'kernel']
    assert len(rows) == 2
    milliseconds, share, per_step, name = rows[0].split()
    assert name == profile.kernels[0].name
    assert float(per_step) == calls[name] / 3
    assert float(milliseconds) == pytest.approx(1e3 * seconds[0] / 3, abs=0.006)
    assert share == f'{seconds[0] / profile.seconds:.1%}'
    assert last.endswith(f'all {len(calls)} kernels')


@pytest.mark.parametrize(
    ('num_steps', 'first_step', 'profiled', 'message'),
    [
        (3, 1, [3, 4, 5], 'The trace of 3 updates is in'),
        (6, 1, [3, 4, 5, 6, 7, 8], 'of 6 updates is in'),  # up to the evaluation
        (7, 1, [9, 10, 11, 12, 13, 14, 15], 'of 7 updates is in'),  # after it
        (1, 6, [8], 'of 1 update is in'),
        (8, 15, [17, 18, 19, 20], 'of 4 updates is in {}; the run ended before there were 8.'),
        (2, 20, [], 'No update was profiled; the run ended before there were 2.'),
        (0, 1, [], ''),
    ],
)
def test_updates_are_profiled_where_no_evaluation_lies_between_them(
    tmp_path, monkeypatch, capsys, num_steps, first_step, profiled, message
):
    traced_now, steps = [], []

    @contextlib.contextmanager
    def traced(folder):
        traced_now.append(folder)
        yield
        traced_now.clear()

    monkeypatch.setattr(profiling, 'traced', traced)
    monkeypatch.setattr(profiling, 'read_profile', lambda folder: Profile([], 0.0, 0))
    profiling.check_fits(num_steps, 8)
    profile = UpdatesProfile(
        tmp_path, num_steps, first_step=first_step, total_steps=20, evaluate_every_steps=8
    )
    for step in range(first_step, 21):
        profile.begin(step, jnp.zeros(()))
        steps += [step] if traced_now else []
        assert profile.end(step, jnp.zeros(())) >= 0
        assert not (traced_now and (step % 8 == 0 or step == 20))
    profile.close()
    assert steps == profiled
    assert message.format(tmp_path) in capsys.readouterr().out


def test_more_updates_than_lie_between_two_evaluations_are_refused():
    with pytest.raises(Refused, match=r'--profile=9: at most .*evaluate_every_steps, 8 updates'):
        profiling.check_fits(9, 8)
