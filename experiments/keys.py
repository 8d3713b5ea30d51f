"""The keys of a config, with their values and with what the config file says of them."""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_COLUMN = 50  # where comments begin, unless a value is longer


class Note(NamedTuple):
    """What a config file says of a key where it is first set."""

    above: list[str]  # comments on the lines before
    beside: str  # the comment at the end of its line; empty: none
    value: str  # where there is such a comment, the value there, as it is written


def keys_table(config: Mapping[str, Any], source: str) -> str:
    """Lists the keys of a config, one a line, as they are set on the command line.

    Args:
      config: A config as nested dictionaries.
      source: The Python source of its file. Comments are taken from where it first sets a key; one
        that stands beside another value than the config's is told with that value.

    Returns:
      Lines such as "config.parallel = 'jit'  # or 'pmap'", in the order of the file, with an empty
      line between its parts.
    """
    notes = read_notes(source)
    places = {key: place for place, key in enumerate(notes)}

    def place(key: str) -> list[tuple[int, str]]:
        parts = key.split('.')
        prefixes = ['.'.join(parts[: i + 1]) for i in range(len(parts))]
        return [(places.get(prefix, len(places)), prefix) for prefix in prefixes]

    lines: list[str] = []
    before: list[str] = []
    leaves = dict(_leaves(config))
    for key in sorted(leaves, key=place):
        parts = key.split('.')
        if lines and parts[0] != before[0] and max(len(parts), len(before)) > 1:
            lines.append('')
        for i in range(1, len(parts)):
            section = notes.get('.'.join(parts[:i]))
            if section is not None and parts[:i] != before[:i]:
                lines += [f'# {x}' for x in (*section.above, section.beside) if x]
        note = notes.get(key, Note([], '', ''))
        lines += [f'# {x}' for x in note.above]
        line, beside = f'config.{key} = {leaves[key]!r}', note.beside
        if beside and _is_another(note.value, leaves[key]):
            beside = f'at {note.value}: {beside}'
        lines.append(f'{line:<{_COLUMN}}  # {beside}' if beside else line)
        before = parts
    return '\n'.join(lines)


def read_notes(source: str) -> dict[str, Note]:
    """Returns what a config file says of each key, in the order in which it first sets them.

    Args:
      source: The file's Python source: statements such as `config.train = dict(steps=3)`,
        `config.train.steps = 3` and `config.train.update(steps=3)`, in any of its functions.

    Returns:
      Notes by key, such as 'train' and 'train.steps'.
    """
    comments = _comments(source)
    notes: dict[str, Note] = {}
    settings = [x for x in ast.walk(ast.parse(source)) if isinstance(x, ast.Assign | ast.Expr)]
    for statement in sorted(settings, key=lambda x: x.lineno):
        found = list(_set_by(statement))
        beside = dict.fromkeys((key for key, _, _ in found), '')
        sections = {key.rpartition('.')[0] for key in beside}
        for line in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1):
            text, is_alone = comments.get(line, ('', False))
            here = [key for key, first, value in found if line in (first, value.end_lineno)]
            leaves = [key for key in here if key not in sections]
            # A comment is on the one key that its line sets; else on the part of several keys that
            # begins or ends there, or that they are of.
            if len(leaves) != 1:
                leaves = [key for key in here if key in sections] or [
                    key.rpartition('.')[0] for key in leaves
                ]
            if text and not is_alone and leaves and leaves[0]:
                beside[leaves[0]] = '; '.join(filter(None, (beside[leaves[0]], text)))
        told = set()  # lines; what stands above one is on the outermost key that begins there
        for key, first, value in found:
            above: list[str] = []
            while first not in told and comments.get(first - len(above) - 1, ('', False))[1]:
                above.append(comments[first - len(above) - 1][0])
            told.add(first)
            written = ast.get_source_segment(source, value) if beside[key] else None  # slow
            notes.setdefault(key, Note(above[::-1], beside[key], ' '.join((written or '').split())))
    return notes


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """Returns the comments by their lines, and whether each has its line for itself."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (token.string.lstrip('# '), token.line.lstrip().startswith('#'))
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _set_by(statement: ast.Assign | ast.Expr) -> Iterator[tuple[str, int, ast.expr]]:
    """Yields the keys that a statement sets: each with its line and its value, outer ones first."""
    value = statement.value
    if isinstance(statement, ast.Assign):
        key = _key(statement.targets[0])
        if key == '' and not ast.unparse(value).partition('(')[0].endswith('ConfigDict'):
            return  # another variable than the config
    elif (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr == 'update'
    ):
        key = _key(value.func.value)
    else:
        return
    if key is not None:
        yield from _within(key, statement.lineno, value)


def _within(key: str, line: int, value: ast.expr) -> Iterator[tuple[str, int, ast.expr]]:
    if key:
        yield key, line, value
    parts: list[tuple[str, int, ast.expr]] = []
    if isinstance(value, ast.Call):  # dict(steps=3), or a function's arguments of the same names
        parts = [(x.arg, x.lineno, x.value) for x in value.keywords if x.arg]
        value = value.args[0] if value.args else value
    if isinstance(value, ast.Dict):
        parts += [
            (name.value, name.lineno, part)
            for name, part in zip(value.keys, value.values, strict=True)
            if isinstance(name, ast.Constant) and isinstance(name.value, str)
        ]
    for name, first, part in parts:
        yield from _within(f'{key}.{name}' if key else name, first, part)


def _key(target: ast.expr) -> str | None:
    """Returns 'train.steps' for `config.train.steps` or `config['train']['steps']`; '' for a name.

    None: it is something else.
    """
    if isinstance(target, ast.Name):
        return ''
    name: object = None
    if isinstance(target, ast.Attribute):
        name = target.attr
    elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        name = target.slice.value
    if not isinstance(target, ast.Attribute | ast.Subscript) or not isinstance(name, str):
        return None
    outer = _key(target.value)
    return f'{outer}.{name}' if outer else None if outer is None else name


def _is_another(written: str, value: object) -> bool:
    """Returns whether a value that is written in the source is known, and not the one given."""
    try:
        return ast.literal_eval(written) != value
    except (ValueError, SyntaxError):  # an expression
        return False


def _leaves(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f'{prefix}{key}.')
        else:
            yield prefix + key, value
