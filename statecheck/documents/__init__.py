"""Texts and arrays as documents: the rows that everything which needs a loss runs on.

A document is read from its beginning and never crosses into the next one. `source` says in one sentence what the
documents are; every report repeats it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from statecheck.checkpoint.files import open_regular, refusal
from statecheck.documents.arrays import Found, read_arrays
from statecheck.documents.texts import Texts, byte_ids, read_folder, read_single, tokenise_text, tokenise_texts
from statecheck.errors import InputRefused, UsageError
from statecheck.wording import one_line

__all__ = ["Documents", "load_documents", "tokenise_text"]

BYTE_VOCABULARY = 256


@dataclass(frozen=True)
class Documents:
    """Documents in order: `rows` are ids (time,) int64, or vectors (time, features) float32; `kind` says which.

    `kind` is "tokens" or "vectors"; `titles` name the rows; `source` is one sentence that names the text.
    """

    rows: tuple[Tensor, ...]
    titles: tuple[str, ...]
    source: str
    kind: str


def load_documents(
    path: str | Path, *, tokenizer: Path | None = None, vocabulary: int | None = None, width: int | None = None
) -> Documents:
    """The documents in a folder of .txt, a single text file, or an .npz, checked against the model.

    A folder holds one document a .txt file, in natural order. A single text is cut at form feeds, else at chapter
    headings, else into 32 equal pieces. Text needs the model's `tokenizer` (a `tokenizers` JSON file); only a model
    with a vocabulary of 256 reads bytes without one. An .npz holds `inputs` (documents, time) or (documents, time,
    features), or `vectors` (elements, features) with `batch_ids` and `seq_in_article`. `vocabulary` and `width` are the
    model's: ids must be below the one, vectors as wide as the other.

    Raises :class:`statecheck.errors.InputRefused` for data that can't be taken, and :class:`UsageError` for text
    without a tokenizer; one line each.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "tale.txt")
    >>> _ = file.write_text("CHAPTER 1\\nOnce.\\nCHAPTER 2\\nThen.\\n")
    >>> tale = load_documents(file, vocabulary=256)
    >>> tale.titles, tale.rows[1].tolist()[-6:]
    (('CHAPTER 1', 'CHAPTER 2'), [84, 104, 101, 110, 46, 10])
    """
    path = Path(path)
    if os.path.isdir(path):
        return _from_text(path, read_folder(path), tokenizer, vocabulary, width)
    with open_regular(path, InputRefused) as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if is_archive:
        return _from_arrays(path, read_arrays(path), vocabulary, width)
    return _from_text(path, read_single(path), tokenizer, vocabulary, width)


def _from_text(
    path: Path, texts: Texts, tokenizer: Path | None, vocabulary: int | None, width: int | None
) -> Documents:
    if width is not None:
        remedy = "give an .npz with float `inputs` or `vectors`"
        raise refusal(path, f"a text, and the model reads vectors of width {width}", remedy, InputRefused)
    if tokenizer is None and vocabulary != BYTE_VOCABULARY:
        found = "unknown vocabulary" if vocabulary is None else f"vocabulary of {vocabulary:,}"
        raise UsageError(
            f"{one_line(path)}: a text, and the model ({found}) came without a tokenizer; give --tokenizer FILE"
        )
    if tokenizer is not None:
        rows, by = tokenise_texts(texts.texts, tokenizer), f"tokenised by {one_line(tokenizer.name)}"
    else:
        rows, by = [byte_ids(text) for text in texts.texts], "read as bytes"
    _check_ids(path, rows, vocabulary, tokenizer)
    return _without_empty(path, rows, texts.titles, f"{texts.how}, {by}", "tokens")


def _check_ids(path: Path, rows: Sequence[Tensor], vocabulary: int | None, tokenizer: Path | None) -> None:
    """Ids must be 0 .. vocabulary - 1."""
    filled = [row for row in rows if len(row)]
    lowest, largest = (min(int(r.min()) for r in filled), max(int(r.max()) for r in filled)) if filled else (0, -1)
    if lowest < 0:
        raise refusal(path, f"it holds the id {lowest}", "ids begin at 0; cut padding off", InputRefused)
    if vocabulary is not None and largest >= vocabulary:
        remedy = "was it made with this model's tokenizer?"
        if tokenizer is not None:
            remedy = f"give this model's own --tokenizer ({one_line(tokenizer)} is another's)"
        found = f"its largest id is {largest}, and the model's vocabulary of {vocabulary} ends at {vocabulary - 1}"
        raise refusal(path, found, remedy, InputRefused)


def _without_empty(path: Path, rows: Sequence[Tensor], titles: Sequence[str], source: str, kind: str) -> Documents:
    """Documents of length 0 are left out and counted."""
    kept = [(row, title) for row, title in zip(rows, titles, strict=True) if len(row)]
    if not kept:
        raise refusal(path, "it holds no document with anything in it", "give a longer text", InputRefused)
    dropped = len(rows) - len(kept)
    if dropped:
        source += f"; {dropped} empty {'document was' if dropped == 1 else 'documents were'} left out"
    elements = sum(len(row) for row, _ in kept)
    counted = f"{len(kept)} {'document' if len(kept) == 1 else 'documents'}, {elements:,} {kind}: {source}"
    return Documents(tuple(row for row, _ in kept), tuple(title for _, title in kept), counted, kind)


def _from_arrays(path: Path, found: Found, vocabulary: int | None, width: int | None) -> Documents:
    kind = "vectors" if found.rows[0].dim() == 2 else "tokens"
    if kind == "tokens" and width is not None:
        remedy = "give (documents, time, features) floats"
        raise refusal(path, f"it holds token ids, and the model reads vectors of width {width}", remedy, InputRefused)
    if kind == "vectors" and vocabulary is not None:
        remedy = "give (documents, time) ids"
        raise refusal(path, f"it holds vectors, and the model reads ids below {vocabulary}", remedy, InputRefused)
    if kind == "vectors" and width is not None and found.rows[0].shape[1] != width:
        what = f"its vectors have {found.rows[0].shape[1]} features, and the model reads {width}"
        raise refusal(path, what, "give the embedding that the model was trained on", InputRefused)
    if kind == "tokens":
        _check_ids(path, found.rows, vocabulary, None)
    return _without_empty(path, found.rows, found.titles, f"{found.how} of {one_line(path.name)}", kind)
