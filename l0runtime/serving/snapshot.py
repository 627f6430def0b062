"""How does a server keep answering from a model whose files are being replaced?

onnxruntime reads an .onnx file whole, but maps the data files that large weights lie in: one written over changes the
answers of a running model without a word, one cut short ends the process. So a model of several files is served from
a copy that nobody else knows.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from l0runtime.errors import ModelFileError


@dataclass(frozen=True)
class FileState:
    """What tells that one of a model's files was replaced or written to: inode, size and time of change of each."""

    files: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, path: Path, data: Sequence[str] = ()) -> FileState | None:
        """The state of a model and its data files, or None where one is not there."""
        try:
            found = [file.stat() for file in (path, *(path.parent / name for name in data))]
        except OSError:
            return None
        return cls(tuple((file.st_ino, file.st_size, file.st_mtime_ns) for file in found))


@contextlib.contextmanager
def own_copy(path: Path, data: Sequence[str]) -> Iterator[Path]:
    """A copy of a model, to be loaded while it lasts; the model itself if it is a single file.

    On POSIX, what has been mapped outlasts the name of its file.

    Args:
        data: names of its data files, relative to its folder.
    Raises:
        ModelFileError: a data file is missing, or there is no room.
    """
    if not data:
        yield path
        return
    for name in data:
        if not (path.parent / name).is_file():
            raise ModelFileError(f"{path}: its weights lie in '{name}', which is not beside it. Put it there.")
    with tempfile.TemporaryDirectory(prefix="l0runtime-", ignore_cleanup_errors=True) as folder:
        try:
            for name in (path.name, *data):
                target = Path(folder, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path.parent / name, target)
        except OSError as error:
            raise ModelFileError(
                f"{path}: its weights cannot be copied to {folder} ({error.strerror}). Set TMPDIR to a folder with "
                "room for them, or store the model in a single file."
            ) from error
        yield Path(folder, path.name)
