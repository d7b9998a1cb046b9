"""Documents in an .npz archive: named numeric arrays alone, never a pickle.

Two forms are read: `inputs`, one row a document; or `vectors` in one long list, with `batch_ids` telling the article of
each and `seq_in_article` its place in it. The second form is split at article boundaries, never by position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statecheck.checkpoint.archives import open_archive
from statecheck.checkpoint.files import open_regular, refusal
from statecheck.errors import InputRefused
from statecheck.wording import listed, one_line, raised

Array = np.ndarray[Any, np.dtype[Any]]
ARTICLE_KEYS = ("vectors", "batch_ids", "seq_in_article")
_FORMS = f"expected `inputs` (documents, time[, features]), or `{'`, `'.join(ARTICLE_KEYS)}`"


@dataclass(frozen=True)
class Found:
    """Rows of an archive, their titles, and the arrays that they are from."""

    rows: tuple[Tensor, ...]
    titles: tuple[str, ...]
    how: str


def read_arrays(path: Path) -> Found:
    """The documents in an .npz: ids (time,) int64 or vectors (time, features) float32, each row one document.

    Raises :class:`statecheck.errors.InputRefused` for object arrays, missing keys, wrong shapes, and vectors that are
    not finite.
    """
    arrays, others = _numeric(path)
    ignored = f" (its arrays {listed(others)} were not read)" if others else ""
    if "inputs" in arrays:
        rows = _rows(path, arrays["inputs"])
        titles = tuple(f"row {number}" for number in range(len(rows)))
        return Found(rows, titles, f"array `inputs`{ignored}")
    articles = _articles(path, arrays)
    titles = tuple(f"article {number}" for number in articles)
    return Found(tuple(articles.values()), titles, f"arrays `vectors`, article by article,{ignored}".rstrip(","))


def _numeric(path: Path) -> tuple[dict[str, Array], list[str]]:
    """The arrays that are asked for, and the names of the others, which are not opened."""
    with open_regular(path, InputRefused) as file:
        with open_archive(path, file, InputRefused) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        wanted = ["inputs"] if "inputs" in names else [key for key in ARTICLE_KEYS if key in names]
        if wanted != ["inputs"] and len(wanted) < len(ARTICLE_KEYS):
            raise refusal(path, f"an archive with the arrays {listed(names, 12)}", _FORMS, InputRefused)
        file.seek(0)
        with np.load(file, allow_pickle=False) as loaded:
            arrays = {name: _array(path, loaded, name) for name in wanted}
    return arrays, [name for name in names if name not in wanted]


def _array(path: Path, archive: Mapping[str, Array], name: str) -> Array:
    try:
        array = np.asarray(archive[name])
    except Exception as cause:  # numpy raises ValueError, EOFError, MemoryError, SyntaxError and more
        if "allow_pickle" in str(cause):
            found = f"the array {name!r} holds Python objects, which only a pickle can carry and statecheck never opens"
            remedy = "save it as numbers: np.savez(path, inputs=np.stack(rows))"
            raise refusal(path, found, remedy, InputRefused) from None
        found = f"the array {name!r} can't be read ({raised(cause)})"
        raise refusal(path, found, "save it again with np.savez", InputRefused) from None
    if array.dtype.kind not in "iuf":
        found = f"the array {name!r} has dtype {one_line(array.dtype, 60)}"
        raise refusal(path, found, "expected whole numbers (ids) or floats (vectors)", InputRefused)
    return array


def _rows(path: Path, inputs: Array) -> tuple[Tensor, ...]:
    whole = inputs.dtype.kind in "iu"
    if inputs.ndim != (2 if whole else 3):
        found = f"`inputs` has dtype {inputs.dtype} and shape {inputs.shape}"
        raise refusal(path, found, "expected ids (documents, time) or floats (documents, time, features)", InputRefused)
    if not len(inputs):
        raise refusal(path, f"`inputs` has shape {inputs.shape}: no documents", "give at least one", InputRefused)
    return tuple((_ids(path, inputs) if whole else _floats(path, "inputs", inputs)).unbind(0))


def _ids(path: Path, array: Array) -> Tensor:
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise refusal(path, f"it holds the id {int(array.max())}", "ids are below 2^63", InputRefused)
    return torch.from_numpy(array.astype(np.int64))


def _floats(path: Path, name: str, array: Array) -> Tensor:
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    finite = np.isfinite(single)
    if not finite.all():
        place = tuple(int(index) for index in np.argwhere(~finite)[0])
        value = array[place]
        found = f"`{name}` holds {value} at index {place}, which is no finite float32"
        raise refusal(path, found, "mend the data: every state would be NaN after it", InputRefused)
    return torch.from_numpy(single)


def _articles(path: Path, arrays: Mapping[str, Array]) -> dict[int, Tensor]:
    """Vectors by article, each article in the order of `seq_in_article`."""
    vectors, article, place = (arrays[key] for key in ARTICLE_KEYS)
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.size:
        found = f"`vectors` has dtype {vectors.dtype} and shape {vectors.shape}"
        raise refusal(path, found, "expected floats (elements, features)", InputRefused)
    for key, index in (("batch_ids", article), ("seq_in_article", place)):
        if index.shape != vectors.shape[:1] or index.dtype.kind not in "iu":
            found = f"`{key}` has dtype {index.dtype} and shape {index.shape}, beside {len(vectors)} vectors"
            raise refusal(path, found, "expected one whole number for each vector", InputRefused)
    order = np.lexsort((place, article))
    article, place = article[order], place[order]
    same = (article[1:] == article[:-1]) & (place[1:] == place[:-1])
    if same.any():
        twice = int(np.argmax(same))
        found = f"article {article[twice]} has two vectors at place {place[twice]}"
        raise refusal(path, found, "give each its own `batch_ids` and `seq_in_article`", InputRefused)
    floats = _floats(path, "vectors", vectors)[torch.from_numpy(order)]
    edges = [0, *(int(edge) for edge in np.flatnonzero(article[1:] != article[:-1]) + 1), len(article)]
    return {int(article[begin]): floats[begin:end] for begin, end in pairwise(edges)}
