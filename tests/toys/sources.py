"""Sources that stand where data would be."""

import pytest


class Untouchable:
    """Fails the test as soon as its data would be opened."""

    def __len__(self):
        pytest.fail('the data was opened')


class Sized:
    """As many examples as the parts have together, none of which can be read."""

    def __init__(self, *lengths):
        self.lengths = lengths

    def __len__(self):
        return sum(self.lengths)
