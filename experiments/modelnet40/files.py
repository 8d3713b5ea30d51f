"""Clouds of points, read from files."""

import io
import re

import numpy as np

from perceiver_jax.errors import Refused


def read_cloud(encoded: bytes, num_points: int, rng: np.random.Generator, name: str) -> np.ndarray:
    """Reads points, or draws them of a mesh's surface, uniformly by area.

    Args:
      encoded: the file: a mesh (.off), or points: an array (.npy) or text (.txt), a row or line a
        point, of which the first three numbers count.
      num_points: drawn of a mesh; of points that are there, at most so many are taken.
      rng: random numbers.
      name: of the file, by whose ending it is read.

    Returns:
      float32 [num_points or less, 3], in random order.

    Raises:
      ValueError: if it cannot be read; names the file.
    """
    ending = name.lower().rpartition('.')[-1]
    if ending not in ('off', 'npy', 'txt'):
        raise Refused(f'{name}: expected an .off, .npy or .txt file')
    try:
        if ending == 'off':
            points = _sample_surface(encoded, num_points, rng)
        elif ending == 'npy':
            points = np.load(io.BytesIO(encoded))
        else:
            points = np.loadtxt(io.StringIO(encoded.decode().replace(',', ' ')), ndmin=2)
    except Exception as error:  # whatever the libraries make of a damaged file
        raise Refused(f'{name}: {error}') from error
    return some_points(points, num_points, rng, name)


def some_points(
    points: np.ndarray, num_points: int, rng: np.random.Generator, name: str
) -> np.ndarray:
    """At most `num_points` of an array [P, 3 or more], in random order; see `read_cloud`."""
    if points.ndim != 2 or points.shape[1] < 3 or not len(points):
        raise Refused(f'{name}: expected points [P, 3 or more], got {points.shape}')
    points = points[rng.permutation(len(points))[:num_points], :3].astype(np.float32)
    if not np.isfinite(points).all():
        raise Refused(f'{name}: some of its coordinates are not finite')
    return points


def _sample_surface(off: bytes, num_points: int, rng: np.random.Generator) -> np.ndarray:
    """Draws points of the surface of a mesh, uniformly by area.

    Args:
      off: an .off file; also one of ModelNet40's in which the counts follow 'OFF' on its line.
      num_points: how many.
      rng: random numbers.

    Returns:
      float64 [num_points, 3].

    Raises:
      ValueError: if the file is cut, or the mesh has no area. Of other damage, trimesh's errors.
    """
    import trimesh  # each worker imports this file

    counts = re.search(rb'OFF(?:\s|#.*)*?(\d+)\s+(\d+)', off)
    if counts is None:
        raise Refused("expected 'OFF' and the numbers of vertices and faces")
    expected = sum(map(int, counts.groups()))
    # trimesh takes fewer faces than there should be.
    lines = off[counts.end() :].split(b'\n')[1:]
    found = sum(1 for line in lines if line.strip() and not line.lstrip().startswith(b'#'))
    if found < expected:
        raise Refused(f'it ends after {found} of {expected} vertices and faces')
    mesh = trimesh.load_mesh(io.BytesIO(off), file_type='off', process=False)
    if not mesh.area > 0:
        raise Refused(f'a mesh of {len(mesh.faces)} faces without area')
    return np.asarray(trimesh.sample.sample_surface(mesh, num_points, seed=rng)[0])
