import pathlib
import re

import pytest

README = pathlib.Path(__file__).parent.parent / 'README.md'
EXAMPLES = re.findall(r'```python\n(.*?)```', README.read_text('utf-8'), re.DOTALL)


@pytest.mark.parametrize('example', EXAMPLES)
def test_examples_run_as_they_are_written(example):
    names = {}
    exec(example, names)
    assert names['logits'].shape == (2, 10)
