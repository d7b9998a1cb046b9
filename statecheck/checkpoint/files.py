"""Opening files that somebody else wrote: regular files only, recognised by their content, strict JSON, no way out."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from statecheck.errors import CheckpointRefused, InputRefused
from statecheck.wording import listed, one_line, raised

MAX_JSON_BYTES = 16 * 2**20


def refusal(path: Path, found: str, remedy: str, error: type[InputRefused] = CheckpointRefused) -> InputRefused:
    """The exception for a file: which file, what is wrong with it, what to do; one line.

    >>> str(refusal(Path("a.pt"), "the file is empty", "save it again"))
    'a.pt: the file is empty; save it again'
    """
    return error(f"{one_line(path)}: {found}; {remedy}")


@contextmanager
def open_regular(path: Path, error: type[InputRefused] = CheckpointRefused) -> Iterator[BinaryIO]:
    """A regular, readable, non-empty file, opened for reading; anything else raises `error`.

    Pipes are opened without blocking, so that a pipe under a checkpoint's name can't hang the program.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as cause:
        raise _unopened(path, cause, error) from None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            kind = _special(status.st_mode)
            raise refusal(path, f"this is a {kind}, not a regular file", "give the path of a file on disk", error)
        if status.st_size == 0:
            raise refusal(path, "the file is empty (0 bytes)", "copy or write it again", error)
        yield file


def _unopened(path: Path, cause: Exception, error: type[InputRefused]) -> InputRefused:
    if isinstance(cause, FileNotFoundError):
        if path.is_symlink():
            target = one_line(os.readlink(path))
            return refusal(path, f"a link to {target}, which does not exist", "mend the link or name the file", error)
        return refusal(path, "no such file", f"check the path{_neighbours(path)}", error)
    if isinstance(cause, PermissionError):
        return refusal(path, "the file may not be read (permission denied)", "change its mode or its owner", error)
    if isinstance(cause, ValueError):
        return refusal(path, f"not a path ({one_line(cause)})", "check the path", error)
    reason = (getattr(cause, "strerror", None) or raised(cause)).lower()
    return refusal(path, f"the file can't be opened ({reason})", "give the path of a file on disk", error)


def _neighbours(path: Path) -> str:
    try:
        found = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return f": the folder {one_line(path.parent)} can't be read either"
    return f": {one_line(path.parent)} holds {listed(found)}"


def _special(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "folder",
        stat.S_IFIFO: "named pipe (FIFO)",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def read_json(path: Path, error: type[InputRefused] = CheckpointRefused) -> dict[str, Any]:
    """The object in a JSON file: UTF-8, at most 16 MiB, no NaN, no key twice."""
    with open_regular(path, error) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise refusal(path, f"over {MAX_JSON_BYTES // 2**20} MiB of JSON", "is this the right file?", error)
    return parse_json(data, path, "the file", error)


def parse_json(data: bytes, path: Path, what: str, error: type[InputRefused] = CheckpointRefused) -> dict[str, Any]:
    """The object in `data`; `what` names the piece of `path` that it was read from."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise refusal(path, f"{what} is nested too deep", "write it again", error) from None
    except ValueError as cause:
        raise refusal(path, f"{what} is not valid JSON ({one_line(cause, 120)})", "write it again", error) from None
    if not isinstance(value, dict):
        raise refusal(path, f"{what} holds a JSON {type(value).__name__}, not an object", "write it again", error)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        twice = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise ValueError(f"the key {one_line(twice, 60)!r} stands twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def inside(folder: Path, name: str, owner: Path) -> Path:
    """`folder / name`, where `owner` is the file that gave the name. Refused if it leads out of the folder.

    Links are followed first. A snapshot of the Hugging Face cache consists of links to the `blobs` beside it; these
    are taken as lying inside.
    """
    if not name or "\0" in name:
        raise refusal(owner, f"{one_line(name)!r} is not a file name", "mend that file")
    home = Path(os.path.realpath(folder))
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    target = Path(os.path.realpath(folder / name))
    if Path(name).is_absolute() or not any(target.is_relative_to(root) for root in allowed):
        raise refusal(
            owner,
            f"{one_line(name, 120)!r} lies outside the folder {one_line(home)}",
            "copy the file into the folder and name it there",
        )
    return folder / name
