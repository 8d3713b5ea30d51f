"""Configs by command line: the file that --config names, with the keys that other flags set."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.common import near_misses
from experiments.command_line import refuse


def check_config_file(config: str) -> None:
    """Raises Refused if there is no such config file.

    Args:
      config: The value of --config.
    """
    path, _, _ = config.partition(':')
    if not Path(path).is_file():
        configs = Path(__file__).resolve().parent.parent / 'configs'
        known = [x.stem for x in sorted(configs.glob('[!_]*.py')) if x.stem != 'common']
        refuse(f'No config file {path!r}. {near_misses(Path(path).stem, known)}')


def config_of(argv: Sequence[str]) -> ConfigDict:
    """Returns the config that a command line names, with the keys that it sets.

    Args:
      argv: --config=... and the flags of its keys, and nothing else.

    Raises:
      Refused: As `parse_config_flags` does; or a value is not of its type.
      Exception: Whatever else a config file raised: a bug in it.
    """
    argv, alone = ['', *argv], flags.FlagValues()
    holder = config_flags.DEFINE_config_file('config', flag_values=alone, sys_argv=argv)
    try:
        parse_config_flags(alone, argv)
    except flags.Error as error:
        refuse(str(error))
    replace_length(holder.value, config_flags.get_override_values(alone['config']))
    return holder.value


def parse_config_flags(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Parses flags of which one is --config.

    Args:
      values: The flags.
      argv: The command line, the program's name first.

    Returns:
      What is left of it without the flags.

    Raises:
      Refused: The config file raised ValueError, as configs do for what they do not know; or it has
        no such key.
      flags.Error: A flag is unknown, or its value is not of its type.
      Exception: Whatever else a config file raised: a bug in it.
    """
    try:
        rest = values(argv)
    except flags.IllegalFlagValueError as error:
        if 'Error whilst parsing config file' not in str(error):
            raise
        first = first_of_chain(error)
        if isinstance(first, ValueError):
            refuse(str(first))
        raise first from None
    except (KeyError, AttributeError) as error:
        key = str(first_of_chain(error)).strip("'")  # the others hold ml_collections' hint too
        flag = next((x for x in argv if key in x.partition('=')[0].split('.')), None)
        if flag is None:  # not a key of the command line: a bug in the config file
            raise
        hint = re.search('Did you mean "(.*?)"', str(error))
        suggestion = f' Did you mean {hint[1]}?' if hint else ''
        refuse(f'Unknown key {key!r} in {flag}.{suggestion}')
    except ValueError as error:  # ml_collections: keys below one that holds no keys
        refuse(str(error))
    return rest


def replace_length(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Has --config.train.steps replace the config's epochs, and the other way round.

    Args:
      config: The config; changed in place.
      overrides: Keys that the command line set, and their values.
    """
    for given, other in (('steps', 'epochs'), ('epochs', 'steps')):
        if f'train.{given}' in overrides and f'train.{other}' not in overrides:
            with config.ignore_type():
                config.train[other] = None


def first_of_chain(error: BaseException) -> BaseException:
    """Returns the exception that started a chain.

    ml_collections wraps what a config raises, twice, with its traceback as text; and a missing key,
    with the nearest known one as text.

    Args:
      error: The last exception of the chain.
    """
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
    return error
