"""The compiled library is found, whole, built from the sources beside it, and leaves the process as it was."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from statecheck_kernels import cpu
from statecheck_kernels.cpu import library

needs_library = pytest.mark.skipif(not library.LIBRARY.exists(), reason="no compiled library: no C++ compiler here")


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr}"
    return done.stdout


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that the library is looked for in, empty."""
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "_cpu.so")
    monkeypatch.setattr(library, "SOURCES", tmp_path / "src")
    library._find.cache_clear()
    yield tmp_path
    library._find.cache_clear()


@needs_library
def test_the_installed_library_is_usable() -> None:
    assert library.reason() == ""
    assert cpu.available()
    assert cpu.instruction_set()


@needs_library
def test_it_is_loaded_once_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    honest = library.open_library
    monkeypatch.setattr(library, "open_library", lambda *paths: opened.append(paths) or honest(*paths))
    library._find.cache_clear()
    barrier = Barrier(8)

    def ask(_: int) -> object:
        barrier.wait()
        return library.load()

    with ThreadPoolExecutor(8) as pool:
        assert len({id(found) for found in pool.map(ask, range(8))}) == 1
    assert len(opened) == 1


@needs_library
def test_its_threads_are_those_of_torch() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert library.threads() in (1, 3)
        torch.set_num_threads(1)
        assert library.threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_missing_library_has_a_reason_and_a_remedy(elsewhere: Path) -> None:
    assert not cpu.available()
    assert cpu.reason().startswith("no compiled library: it is built when statecheck is installed on a machine with")
    assert "pip install -e ." in cpu.reason()
    with pytest.raises(RuntimeError, match="no compiled library"):
        library.load()
    with pytest.raises(RuntimeError, match="no compiled library"):
        cpu.instruction_set()


@needs_library
def test_a_library_of_other_sources_is_refused(elsewhere: Path) -> None:
    shutil.copy(Path(library.__file__).with_name("_cpu.so"), elsewhere)
    shutil.copytree(Path(library.__file__).with_name("src"), elsewhere / "src")
    with (elsewhere / "src" / "_cpu.cpp").open("a") as source:
        source.write("// changed\n")
    assert not cpu.available()
    assert "was built from other sources" in cpu.reason()
    assert "pip install -e ." in cpu.reason()


@needs_library
def test_a_header_counts_as_source(tmp_path: Path) -> None:
    shutil.copytree(library.SOURCES, tmp_path / "src")
    assert library.open_library(library.LIBRARY, tmp_path / "src")
    (tmp_path / "src" / "another.hpp").touch()
    with pytest.raises(RuntimeError, match="was built from other sources"):
        library.open_library(library.LIBRARY, tmp_path / "src")


@needs_library
def test_without_sources_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert library.open_library(library.LIBRARY, tmp_path / "src")


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="only an ELF file can be seen to be cut short")
def test_a_library_that_is_cut_short_is_a_reason_and_no_crash(tmp_path: Path) -> None:
    whole = library.LIBRARY.read_bytes()
    paths = []
    for length in (0, 1, 100, 4096, len(whole) // 2, len(whole) - 1):
        paths.append(tmp_path / f"{length}.so")
        paths[-1].write_bytes(whole[:length])
    code = f"""
from pathlib import Path
from statecheck_kernels.cpu import library
for path in {list(map(str, paths))}:
    try:
        library.open_library(Path(path), library.SOURCES)
    except RuntimeError as error:
        print(error)
"""
    said = run(code).splitlines()
    assert len(said) == len(paths)
    assert all("is cut short; to build it" in line for line in said)


def test_a_file_that_is_no_library_is_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "_cpu.so"
    path.write_text("not a library " * 20)
    with pytest.raises(RuntimeError, match="can't be loaded"):
        library.open_library(path, library.SOURCES)


#: Whether float32 arithmetic of numpy and torch keeps a number below the smallest normal one.
TINY = "print(bool(numpy.float32(1e-39) * numpy.float32(1) > 0 and (torch.full((9,), 1e-39) * 1.0 > 0).all()))"
#: The floating-point environment of glibc holds MXCSR at byte 28; its lowest six bits are flags of past operations.
MODE = """
def mode():
    if not x86:
        return "not looked at"
    environment = ctypes.create_string_buffer(64)
    ctypes.CDLL("libm.so.6").fegetenv(environment)
    return hex(int.from_bytes(environment.raw[28:32], "little") & ~0x3F)
"""


@needs_library
def test_loading_and_calling_leave_the_floating_point_mode() -> None:
    x86 = sys.platform == "linux" and platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"
    code = f"""
import ctypes
import numpy, torch
x86 = {x86}
{MODE}
print(mode())
{TINY}
import statecheck_kernels
from statecheck_kernels.cpu import library
library.load()
ones = torch.ones(2, 5, 3, 8)
tiny = 1e-20 * ones
scan = statecheck_kernels.wkv6(ones, tiny, tiny, 0 * ones, torch.zeros(3, 8), form="cpu")
assert scan.form == "cpu", scan.form
print(mode())
{TINY}
assert (scan.state - 5e-40).abs().max() < 1e-44, "the kernels lose numbers below the smallest normal one"
"""
    before, tiny, after, tiny_after = run(code).splitlines()
    assert (before, tiny) == (after, tiny_after)
    assert tiny == "True"
