"""Images in folders of their classes, as in train/<class>/*."""

from collections.abc import Sequence
from pathlib import Path

from experiments.data.class_folders import ClassFolders
from experiments.data.pipeline import BrokenExample, Example

_ENDINGS = ('.jpg', '.jpeg', '.png')  # in lower or upper case


class ImageFolder:
    """The images of one part of a data set, a `LabelledSource`; see `ClassFolders`.

    Attributes:
      classes: Names of the classes, in the order of their labels.
    """

    def __init__(self, path: Path, part: str, layout: str, classes: Sequence[str] | None = None):
        """Lists the files.

        Args:
          path: The folder of the data set.
          part: Name of the folder in it that is read.
          layout: What `path` should hold, for the message where the part is missing.
          classes: Names of the classes; None: the folders tell.

        Raises:
          Refused: The part is missing, holds no images, or has a class that is unknown.
        """
        self._files = ClassFolders(path, [part], _ENDINGS, layout=layout, classes=classes)
        self.classes = self._files.classes

    def __repr__(self) -> str:
        return str(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        file, label = self._files[index]
        try:
            encoded = file.read_bytes()
        except OSError as error:
            raise BrokenExample(f'{file}: {error.strerror}') from error
        return {'encoded': encoded, 'label': label, 'name': str(file)}
