"""Files that a kill can't leave half-written: write beside, flush to the disk, rename over."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

SUFFIX = ".partial"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with an open binary file and put the result at `path`: the old file or the whole new one, no third.

    Raises what `write` raises, and OSError (disk full, no permission); the file at `path` is then the old one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder) / "note.txt", lambda file: file.write(b"kept"))
    ...     (Path(folder) / "note.txt").read_text()
    'kept'
    """
    partial = path.with_name(path.name + SUFFIX)
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """`write_atomically` for content that is at hand."""
    write_atomically(path, lambda file: file.write(content))


def sweep(folder: Path) -> None:
    """Remove the half-written files that a killed process left in `folder`."""
    for stale in folder.glob(f"*{SUFFIX}"):
        stale.unlink()


def _sync_folder(folder: Path) -> None:
    """Without this the rename itself may be lost when the machine stops."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
