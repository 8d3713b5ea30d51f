"""The notebook of the examples: their docstrings as text, their code as it is.

`python -m tests.toys.notebook` writes it.
"""

import ast
import json
import pathlib

FOLDER = pathlib.Path(__file__).parents[2] / 'examples'
SCRIPTS = ('regression', 'attention_maps', 'fine_tuning')  # in the order of the notebook
NOTEBOOK = FOLDER / 'examples.ipynb'


def pieces(name: str) -> tuple[str, list[str]]:
    """Returns the docstring of a script, and its code cut where two empty lines stand."""
    text = (FOLDER / f'{name}.py').read_text('utf-8')
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring is not None and text.startswith('"""')
    code = text.split('"""', 2)[2]
    return docstring, [piece.strip('\n') for piece in code.split('\n\n\n')]


def notebook() -> str:
    """Returns the file: for each script a cell of text, then its code."""
    cells = []
    for name in SCRIPTS:
        docstring, code = pieces(name)
        cells.append({'cell_type': 'markdown', 'metadata': {}, 'source': _lines('## ' + docstring)})
        for piece in code:
            cells.append(
                {
                    'cell_type': 'code',
                    'execution_count': None,
                    'metadata': {},
                    'outputs': [],
                    'source': _lines(piece),
                }
            )
    kernel = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
    metadata = {'kernelspec': kernel, 'language_info': {'name': 'python'}}
    about = {'cells': cells, 'metadata': metadata, 'nbformat': 4, 'nbformat_minor': 4}
    return json.dumps(about, indent=1, ensure_ascii=False) + '\n'


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == '__main__':
    NOTEBOOK.write_text(notebook(), 'utf-8')
