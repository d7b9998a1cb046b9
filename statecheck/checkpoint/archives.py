"""Zip archives before anything is unpacked: the directory, the names, the sizes and the checksum of every member.

torch.load checks none of these; one flipped bit in a stored member turned a weight of 0.53 into 1.8e38 and loaded
silently. Reading all checksums takes about one second a GiB.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from statecheck.checkpoint.files import refusal
from statecheck.errors import CheckpointRefused, InputRefused
from statecheck.wording import one_line

MAX_MEMBERS = 100_000
MAX_RATIO = 100  # unpacked bytes to packed bytes; deflate itself reaches about 1,000
MAX_HARMLESS_BYTES = 256 * 2**20  # archives that unpack to less than this are no bombs at any ratio

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error, ValueError, IndexError, OverflowError)


@contextmanager
def open_archive(
    path: Path, file: BinaryIO, error: type[InputRefused] = CheckpointRefused
) -> Iterator[zipfile.ZipFile]:
    """The archive in `file`, after all checks. Raises `error` with the member named."""
    file.seek(0, 2)
    size = file.tell()
    try:
        archive = zipfile.ZipFile(file)
    except (*_BROKEN, NotImplementedError) as cause:
        found = f"a zip archive whose directory is damaged or cut off ({one_line(cause, 80)})"
        raise refusal(path, found, "the file is truncated: copy or download it again", error) from None
    with archive:
        _check_directory(path, archive, size, error)
        _check_sums(path, archive, error)
        yield archive


def _check_directory(path: Path, archive: zipfile.ZipFile, size: int, error: type[InputRefused]) -> None:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise refusal(path, f"{len(members):,} members, over {MAX_MEMBERS:,}", "is this a checkpoint at all?", error)
    for member in members:
        _check_member(path, member, error)
    # The reader in torch finds members without regard to case, so that "DATA.PKL" would stand for "data.pkl".
    name, count = Counter(member.filename.casefold() for member in members).most_common(1)[0] if members else ("", 0)
    if count > 1:
        raise refusal(path, f"the member {one_line(name)!r} stands {count} times in the archive", _FORGED, error)
    if archive.comment:
        raise refusal(path, "the archive carries a comment, which no checkpoint has", _FORGED, error)
    packed = sum(member.compress_size for member in members)
    unpacked = sum(member.file_size for member in members)
    if packed > size:
        raise refusal(path, f"its members claim {packed:,} bytes in a file of {size:,}", _FORGED, error)
    if unpacked > max(MAX_HARMLESS_BYTES, MAX_RATIO * size):
        found = f"a zip bomb: {size:,} bytes that unpack to {unpacked:,}"
        raise refusal(path, found, "save it again without compression if it is yours", error)


_FORGED = "the file was put together by hand: save the checkpoint again"


def _check_member(path: Path, member: zipfile.ZipInfo, error: type[InputRefused]) -> None:
    # Backslashes and drive letters are checked as text, since `Path` reads them so on Windows alone.
    name = member.orig_filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":" or "\0" in name:
        raise refusal(path, f"the member {one_line(name, 120)!r} points outside the archive", _FORGED, error)
    if member.flag_bits & 1:
        raise refusal(path, f"the member {one_line(name, 120)!r} is encrypted", "save it without a password", error)
    if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
        raise refusal(path, f"the member {one_line(name, 120)!r} lies about its size", _FORGED, error)


def _check_sums(path: Path, archive: zipfile.ZipFile, error: type[InputRefused]) -> None:
    for member in archive.infolist():
        try:
            with archive.open(member) as stream:
                while stream.read(2**20):
                    pass
        except (*_BROKEN, NotImplementedError, RuntimeError) as cause:
            found = f"the member {one_line(member.filename, 120)!r} is damaged ({one_line(cause, 120)})"
            raise refusal(path, found, "copy or download the file again", error) from None
