"""The pickle inside a .pt archive, read without running it: which names it calls, and whether its tensors are true.

First the opcodes are walked, none executed, against an allow-list of opcodes and of names. Then the pickle is rehearsed
with inert stand-ins in place of those names, so that each tensor's shape can be held against the bytes that the archive
really has: old releases of torch read beyond a storage that lies about its size.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statecheck.checkpoint.files import refusal
from statecheck.checkpoint.recognition import OWN_CODE, RUNS_CODE
from statecheck.wording import listed, one_line, raised

MAX_PICKLE_BYTES = 32 * 2**20
MAX_EXPANDED_BYTES = 2**30

#: What torch's weights_only reader executes, less what only tensor subclasses need.
OPCODES = frozenset(
    """
    APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD EMPTY_DICT EMPTY_LIST
    EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM
    SETITEMS SHORT_BINSTRING STOP TUPLE TUPLE1 TUPLE2 TUPLE3
    """.split()  # noqa: SIM905 (a list of 36 lines reads no better)
)

_ITEM_BYTES = {
    **dict.fromkeys(("bool", "uint8", "int8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("float16", "half", "bfloat16", "int16", "short", "uint16"), 2),
    **dict.fromkeys(("float32", "float", "int32", "int", "uint32"), 4),
    **dict.fromkeys(("float64", "double", "int64", "long", "uint64", "complex64", "cfloat"), 8),
    **dict.fromkeys(("complex128", "cdouble"), 16),
}
_STORAGES = {
    **dict.fromkeys(("BoolStorage", "ByteStorage", "CharStorage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
_PLAIN = ("collections Counter", "torch Size", "torch device", "builtins set", "__builtin__ set", "_codecs encode")


class Untrue(ValueError):
    """A pickle whose tensors do not fit the bytes in the archive."""


@dataclass(frozen=True)
class _ItemBytes:
    """Stands for a dtype or a kind of storage."""

    size: int


@dataclass(frozen=True)
class _Storage:
    key: str
    bytes: int
    item_bytes: int


class _Mapping(dict[str, Any]):
    """Stands for OrderedDict. A state_dict's only attribute is `_metadata`; any other could shadow a method."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or set(state) - {"_metadata"}:
            raise Untrue("an OrderedDict carries attributes that no state_dict has")


