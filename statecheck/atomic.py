"""The one way in which statecheck writes a file: whole, or not at all.

A temporary file in the same folder, fsync, rename, fsync of the folder. A reader, and whoever looks after a crash, sees
the old content or the new one. Temporaries that a killed writer left behind are swept by the next writer of that file.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>[0-9]+)\.[a-z0-9_]+\.tmp")


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the content of `path` by `data`, so that no crash leaves half a file. The folder must exist.

    Raises OSError (a read-only or full disk, a missing folder); `path` is then as it was.

    >>> folder = tempfile.TemporaryDirectory()
    >>> atomic_write_bytes(Path(folder.name, "a.bin"), b"new")
    >>> os.listdir(folder.name), Path(folder.name, "a.bin").read_bytes()
    (['a.bin'], b'new')
    """
    path = Path(path)
    _sweep(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.{os.getpid()}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """The same for UTF-8 text; line ends are written as they are."""
    atomic_write_bytes(path, text.encode("utf-8"))


def sweep_temporaries(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove what killed writers left in `folder`, and return those paths. Files of living writers stay."""
    return [path for path in _stale(Path(folder), None) if _removed(path)]


def _sweep(path: Path) -> None:
    for stale in _stale(path.parent, path.name):
        _removed(stale)


def _stale(folder: Path, name: str | None) -> list[Path]:
    """Temporaries (of one file, or of all) whose writer no longer runs on this machine."""
    with os.scandir(folder) as entries:
        found = [(Path(entry.path), _TEMPORARY.fullmatch(entry.name)) for entry in entries]
    mine = [(path, match) for path, match in found if match and name in (None, match["name"])]
    return [path for path, match in mine if not _running(int(match["process"]))]


def _running(process: int) -> bool:
    if os.name == "nt":  # there os.kill ends the process; a temporary too many does less harm
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _removed(path: Path) -> bool:
    with contextlib.suppress(OSError):
        path.unlink()
        return True
    return False


def _mode(path: Path) -> int:
    """The mode of the file that is replaced; else what the umask leaves, which `mkstemp` ignores."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mode & 0o7777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be synced (not on Windows, nor on some network disks)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
