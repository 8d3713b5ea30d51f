"""Tables and lists as disks, editors and spreadsheets damage them."""

import random

from perceiver_jax.errors import Refused


def damaged(text, seed):
    """Damages a text in one of several ways, and encodes it in one of several encodings."""
    rng = random.Random(seed)
    place = rng.randrange(len(text))
    lines = text.split('\n')
    number = rng.randrange(len(lines))
    cut = [*lines[:number], lines[number][: rng.randrange(len(lines[number]) + 1)]]
    text = rng.choice(
        [
            text,
            text[:place],
            text[:place] + text[place + 3 :],
            text[:place] + 200_000 * 'x' + text[place:],
            text[:place] + rng.choice('\0",;\t\r\n#') + text[place:],
            '\n'.join([*cut, *lines[number + 1 :]]),
            '\n'.join([*lines, *lines[number:]]),
            text.replace('\n', rng.choice(['\r', '\r\n', ' \n\n'])),
        ]
    )
    encoded = text.encode(rng.choice(['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'latin-1']))
    if encoded and rng.random() < 0.2:
        encoded = encoded[: rng.randrange(len(encoded))] + bytes([rng.randrange(256)])
    return encoded


def check_reader(read, path, count=40):
    """Damages a file that a function reads: each time it is read, or refused by its name.

    Args:
      read: Function without arguments.
      path: The file; it is left as it was.
      count: How often it is damaged.
    """
    whole = path.read_bytes()
    read()
    refused = 0
    for seed in range(count):
        path.write_bytes(damaged(whole.decode(), seed))
        try:
            read()
        except Refused as error:
            assert path.name in str(error) and len(str(error)) < 1500, (seed, str(error)[:1500])
            refused += 1
    path.write_bytes(whole)
    assert count / 4 < refused < count
