"""What the processes of a run must have in common, compared before they work together.

Each computes its part of every batch: with another config or other code they would train to a wrong
result, and where one restores a checkpoint that another does not have, they would wait for ever.
"""

import contextlib
import hashlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import perceiver_jax
from experiments.paths import in_bucket
from experiments.training import parallel
from experiments.training.checks import differences
from perceiver_jax.errors import Refused

# Keys of the config that may differ: where data lies, and how it is read, is a host's own matter.
OWN_KEYS = ('data.path', 'data.num_workers')

_NAMED = 5  # differences in a message

Facts = Mapping[str, Any]  # what one process knows, as JSON


@contextlib.contextmanager
def agreement(config: ConfigDict, workdir: Path) -> Iterator[dict[str, int | str]]:
    """Compares this process with all others, which call it too and come to the same answer.

    Args:
      config: The run's configuration.
      workdir: The run's folder.

    Yields:
      A dictionary for what tells the data apart, such as {'number of training examples': 320}.
      Each process makes its own checks within: what one is refused, all are told.

    Raises:
      Refused: One cannot take part, or processes differ; the message says which, and in what.
      OSError: This process cannot take part.
    """
    data: dict[str, int | str] = {}
    refusal: Refused | OSError | None = None
    try:
        yield data
    except (Refused, OSError) as error:
        if parallel.num_processes() == 1:
            raise
        refusal = error
    if parallel.num_processes() == 1:
        return
    facts = {
        'host': socket.gethostname(),
        'refused': refusal and str(refusal),
        'config': config.to_dict(),
        'code': code_digests(),
        'data': data,
        'newest_step': newest_step(workdir),
        'workdir': str(workdir if in_bucket(workdir) else workdir.absolute()),
    }
    problem = disagreement(parallel.exchange(facts))
    if refusal and str(refusal) in str(problem):
        raise refusal
    if problem:
        raise Refused(problem)


def disagreement(facts: Sequence[Facts]) -> str | None:
    """Compares what the processes know.

    Args:
      facts: What `agreement` collects, by process.

    Returns:
      What keeps them from working together; None if nothing does.
    """
    first = facts[0]
    for number, other in enumerate(facts):
        differing = _differences(first, other)
        if differing:
            named, more = differing[:_NAMED], len(differing) - _NAMED
            if more > 0:
                named.append(f'and {more:,} more')
            return f'{_who(number, other)} differs from {_who(0, first)}: {"; ".join(named)}'
    for number, other in enumerate(facts):
        if other['refused']:
            return f'{_who(number, other)}: {other["refused"]}'
    for number, other in enumerate(facts):
        if other['newest_step'] != first['newest_step']:
            two = [_sight(number, other), _sight(0, first)]
            if first['newest_step'] is None:
                two.reverse()
            return f'{two[0]}, {two[1]}; all must see the same workdir'
    return None


def _who(number: int, facts: Facts) -> str:
    return f'process {number} on host {facts["host"]}'


def _sight(number: int, facts: Facts) -> str:
    step = facts['newest_step']
    seen = 'no checkpoint' if step is None else f'step {step:,} as the newest checkpoint'
    return f'{_who(number, facts)} sees {seen} in {facts["workdir"]}'


def _differences(first: Facts, other: Facts) -> list[str]:
    """Names what must not differ and does, with the other's value before the first's."""
    differing = [
        f'config.{key} is {theirs!r}, not {ours!r}'
        for key, (ours, theirs) in differences(first['config'], other['config']).items()
        if key not in OWN_KEYS
    ]
    ours, theirs = first['code'], other['code']
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            how = (
                'is missing' if name not in theirs else 'is new' if name not in ours else 'differs'
            )
            differing.append(f'the file {name} {how}')
    differing += [
        f'its {what} is {theirs!r}, not {first["data"][what]!r}'
        for what, theirs in other['data'].items()
        if theirs != first['data'].get(what, theirs)  # a refused one may have none
    ]
    return differing


def newest_step(workdir: Path) -> int | None:
    """Returns the step of the newest checkpoint in a run's folder; None if there is none."""
    steps = [int(path.name) for path in workdir.glob('checkpoints/*') if path.name.isdecimal()]
    return max(steps, default=None)


def code_digests() -> dict[str, str]:
    """Returns the sha256 of each of our source files by its name: 'experiments/launch.py'."""
    root = Path(__file__).parents[2]
    folders = (Path(perceiver_jax.__file__).parent, root / 'experiments', root / 'configs')
    return {
        (folder.name / path.relative_to(folder)).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for folder in folders
        for path in sorted(folder.rglob('*.py'))
    }
