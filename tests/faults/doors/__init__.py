"""The doors, a file for each kind of data. Importing them fills the table."""

from tests.faults.door import DOORS, WITHOUT_FILES
from tests.faults.doors import (
    audioset,
    flow,
    media,
    modelnet40,
    prepared,
    runs,
    texts,
    weights,
)

__all__ = [
    'DOORS',
    'WITHOUT_FILES',
    'audioset',
    'flow',
    'media',
    'modelnet40',
    'prepared',
    'runs',
    'texts',
    'weights',
]
