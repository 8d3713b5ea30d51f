import pytest

from experiments.data.tables import decode, read_table, read_text
from perceiver_jax.errors import Refused
from tests.toys.damaged_tables import check_reader

TABLE = 'name,kind,take\nbär.wav,"door, wood",A\nb.wav,dog,B\n'


@pytest.mark.parametrize(
    'encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32', 'utf-16-le', 'utf-16-be']
)
def test_text_is_read_in_any_unicode(encoding):
    mark = '\ufeff' if encoding.endswith('e') else ''
    assert decode((mark + TABLE).encode(encoding), 'a.csv') == TABLE


@pytest.mark.parametrize('end', ['\r\n', '\r'])
def test_lines_end_alike(end):
    assert decode(TABLE.replace('\n', end).encode(), 'a.csv') == TABLE


@pytest.mark.parametrize(
    'content, message',
    [
        (TABLE.encode('latin-1'), 'a.csv, line 2: expected UTF-8, invalid .* at byte 16; save'),
        (TABLE.replace('\n', '\r\n').encode('cp1252'), 'a.csv, line 2: expected UTF-8'),
        (TABLE.encode('utf-16')[:-1], 'a.csv, line 3: expected UTF-16, truncated data'),
        (b'n\0a\0', 'a.csv, line 1: expected text, got a NUL; save'),
        (b'a\r\rb\0', 'a.csv, line 3: expected text, got a NUL'),
    ],
)
def test_other_text_is_refused_with_its_line(content, message):
    with pytest.raises(Refused, match=message):
        decode(content, 'a.csv')


def read(tmp_path, text, columns=('kind', 'name')):
    (tmp_path / 'a.csv').write_text(text, newline='')
    return read_table(tmp_path / 'a.csv', columns)


def test_rows_know_their_place(tmp_path):
    rows = read(tmp_path, '\n' + TABLE.replace('A\n', '"two\nlines"\n,,\n  \n'))
    assert rows == [
        {'name': 'bär.wav', 'kind': 'door, wood', 'take': 'two\nlines'},
        {'name': 'b.wav', 'kind': 'dog', 'take': 'B'},
    ]
    assert [row.place for row in rows] == [f'{tmp_path / "a.csv"}, line {n}' for n in (3, 7)]


@pytest.mark.parametrize(
    'text', ['name,kind,,\na,b,,\n', 'name,kind,,\na,b\n', 'name,kind\na,b, ,\n']
)
def test_commas_at_the_end_are_no_columns(tmp_path, text):
    (row,) = read(tmp_path, text)
    assert (row['name'], row['kind']) == ('a', 'b')


@pytest.mark.parametrize(
    'text, message',
    [
        ('', r"a.csv: needs rows of the columns \['kind', 'name'\], and has none"),
        ('name,kind\n\n', 'a.csv: needs rows of the columns'),
        ('\nname;kind\na;b\n', r"line 2: needs the columns .* and has \['name;kind'\]"),
        ('name,kind,name\na,b,c\n', "line 1: there are several columns 'name'"),
        ('name,kind\na,b\nc\n', 'line 3: expected 2 values, as the header has, got 1'),
        ('name,kind\na,b,c\n', 'line 2: expected 2 values, as the header has, got 3'),
        ('name,kind\na,b\n"c,d\ne,f\n', 'line 3: unexpected end of data; is each quote closed'),
        ('name,kind\na,"b\nc,"d"\n', 'line 2: .* is each quote closed'),
        ('name,kind\na,"b\nc,d"\n', "line 2: 'kind' goes over several lines; is each quote"),
        (f'name,kind\na,{200_000 * "b"}\n', 'line 2: field larger than field limit'),
        (f'{200_000 * "n,"}kind\na,b\n', r'line 1: needs the columns .{,400}$'),
    ],
)
def test_what_is_no_such_table_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(Refused, match=message):
        read(tmp_path, text)


def test_damaged_tables_are_read_or_refused(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_text(TABLE)
    check_reader(lambda: read_table(path, ['name', 'kind']), path, count=80)
    check_reader(lambda: read_text(path), path)
