"""Converts weights from one format to another.

    python -m experiments.convert optical_flow_checkpoint.pystate flow       # to a folder of ours
    python -m experiments.convert runs/io_fourier io_fourier.stablehlo       # to a program
    python -m experiments.convert runs/io_fourier hub/model.safetensors      # for from_pretrained

The first is a run's folder or any weights; the ending of the second says what to write. Beside a
file called model.safetensors, which is where transformers looks, its config.json is written too.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.command_line import Parser, local_path, one_line_errors, run_path
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json, whole

FORMATS = {
    '': 'a folder with weights.safetensors and model.json, for perceiver_jax.load',
    '.pystate': "DeepMind's pickle, as released",
    '.pickle': "DeepMind's pickle, under another ending",
    '.safetensors': "Hugging Face transformers' names and layouts; model.safetensors: its folder",
    '.stablehlo': 'a StableHLO program with the weights inside, for jax.export.deserialize',
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
      argv: Arguments of the command line; None takes this process's own.
    """
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='\n'.join(f'{suffix or "(none)":<14}{text}' for suffix, text in FORMATS.items()),
    )
    parser.add_argument('source', help="a run's folder, or a file or folder of weights")
    parser.add_argument('target', help='what to write; its ending says the format')
    parser.add_argument('--best', action='store_true', help="a run's best checkpoint, not its last")
    parser.add_argument(
        '--conv_kernel',
        choices=('hub', 'transformers'),
        help="layout of the 7x7 kernel in Hugging Face's files, read or written: that of the hub's "
        'file, height and width swapped (read by default), or that of transformers',
    )
    args = parser.parse_args(argv)
    with one_line_errors():
        source, target = run_path(args.source, 'source'), local_path(args.target, 'target')
        convert(source, Path(target), best=args.best, conv_kernel=args.conv_kernel)
    print(f'wrote {target}')


def convert(
    source: str, target: Path, *, best: bool = False, conv_kernel: str | None = None
) -> None:
    """Reads weights and writes them in the format of the target's ending.

    A target called 'model.safetensors' gets a config.json beside it, so that `from_pretrained` of
    transformers takes the folder: one that is there stays if it means the same model. A file of
    another name is written alone, and takes models that a config.json cannot express.

    Args:
      source: A run's folder, or a file or folder of weights.
      target: The file or folder to write; its ending is a key of `FORMATS`.
      best: Whether to take a run's best checkpoint instead of its last.
      conv_kernel: Layout of the 7x7 kernel in Hugging Face's files, 'hub' or 'transformers'; None
        reads 'hub', and refuses to write a file with such a kernel.

    Raises:
      Refused: The ending is unknown, or the format's release has no such model: none of the same
        function with the same names of parameters. Or a config.json cannot express the model, or
        another lies there; nothing is written then.
    """
    from experiments.open_model import open_model
    from perceiver_jax.weights import foreign_files, translation

    if target.suffix not in FORMATS:
        raise Refused(
            f'{target} ends in {target.suffix!r}; known endings are {sorted(FORMATS)[1:]}, and none'
        )
    model = open_model(source, best=best, conv_kernel=conv_kernel or 'hub')
    if target.suffix == '':
        model.save(target)
    elif target.suffix == '.stablehlo':
        model.export(target)
    elif target.suffix == '.safetensors':
        if conv_kernel is None and 'inputs/conv7x7' in model.params:
            raise Refused(
                f'{target}: --conv_kernel=transformers writes the 7x7 kernel as transformers uses '
                "it, --conv_kernel=hub as the hub's file has it: choose one"
            )
        with _names_of('Hugging Face', model, source, target):
            tensors = translation.to_huggingface(
                model.params, model.state, conv_kernel=conv_kernel or 'hub'
            )
        with _config_beside(target, model):
            foreign_files.write_huggingface(target, tensors)
    else:
        with _names_of('DeepMind', model, source, target):
            trees = translation.to_deepmind(model.params, model.state)
        foreign_files.write_deepmind(target, *trees)


@contextlib.contextmanager
def _config_beside(target: Path, model: Any) -> Iterator[None]:
    """Writes a config.json where transformers looks for one, if the weights are written within."""
    if target.name != 'model.safetensors':
        yield
        return
    from perceiver_jax.weights import huggingface_config, translation
    from perceiver_jax.weights.trees import flatten

    kind = translation.recognise(flatten(model.params, model.state), 'ours')
    try:
        config = huggingface_config.to_config(
            kind, model.arguments, model.front_end, model.classes, model.activation
        )
    except Refused as error:
        raise Refused(
            f'{target}: a config.json beside it cannot express this model, {error} A folder of '
            'ours takes it, and a .safetensors of another name takes its weights alone'
        ) from error
    file = target.with_name('config.json')
    if file.exists():
        different = huggingface_config.differing_keys(config, read_json(file))
        if different:
            raise Refused(
                f'{file} is there and says another model, by {", ".join(different)}: write to '
                'another folder, or remove it'
            )
        yield
        return
    with whole(file) as unfinished:
        unfinished.write_text(json.dumps(config, indent=2, sort_keys=True) + '\n', 'utf-8')
        yield


@contextlib.contextmanager
def _names_of(owner: str, model: Any, source: str, target: Path) -> Iterator[None]:
    """Says so if somebody's release has no model to name the parameters as."""
    from perceiver_jax.weights.released import RELEASED

    problem = f'{target}: {owner} has no such model as {source}, of {model.function}'
    remedy = 'a folder or a .stablehlo takes any model'
    if model.function not in {released.function for released in RELEASED.values()}:
        raise Refused(f'{problem}; {remedy}')
    try:
        yield
    except Refused as error:
        raise Refused(f'{problem} with other parameters; {remedy}') from error


if __name__ == '__main__':
    main()
