"""Reads tables and lists that users bring: text in any Unicode, and CSV."""

import codecs
import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from perceiver_jax.errors import Refused

# UTF-32 before UTF-16, whose mark its own begins with. Each of these codecs takes the mark off.
MARKS = {
    codecs.BOM_UTF8: 'utf-8-sig',
    codecs.BOM_UTF32_LE: 'utf-32',
    codecs.BOM_UTF32_BE: 'utf-32',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}


class Row(dict[str, str]):
    """A row of a table: a dictionary from columns to values.

    Attributes:
      place: The file and the line where the row begins, such as 'a.csv, line 3'.
    """

    place: str


def read_text(path: str | os.PathLike[str]) -> str:
    """Reads a text file, see `decode`.

    Args:
      path: The file.

    Returns:
      The text; its lines end in a line feed alone.

    Raises:
      Refused: The file is no text in Unicode; names the file and the line.
      OSError: The file cannot be read.
    """
    return decode(Path(path).read_bytes(), os.fspath(path))


def decode(content: bytes, name: str) -> str:
    """Decodes text: UTF-16 or UTF-32 where it begins with their mark, else UTF-8.

    Other encodings are refused. Nothing in a file tells them apart, and the wrong one would change
    names without a word.

    Args:
      content: The bytes of the file.
      name: Name of the file for error messages.

    Returns:
      The text without the mark; its lines end in a line feed alone.

    Raises:
      Refused: The text is in another encoding or holds a NUL; names the file and the line.
    """
    encoding = next((x for mark, x in MARKS.items() if content.startswith(mark)), 'utf-8')
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, 'ignore')
        expected = encoding.removesuffix('-sig').upper()
        raise Refused(
            f'{name}, line {_num_lines(before)}: expected {expected}, {error.reason} at byte '
            f'{error.start}; save the file as UTF-8'
        ) from error
    before, nul, _ = text.partition('\0')
    if nul:
        raise Refused(
            f'{name}, line {_num_lines(before)}: expected text, got a NUL; save the file as UTF-8'
        )
    return _with_plain_ends(text)


def read_table(path: str | os.PathLike[str], columns: Iterable[str]) -> list[Row]:
    """Reads a CSV file with a header.

    Args:
      path: The file, text as `decode` takes it; the values are separated by commas.
      columns: Columns that the table needs.

    Returns:
      The rows, with all their columns. Empty ones are left out.

    Raises:
      Refused: The file is no such table: a column is missing, a row is cut or has values without a
        column, a quote is not closed. Names the file and the line.
      OSError: The file cannot be read.
    """
    columns = sorted(set(columns))
    # Strict, or a quote that is not closed would swallow the rows behind it.
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    header: list[str] = []
    rows: list[Row] = []
    while True:
        place = f'{path}, line {reader.line_num + 1}'
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise Refused(f'{place}: {error}; is each quote closed?') from error
        if values is None:
            break
        if not any(value.strip() for value in values):
            continue
        if not header:
            header = values
            while not header[-1].strip():  # of commas that stand in every row
                header.pop()
            if not set(columns) <= set(header):
                raise Refused(f'{place}: needs the columns {columns}, and has {header!r:.300}')
            if twice := [column for column in columns if header.count(column) > 1]:
                raise Refused(f'{place}: there are several columns {twice[0]!r}')
            continue
        if len(values) < len(header) or any(value.strip() for value in values[len(header) :]):
            raise Refused(
                f'{place}: expected {len(header)} values, as the header has, got {len(values)}'
            )
        row = Row(zip(header, values, strict=False))
        row.place = place
        for column in columns:
            if '\n' in row[column]:
                raise Refused(f'{place}: {column!r} goes over several lines; is each quote closed?')
        rows.append(row)
    if not rows:
        raise Refused(f'{path}: needs rows of the columns {columns}, and has none')
    return rows


def read_names(path: Path) -> list[str]:
    """Reads the names of classes, in order.

    Args:
      path: A text file with one name a line; a .csv with a header and a column `name`, or with
        AudioSet's columns `index` and `display_name`.

    Raises:
      Refused: The file is no such file; names it and the line.
      OSError: The file cannot be read.
    """
    if path.suffix.lower() != '.csv':
        return [line for line in read_text(path).split('\n') if line.strip()]
    rows = read_table(path, ())
    column = next((x for x in ('name', 'display_name') if x in rows[0]), None)
    if column is None:
        raise Refused(
            f'{path}: expected a column `name`, or `index` and `display_name` as in AudioSet, '
            f'got {list(rows[0])!r:.300}'
        )
    for number, row in enumerate(rows):
        if column == 'display_name' and row.get('index') != str(number):
            raise Refused(f'{row.place}: expected index {number}, got {row.get("index")!r:.80}')
        if not row[column]:
            raise Refused(f'{row.place}: there is no name')
    return [row[column] for row in rows]


def _num_lines(text: str) -> int:
    return _with_plain_ends(text).count('\n') + 1


def _with_plain_ends(text: str) -> str:
    return text.replace('\r\n', '\n').replace('\r', '\n')
