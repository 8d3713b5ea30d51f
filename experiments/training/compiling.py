"""Compilation: programs are kept from one start to the next, and the compiler gets two tries."""

import glob
import hashlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.training import parallel
from perceiver_jax.errors import Refused

# jax keeps what took a second to compile, and of what it would do again some take less.
_KEPT_FROM_SECONDS = 0.2

# Of the folder that nobody has named. jax itself removes programs only with a package, filelock.
_MAX_BYTES = 4 * 2**30


def keep_programs(named: str | None, workdir: str | Path) -> None:
    """Has jax keep compiled programs in a folder, from which a later start takes them.

    A program is of one version of jax, one kind of devices (of CPUs, one set of instructions) and
    the flags of XLA. All processes call this: where only some of them found a program, those that
    compile it on GPUs would wait for the others.

    Args:
      named: The folder that the user named; '' for none. None: JAX_COMPILATION_CACHE_DIR of the
        environment, or else `perceiver_jax` in the user's cache directory.
      workdir: The run's folder, which is not for programs.

    Raises:
      Refused: The folder that was named cannot be written, or lies in the run's folder; in all
        processes if in one.
    """
    settings: Any = jax.config
    given = settings.jax_compilation_cache_dir if named is None else named
    if given and '://' in given:  # of the environment, and of all processes: jax's own matter
        return
    folder: Path | None = None
    problem = None
    if named != '' and settings.jax_enable_compilation_cache:
        folder = Path(given or default_folder())
        problem = _unwritable(folder, Path(workdir))
    views = parallel.exchange([problem, folder and _digest(folder)])
    problem = next((theirs for theirs, _ in views if theirs), None)
    if problem and named:
        raise Refused(f'--compilation_cache: {problem}')
    if not problem and any(view != views[0] for view in views):
        problem = 'the folder of --compilation_cache is not the same for all processes'
    if problem:
        parallel.say(f'{problem}: compiled programs are not kept')
    if problem or folder is None:
        settings.update('jax_compilation_cache_dir', None)
        return
    if not given and parallel.is_main_process():
        remove_oldest(folder, _MAX_BYTES)
    settings.update('jax_compilation_cache_dir', str(folder))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        settings.update('jax_persistent_cache_min_compile_time_secs', _KEPT_FROM_SECONDS)
    _tell_shortly(folder)
    parallel.say(f"Compiled programs are kept in {folder}; --compilation_cache='' keeps none.")


def default_folder() -> Path:
    """Returns `perceiver_jax` in the user's cache directory."""
    named = os.environ.get('XDG_CACHE_HOME', '')
    return Path(named if os.path.isabs(named) else os.path.expanduser('~/.cache'), 'perceiver_jax')


def remove_oldest(folder: Path, max_bytes: int) -> None:
    """Removes the programs that were not used for longest.

    Args:
      folder: The folder of the programs.
      max_bytes: What those that stay take at most.
    """
    programs = []
    for path in folder.glob('*-cache'):
        try:
            status = path.stat()
        except FileNotFoundError:  # another run has just removed it
            continue
        programs.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = 0
    for _, size, path in sorted(programs, reverse=True):
        total += size
        if total > max_bytes:
            path.unlink(missing_ok=True)


def tried_twice(function: Callable) -> Callable:
    """Has the first call of a function, which compiles it, made again if XLA's compiler fails.

    XLA's autotuner does at times, and not at the next try. A lack of memory, and what is wrong with
    the program, come with other errors.

    Args:
      function: What `jax.jit` or `jax.pmap` returned.

    Returns:
      The function; it raises what the second call raises.
    """
    called = False

    def call(*arguments: Any) -> Any:
        nonlocal called
        first, called = not called, True
        try:
            return function(*arguments)
        except jax.errors.JaxRuntimeError as error:
            arrays = [x for x in jax.tree.leaves(arguments) if isinstance(x, jax.Array)]
            compiled = any(x.is_deleted() for x in arrays)  # donated to the program, which ran
            if not first or compiled or not str(error).startswith('INTERNAL'):
                raise
            line = ' '.join(str(error).split())
            print(f'XLA failed and is tried once more: {line:.200}', file=sys.stderr)
        return function(*arguments)

    return call


def _unwritable(folder: Path, workdir: Path) -> str | None:
    """Says why programs cannot be kept in a folder, which is made; None if they can."""
    if workdir.resolve() in (folder.resolve(), *folder.resolve().parents):
        return f'{folder} lies in the workdir, which is not for it'
    if folder.parts[0] == '~':
        return f'{folder}: the user has no home folder'
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write there can run code
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f'{folder}: {error.strerror}'


def _digest(folder: Path) -> str:
    """Tells by their names which programs a folder holds."""
    names = sorted(path.name for path in folder.glob('*-cache'))
    return hashlib.sha256('\n'.join(names).encode()).hexdigest()


def _tell_shortly(folder: Path) -> None:
    """Has jax's warnings about its cache take one line, and what cannot be read be written anew.

    jax writes a program in place and never over another: one that was cut off, by a kill or a full
    disk, would stay as it is.
    """
    shown = warnings.showwarning

    def show(message: Any, *others: Any, **more: Any) -> None:
        pattern = "Error (reading|writing) persistent compilation cache entry for '(.*?)'(?s:.*)"
        found = re.fullmatch(pattern, str(message))
        if found is None:
            shown(message, *others, **more)
            return
        print(f'{folder}: {" ".join(str(message).split()):.200}', file=sys.stderr)
        for path in folder.glob(f'{glob.escape(found[2])}-*-cache'):
            path.unlink(missing_ok=True)

    warnings.showwarning = show
