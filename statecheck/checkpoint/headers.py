"""The header of a safetensors file, held against the file before the library maps it.

Layout (github.com/huggingface/safetensors): 8 bytes, the header's length as a little-endian number; the header, a JSON
object of name -> {dtype, shape, data_offsets} with an optional `__metadata__` of strings; then the tensors' bytes,
without holes or overlaps, to the end of the file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO

from statecheck.checkpoint.files import MAX_JSON_BYTES, parse_json, refusal
from statecheck.errors import InputRefused
from statecheck.wording import listed, one_line

MAX_TENSORS = 100_000
MAX_DIMENSIONS = 64

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_AGAIN = "copy, download or save it again"


def read_header(path: Path, file: BinaryIO) -> tuple[list[str], dict[str, str]]:
    """Names of the tensors, and the metadata.

    Raises :class:`statecheck.errors.CheckpointRefused` for a header that lies.
    """
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        found = f"its safetensors header claims {length:,} bytes in a file of {size:,}: cut off, or another format"
        raise refusal(path, found, _AGAIN)
    if length > MAX_JSON_BYTES:
        raise refusal(path, f"its safetensors header has {length:,} bytes, over {MAX_JSON_BYTES:,}", _AGAIN)
    header = parse_json(file.read(length), path, "its safetensors header")
    metadata = _metadata(path, header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise refusal(path, f"its header names {len(header):,} tensors, over {MAX_TENSORS:,}", "is it a checkpoint?")
    if not header:
        raise refusal(path, "it holds no tensors", "save the model's state_dict")
    spans = sorted((*_span(path, name, entry), name) for name, entry in header.items())
    _check_spans(path, spans, size - 8 - length)
    return list(header), metadata


def _metadata(path: Path, found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise refusal(path, "its __metadata__ is not a mapping of strings to strings", _AGAIN)
    return found


def _lie(path: Path, name: str, what: str) -> InputRefused:
    return refusal(path, f"its safetensors header lies: tensor {one_line(name, 80)!r} {what}", _AGAIN)


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Begin and end of a tensor's bytes, if its entry is well formed and its shape has just that many."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _lie(path, name, "is not {dtype, shape, data_offsets}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _lie(path, name, f"has dtype {one_line(dtype, 30)}; known are {listed(ITEM_BYTES, len(ITEM_BYTES))}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise _lie(path, name, f"has shape {one_line(shape, 60)}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _lie(path, name, f"has data_offsets {one_line(offsets, 60)}")
    needed, given = math.prod(shape) * ITEM_BYTES[dtype], offsets[1] - offsets[0]
    if needed != given:
        raise _lie(path, name, f"of {dtype} {one_line(shape, 60)} needs {needed:,} bytes and is given {given:,}")
    return offsets[0], offsets[1]


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], available: int) -> None:
    """`spans` are in the order of the file: each must begin where the last one ends, and the last end with the file."""
    reached = 0
    for begin, end, name in spans:
        if begin != reached:
            what = "overlaps the tensor before it" if begin < reached else f"leaves {begin - reached:,} bytes unused"
            raise _lie(path, name, what)
        reached = end
    if reached > available:
        found = f"its tensors need {reached:,} bytes and the file has {available:,}: it is cut off"
        raise refusal(path, found, _AGAIN)
    if reached < available:
        found = f"{available - reached:,} bytes after its last tensor belong to none"
        raise refusal(path, found, _AGAIN)
