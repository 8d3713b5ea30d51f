"""Scikit-learn's handwritten digits, the embedded data of ImageNet's task: real images.

1,797 grey images of 8 x 8 pixels (the test part of UCI's Optical Recognition of Handwritten
Digits). They have no official split: a fixed permutation gives 1,437 to training and 360 to
validation. The same writers stand in both.
"""

import cv2
import numpy as np

from experiments.data.pipeline import Example

_NUM_TRAIN = 1437


class Digits:
    """A `LabelledSource` of {'encoded': bytes of a PNG file, 'label': int, 'name': str}.

    Attributes:
      classes: '0' to '9'.
    """

    def __init__(self, split: str):
        """Reads 'train' or 'validation'."""
        import sklearn.datasets  # slow, and other sources do not need it

        digits = sklearn.datasets.load_digits()
        # RandomState's numbers never change between versions of NumPy; default_rng's may.
        order = np.random.RandomState(0).permutation(len(digits.target))
        self._rows = {'train': order[:_NUM_TRAIN], 'validation': order[_NUM_TRAIN:]}[split]
        self._labels = digits.target[self._rows]
        grey = np.round(digits.images[self._rows] * (255 / 16)).astype(np.uint8)
        self._encoded = [cv2.imencode('.png', image)[1].tobytes() for image in grey]
        self.classes = [str(name) for name in digits.target_names]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return {
            'encoded': self._encoded[index],
            'label': int(self._labels[index]),
            'name': f'digit {self._rows[index]}',
        }
