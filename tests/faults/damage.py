"""Damage that is done to files: each by a seed, so that a case can be looked at again."""

import copy
import json
import random

import numpy as np

from tests.toys import damaged_tables

OTHER_KINDS = (
    b'',
    b'\0',
    b'\n',
    b'{}',
    b'[]',
    b'hello, world\n',
    b'\xff\xfe' + 2000 * b'\xd8\x00',
    b'\x80' * 200_000,
    b'\x89PNG\r\n\x1a\n' + bytes(range(64)),
    b'PK\x03\x04' + 90 * b'\0',
    b'\x80\x04}q\x00.',
    b'[' * 200_000,
    b'"' + 200_000 * b'x',
)
WRONG_VALUES = (
    None,
    True,
    -1,
    0,
    3.5,
    10**30,
    float('nan'),
    float('inf'),
    '',
    'x',
    'ä\0ö',
    100_000 * 'x',
    [],
    [None],
    [[1], 'x', {}],
    list(range(3000)),
    {},
    {'': None},
    {'x': {'y': 5000 * 'z'}},
)


def of_bytes(content, rng):
    """Cuts a file, or changes some of its bytes."""
    place = rng.randrange(max(len(content), 1))
    length = rng.choice([1, 1, 2, 8, 60])
    other = bytes(rng.randrange(256) for _ in range(length))
    at_begin = rng.randrange(min(len(content), 200) or 1)  # where headers are
    return rng.choice(
        [
            content[:place],
            content[:at_begin],
            content[:-length],
            content[:place] + other + content[place + length :],
            content[:at_begin] + other[:1] + content[at_begin + 1 :],
            content[:at_begin] + other[:1] + content[at_begin + 1 :],
            content[:at_begin] + other + content[at_begin + length :],
            content[:at_begin] + length * b'\xff' + content[at_begin + length :],
            content[:place] + length * b'\0' + content[place + length :],
            content[:place] + content[place + length :],
            content[:place] + other + content[place:],
            content + content[place:],
            rng.choice(OTHER_KINDS),
        ]
    )


def of_text(content, rng):
    """Damages a text as editors and disks do."""
    if rng.random() < 0.2:
        return of_bytes(content, rng)
    return damaged_tables.damaged(content.decode(), rng.randrange(2**30))


def of_json(content, rng):
    """Gives a place in a JSON file a value of another type, drops it, or damages its text."""
    if rng.random() < 0.3:
        return of_text(content, rng)
    tree = json.loads(content)
    places = list(_places(tree))
    if not places or rng.random() < 0.05:
        return _encoded(rng.choice(WRONG_VALUES))
    for _ in range(rng.choice([1, 1, 1, 3])):
        changed = copy.deepcopy(tree)
        path = rng.choice(places)
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        way = rng.random()
        if way < 0.7:
            parent[path[-1]] = rng.choice(WRONG_VALUES)
        elif way < 0.9:
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[f'{path[-1]}{rng.choice(["_", "", 9000 * "k"])}'] = parent.pop(path[-1])
        else:
            parent.append(parent[path[-1]])
    encoded = _encoded(changed)
    return encoded.replace(b'Infinity', b'1' + 5000 * b'0') if rng.random() < 0.1 else encoded


def of_arrays(arrays, rng):
    """Returns arrays by name, of which one has another type or shape, another name or is gone."""
    arrays = dict(arrays)
    name = rng.choice(sorted(arrays))
    array = np.asarray(arrays.pop(name))
    is_number = array.dtype.kind in 'biuf'
    changed = [
        None,
        array.ravel()[:1].reshape(()) if array.size else array,
        array[None],
        np.atleast_1d(array)[:0],
        np.atleast_1d(array)[:1],
        np.concatenate(2 * [np.atleast_1d(array)]),
        np.full(array.shape, 'x'),
        np.full(array.shape, b'\xff\xfe'),
        np.full(array.shape, 1j),
        np.full(array.shape, True),
        np.full(array.shape, -1),
        np.full(array.shape, 2**63, np.uint64),
        np.full(array.shape, np.nan, np.float32),
        np.full(array.shape, 1.5, np.float16),
        np.full(array.shape, 'NaT', 'datetime64[s]'),
        np.swapaxes(array, 0, -1) if array.ndim else array,
        -array.astype(float) if is_number else array,
    ]
    chosen = rng.choice(changed)
    if rng.random() < 0.1:
        name = f'{name}x'
    return arrays if chosen is None else {**arrays, name: chosen}


KINDS = {'bytes': of_bytes, 'text': of_text, 'json': of_json}


def damaged(content, kind, seed, wrong=None):
    """Damages the content of a file.

    Args:
      content: The bytes of a good file.
      kind: What it is, a key of `KINDS`.
      seed: Seed of the damage.
      wrong: Function of a `random.Random` that writes a sound file whose values are wrong; used for
        a third of the seeds.

    Returns:
      The bytes of the damaged file.
    """
    rng = random.Random(seed)
    if wrong is not None and seed % 3 == 0:
        return wrong(rng)
    return KINDS[kind](content, rng)


def _places(tree, path=()):
    children = tree.items() if isinstance(tree, dict) else ()
    children = enumerate(tree) if isinstance(tree, list) else children
    for key, child in children:
        yield (*path, key)
        yield from _places(child, (*path, key))


def _encoded(tree):
    return json.dumps(tree).encode()
