"""Files that are there as a whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from optlab import lab


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Lets a file be written beside its place and then moves it there.

    A full disk or a kill in between leaves what was there before.

    Args:
      path: The file.

    Yields:
      The path to write to.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file as a whole or not at all; its folder is made if it is missing.

    Args:
      path: The file.
      text: What it shall hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file as a whole or not at all.

    Args:
      path: The file.
      text: What it shall hold.

    Raises:
      LabError: If it cannot be written.
    """
    try:
        write_text(path, text)
    except OSError as error:
        raise lab.LabError(f"cannot write {path}: {error.strerror}") from error
