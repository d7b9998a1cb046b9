"""Finds and loads the compiled library, once and when first asked for, and says why where it can't be used.

`_cpu.so` lies beside this file, with its sources in `src`. It is optional: without it the other forms do the work.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL, RTLD_GLOBAL, c_char_p, c_int
from functools import cache
from pathlib import Path
from threading import Lock

import torch  # noqa: F401  (it loads the OpenMP library that ours calls)

from statecheck_kernels.cpu.source_hash import source_hash

LIBRARY = Path(__file__).with_name("_cpu.so")
SOURCES = Path(__file__).with_name("src")
REBUILD = (
    "to build it: `pip install -e .` in a checkout of statecheck (`make setup` does that too), "
    "elsewhere `pip install --force-reinstall --no-deps --no-binary statecheck statecheck`"
)
#: Where the library that torch loaded has no OpenMP in it: GCC's, then clang's.
OPENMP = ("libgomp.so.1", "libomp.so.5", "libomp.so")

_lock = Lock()


def available() -> bool:
    """Whether the compiled library is there, whole, and built from the sources beside it."""
    return _found()[0] is not None


def reason() -> str:
    """Why the library can't be used and what to do, in one sentence; empty if it can be."""
    return _found()[1]


def load() -> CDLL:
    """The library; RuntimeError with :func:`reason` where it can't be used."""
    library, why = _found()
    if library is None:
        raise RuntimeError(why)
    return library


def instruction_set() -> str:
    """The level of this processor that the library uses, for example "x86-64-v4"; RuntimeError without the library."""
    return _text(load(), "sk_instruction_set")


@contextmanager
def at_most(level: int) -> Iterator[str]:
    """Use no more of the processor than `level` for a while: 1 what the compiler assumes, 2 AVX2, 3 AVX-512.

    Gives the :func:`instruction_set` that is used then; for the whole process. RuntimeError without the library.
    """
    limit = load().sk_limit_instruction_set
    limit.argtypes, limit.restype = (c_int,), c_int
    limit(level)
    try:
        yield instruction_set()
    finally:
        limit(0)


def threads() -> int:
    """How many threads a call may use: those of torch, or 1 if the compiler had no OpenMP.

    RuntimeError without the library.
    """
    function = load().sk_threads
    function.argtypes, function.restype = (), c_int
    return int(function())


def open_library(path: Path, sources: Path) -> CDLL:
    """Load the library at `path`, which must have been built from the files in `sources`, where there are any.

    RuntimeError: it is missing, damaged, of another platform, or built from other sources.
    """
    if not path.exists():
        raise RuntimeError(
            f"no compiled library: it is built when statecheck is installed on a machine with a C++ compiler; {REBUILD}"
        )
    if _is_cut_short(path):
        raise RuntimeError(f"the compiled library {path} is cut short; {REBUILD}")
    try:
        library = _open(path)
        built_from = _text(library, "sk_source_hash")
    except (OSError, AttributeError) as error:
        raise RuntimeError(f"the compiled library {path} can't be loaded ({error}); {REBUILD}") from error
    expected = source_hash(sources)
    if expected not in (None, built_from):
        raise RuntimeError(
            f"the compiled library {path} was built from other sources ({built_from}) than those beside it "
            f"({expected}); {REBUILD}"
        )
    return library


def _found() -> tuple[CDLL | None, str]:
    with _lock:
        return _find()


@cache
def _find() -> tuple[CDLL | None, str]:
    try:
        return open_library(LIBRARY, SOURCES), ""
    except RuntimeError as error:
        return None, str(error)


def _open(path: Path) -> CDLL:
    """The library calls OpenMP without naming a file for it: that of torch serves, or else one of the system."""
    try:
        return CDLL(str(path))
    except OSError as error:
        for name in OPENMP:
            try:
                CDLL(name, RTLD_GLOBAL)
                return CDLL(str(path))
            except OSError:
                continue
        raise error


def _text(library: CDLL, name: str) -> str:
    function = library[name]
    function.argtypes, function.restype = (), c_char_p
    return bytes(function()).decode()


def _is_cut_short(path: Path) -> bool:
    """Whether an ELF file ends before its last table: the system's loader would die of it, not report it."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64:
        return True
    if header[:6] != b"\x7fELF\x02\x01":  # 64 bits, little end first; others are left to the loader
        return False
    (table,) = struct.unpack_from("<Q", header, 40)
    entry_size, entries = struct.unpack_from("<HH", header, 58)
    return table + entry_size * entries > path.stat().st_size