class _Anything:
    """Stands for small values that weights_only builds: sizes, devices, sets."""

    def __new__(cls, *_arguments: object) -> _Anything:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Takes no state."""


def check_pickle(path: Path, data: bytes, members: dict[str, zipfile.ZipInfo]) -> None:
    """Refuse a pickle that calls anything but the makers of plain tensors, or whose tensors do not fit the archive.

    `members` are the archive's storages by key. Raises :class:`statecheck.errors.CheckpointRefused`.
    """
    if len(data) > MAX_PICKLE_BYTES:
        found = f"a pickle of {len(data):,} bytes beside the tensors, over {MAX_PICKLE_BYTES:,}"
        raise refusal(path, found, "save the state_dict alone")
    _check_opcodes(path, data)
    try:
        _Rehearsal(data, members).load()
    except Untrue as cause:
        raise refusal(path, one_line(cause), "the file was put together by hand: save the checkpoint again") from None
    except Exception as cause:  # any pickle error: this is somebody else's bytes
        raise refusal(path, f"its pickle is damaged ({raised(cause)})", "save the checkpoint again") from None


def _check_opcodes(path: Path, data: bytes) -> None:
    names: set[str] = set()
    try:
        operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(data)
        for count, (opcode, argument, _) in enumerate(operations, start=1):
            if opcode.name not in OPCODES:
                remedy = "save it again with torch.save's own pickle_protocol, or as safetensors"
                raise refusal(path, f"its pickle uses the opcode {opcode.name}, which no state_dict needs", remedy)
            if opcode.name == "LONG_BINPUT" and argument > count:  # reserves memory for that many objects
                raise refusal(path, f"its pickle claims {argument:,} objects", "save the checkpoint again")
            if opcode.name == "GLOBAL":
                names.add(argument)
    except (ValueError, IndexError, UnicodeDecodeError) as cause:
        raise refusal(path, f"its pickle is damaged ({raised(cause)})", "save the checkpoint again") from None
    unknown = sorted(name.replace(" ", ".", 1) for name in names if _stand_in(name) is None)
    if unknown:
        found = f"opening it would call {listed(unknown)}, which is not data"
        raise refusal(path, found, f"{RUNS_CODE}, {OWN_CODE}")


def _stand_in(name: str) -> Callable[..., Any] | _ItemBytes | None:
    """What the rehearsal puts in place of "module name"; None if that name is not allowed."""
    module, _, attribute = name.partition(" ")
    if name == "collections OrderedDict":
        return _Mapping
    if name in _PLAIN:
        return _Anything
    if module == "torch._utils":
        return _REBUILDERS.get(attribute)
    if module == "torch" and attribute in _STORAGES:
        return _ItemBytes(_STORAGES[attribute])
    if module == "torch" and attribute in _ITEM_BYTES:
        return _ItemBytes(_ITEM_BYTES[attribute])
    if name == "torch.storage UntypedStorage":
        return _ItemBytes(1)
    return None


class _Rehearsal(pickle.Unpickler):
    """Unpickles with stand-ins alone: nothing that a pickle can name is ever imported or called."""

    def __init__(self, data: bytes, members: dict[str, zipfile.ZipInfo]) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._members = members

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in; names were checked before, and are checked again here."""
        stand_in = _stand_in(f"{module} {name}")
        if stand_in is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return stand_in

    def persistent_load(self, identifier: Any) -> _Storage:
        """The storage of ('storage', kind, key, location, number of elements), if the archive has just those bytes."""
        tag, kind, key, _location, count = identifier
        if tag != "storage" or not isinstance(kind, _ItemBytes) or not isinstance(key, str) or not _natural(count):
            raise Untrue("a storage is described in an unknown way")
        if key not in self._members:
            raise Untrue(f"the storage {one_line(key, 40)!r} is not in the archive")
        found = self._members[key].file_size
        if count * kind.size != found:
            raise Untrue(f"the storage {one_line(key, 40)!r} claims {count * kind.size:,} bytes and has {found:,}")
        return _Storage(key, found, kind.size)


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _rebuild_tensor_v2(storage: _Storage, offset: int, shape: Any, strides: Any, *_rest: object) -> _Anything:
    return _rebuild(storage, storage.item_bytes, offset, shape, strides)


def _rebuild_tensor_v3(
    storage: _Storage, offset: int, shape: Any, strides: Any, _gradient: object, _hooks: object, dtype: _ItemBytes,
    *_rest: object,
) -> _Anything:  # fmt: skip
    return _rebuild(storage, dtype.size, offset, shape, strides)


def _rebuild_parameter(tensor: _Anything, *_rest: object) -> _Anything:
    return tensor


def _rebuild(storage: _Storage, item_bytes: int, offset: int, shape: Any, strides: Any) -> _Anything:
    """Hold a tensor against its storage: torch enlarges a storage that is too short, with whatever is in memory."""
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)):
        raise Untrue("a tensor is described in an unknown way")
    if not all(map(_natural, (offset, *shape, *strides))):
        raise Untrue(f"a tensor has shape {one_line(shape, 60)}, strides {one_line(strides, 60)}, offset {offset}")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if count and (last + 1) * item_bytes > storage.bytes:
        raise Untrue(f"a tensor of shape {one_line(shape, 60)} reaches beyond its storage of {storage.bytes:,} bytes")
    if count * item_bytes > max(MAX_EXPANDED_BYTES, storage.bytes):
        raise Untrue(f"a tensor of shape {one_line(shape, 60)} repeats a storage of {storage.bytes:,} bytes")
    return _Anything()


_REBUILDERS: dict[str, Callable[..., Any]] = {
    "_rebuild_tensor_v2": _rebuild_tensor_v2,
    "_rebuild_tensor_v3": _rebuild_tensor_v3,
    "_rebuild_parameter": _rebuild_parameter,
}
