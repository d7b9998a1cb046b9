"""Texts: from files to strings, and from strings to ids."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from statecheck.checkpoint.files import open_regular, refusal
from statecheck.errors import InputRefused
from statecheck.wording import listed, one_line, raised

PIECES = 32
SHORTEST_CHAPTER = 0.01  # of the longest
MAX_TEXT_BYTES = 2**28

_NUMBER = r"(?:\d{1,3}|[IVXLCDM]{1,8}|[Tt]he [A-Z][a-z]+|THE [A-Z]+|[Oo]ne|ONE|[Tt]wo|TWO|[Tt]hree|THREE)"
_HEADING = re.compile(
    rf"^[ \t]*(?:CHAPTER|Chapter|BOOK|Book|PART|Part|VOLUME|Volume)[ \t]+{_NUMBER}(?:[.:,—\-\]][^\n]{{0,80}})?[ \t]*$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Texts:
    """Texts by title, and a sentence on where they are from."""

    titles: tuple[str, ...]
    texts: tuple[str, ...]
    how: str


def read_folder(path: Path) -> Texts:
    """The .txt files of a folder, one document each, in natural order; other files are left alone."""
    try:
        entries = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as cause:
        raise refusal(path, f"the folder can't be read ({raised(cause)})", "change its mode", InputRefused) from None
    names = sorted((name for name in entries if name.lower().endswith(".txt")), key=_natural)
    if not names:
        found = f"the folder holds no .txt file ({listed(entries)})"
        raise refusal(path, found, "give a folder with one .txt a document, or a single file", InputRefused)
    texts = tuple(_read_text(path / name) for name in names)
    return Texts(tuple(name[:-4] for name in names), texts, f"{len(names)} files in {one_line(path)}")


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts 'chapter 2' before 'chapter 10'.

    >>> sorted(["c10", "c9", "b"], key=_natural)
    ['b', 'c9', 'c10']
    """
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in parts]


def _read_text(path: Path) -> str:
    """UTF-8 text with line ends as "\\n" and without a byte-order mark. An empty file is an empty document here."""
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return ""
    with open_regular(path, InputRefused) as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise refusal(path, f"over {MAX_TEXT_BYTES // 2**20} MiB of text", "give a part of it", InputRefused)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        found = f"not UTF-8 text: byte 0x{data[cause.start]:02x} at position {cause.start}"
        raise refusal(path, found, "convert it, e.g. `iconv -f LATIN1 -t UTF-8`", InputRefused) from None
    if "\0" in text:
        raise refusal(path, "not a text: it holds NUL bytes", "give UTF-8 text or an .npz archive", InputRefused)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_single(path: Path) -> Texts:
    """One text, cut at form feeds, else at chapter headings, else into 32 equal pieces."""
    text = _read_text(path)
    if not text.strip():
        raise refusal(path, "the text is empty", "give a text", InputRefused)
    name = one_line(path.name)
    if "\f" in text.strip("\f"):
        pieces = text.split("\f")
        titles = tuple(f"part {number}" for number in range(1, len(pieces) + 1))
        return Texts(titles, tuple(pieces), f"{name}, cut at its form feeds")
    chapters, contents = _chapters(text)
    if len(chapters) > 1:
        bare = f" ({contents} with hardly any text, as in a table of contents, were left out)" if contents else ""
        return Texts(tuple(chapters), tuple(chapters.values()), f"{name}, cut at its chapter headings{bare}")
    count = min(PIECES, len(text))
    edges = [len(text) * number // count for number in range(count + 1)]
    pieces = [text[begin:end] for begin, end in pairwise(edges)]
    titles = tuple(f"piece {number} of {count}" for number in range(1, count + 1))
    how = f"{name}, which has no form feeds and no chapter headings, cut into {count} equal pieces"
    return Texts(titles, tuple(pieces), how)


def _chapters(text: str) -> tuple[dict[str, str], int]:
    """Chapters by title, and how many headings were left out.

    The headings of a table of contents have no text to speak of, nor has a title page: what is shorter than 1 % of the
    longest chapter is none.
    """
    starts = [0, *(match.start() for match in _HEADING.finditer(text) if match.start())]
    pieces = [text[begin:end] for begin, end in pairwise([*starts, len(text)])]
    lengths = [len(_below_heading(piece)) for piece in pieces]
    chapters: dict[str, str] = {}
    for piece, length in zip(pieces, lengths, strict=True):
        if length and length >= SHORTEST_CHAPTER * max(lengths):
            heading = _HEADING.match(piece)
            title = one_line(heading[0], 60) if heading else "before the first heading"
            chapters[_unused(title, chapters)] = piece
    return chapters, len(pieces) - len(chapters)


def _below_heading(piece: str) -> str:
    heading = _HEADING.match(piece)
    return piece[heading.end() if heading else 0 :].strip()


def _unused(title: str, taken: dict[str, str]) -> str:
    """A title that no chapter has: the first chapter 1 is "CHAPTER 1", the next "CHAPTER 1 (2)"."""
    number, unused = 1, title
    while unused in taken:
        number += 1
        unused = f"{title} ({number})"
    return unused


def byte_ids(text: str) -> Tensor:
    """The bytes of `text` in UTF-8, as ids."""
    return torch.tensor(list(text.encode("utf-8")), dtype=torch.int64)


def tokenise_text(text: str, tokenizer: str | Path) -> Tensor:
    """Ids (time,) int64 of `text` by a `tokenizers` JSON file. Raises :class:`InputRefused` if it can't be read."""
    return tokenise_texts([text], Path(tokenizer))[0]


def tokenise_texts(texts: Sequence[str], tokenizer: Path) -> list[Tensor]:
    """The same for several texts.

    Special tokens are added where the file's own post-processor says so; truncation and padding are switched off,
    since a document is read at full length.
    """
    from tokenizers import Tokenizer

    with open_regular(tokenizer, InputRefused) as file:
        data = file.read(MAX_TEXT_BYTES)
    try:
        loaded = Tokenizer.from_str(data.decode("utf-8"))
        loaded.no_truncation()
        loaded.no_padding()
        return [torch.tensor(loaded.encode(text).ids if text else [], dtype=torch.int64) for text in texts]
    except Exception as cause:  # the library raises bare Exception
        found = f"not a tokenizer that the `tokenizers` library can use ({raised(cause)})"
        raise refusal(tokenizer, found, "give the model's tokenizer.json", InputRefused) from None
