"""Copies of the kernels and the reference models with a fault in them, built and run through the battery.

A fault is a replacement of exact text, so it can't rot: where the text is not there exactly once, planting fails.
`python planting.py NAME FOLDER` plants a fault of `faults` (NAME "unchanged FORM": none) and says what the cases say.
"""

import contextlib
import importlib
import os
import runpy
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = (
    HERE.parents[1] / "kernels" / "statecheck_kernels",
    HERE.parents[1] / "reference_models" / "statecheck_reference",
)
COPIED = (".py", ".cpp", ".hpp")
#: Imported anew for every copy: the packages, and the tests that hold functions of theirs.
OWN = ("statecheck_kernels", "statecheck_reference", "drawing", "battery", "battery_hard", "battery_layers")
#: As in setup.py, but not optimised, for one instruction set and without OpenMP: compiled in 1.5 seconds.
FLAGS = ("-O0", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden")
#: The form that each kind of fault is run in: what is shared by all forms is run in the one that is always there.
RUN_IN = {"cpu": "cpu", "chunked": "chunked", "operations": "chunked", "layers": "chunked", "triton": "triton"}


@dataclass(frozen=True)
class Change:
    """In `file`, `old` becomes `new`."""

    file: str  # in the folder of both packages: "statecheck_kernels/operations.py"
    old: str
    new: str


@dataclass(frozen=True)
class Fault:
    """One row of the table in `faults`."""

    name: str
    source: str  # where it was a real bug: "fla#167"
    form: str  # cpu, chunked, triton; operations: what all forms share; layers: the models around them
    changes: tuple[Change, ...]
    caught_by: tuple[str, ...]  # names of cases, each of which must catch it


def compiler() -> str | None:
    """The C++ compiler that copies are built with, if there is one."""
    return shutil.which("g++")


def copy_of(folder: Path, form: str, fault: Fault | None = None) -> Path:
    """`folder` with a copy of both packages, the fault planted in it, its library built if the form is `cpu`."""
    for package in PACKAGES:
        for path in package.rglob("*"):
            if path.suffix in COPIED:
                target = folder / package.name / path.relative_to(package)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    if fault is not None:
        plant(folder, fault)
    if form == "cpu":
        build(folder / "statecheck_kernels" / "cpu")
    return folder


def plant(folder: Path, fault: Fault) -> None:
    """Make the fault's changes in the copy in `folder`; ValueError where the text to change is not there just once."""
    for change in fault.changes:
        path = folder / change.file
        text = path.read_text()
        if (times := text.count(change.old)) != 1:
            raise ValueError(
                f"fault {fault.name!r}: expected the text {change.old!r} once in {change.file}, found it {times} "
                "times; the source has changed: write the fault for it anew"
            )
        path.write_text(text.replace(change.old, change.new))


def build(cpu: Path) -> None:
    """The library of the package `cpu`, from the sources in it; RuntimeError with what the compiler says."""
    source_hash = runpy.run_path(str(cpu / "source_hash.py"))["source_hash"]
    stands_for = f'-DSTATECHECK_SOURCE_HASH="{source_hash(cpu / "src")}"'
    shared = ("-w", "-DSTATECHECK_BASE_ONLY", stands_for, "-fPIC", "-shared", "-o", str(cpu / "_cpu.so"))
    command = [str(compiler()), *FLAGS, *shared, str(cpu / "src" / "_cpu.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the copy in {cpu} does not compile: {done.stderr[:2000]}")


@contextlib.contextmanager
def imported(folder: Path) -> Iterator[dict[str, Any]]:
    """Inside, imports find the packages in `folder`; gives the cases of the battery, made for them, by name."""
    before = _forget()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        cases = [*importlib.import_module("battery").CASES, *importlib.import_module("battery_layers").CASES]
        found = Path(str(sys.modules["statecheck_kernels"].__file__))
        assert found.is_relative_to(folder), f"{found} was imported, expected the copy in {folder}"
        yield {case.name: case for case in cases}
    finally:
        sys.path.remove(str(folder))
        _forget()
        sys.modules.update(before)


def _forget() -> dict[str, Any]:
    """Take the packages and the tests of them out of the modules that Python knows; gives them back."""
    names = [name for name in sys.modules if name.partition(".")[0] in OWN]
    return {name: sys.modules.pop(name) for name in names}


def outcomes(folder: Path, form: str, names: tuple[str, ...]) -> dict[str, str]:
    """What each named case says of the copy in `folder`: "passes", or the failed assertion.

    Other errors are raised, and assertions of torch's own: a copy that can't run at all, or that torch refuses, is no
    evidence that a case sees the fault.
    """
    found = {}
    with imported(folder) as cases:
        for name in names:
            try:
                cases[name].check(RUN_IN[form])
                found[name] = "passes"
            except AssertionError as error:
                if Path(traceback.extract_tb(error.__traceback__)[-1].filename).parent != HERE:
                    raise
                found[name] = f"fails: {error}"
    return found


def interpreted(folder: Path, fault: Fault | None) -> dict[str, str]:
    """The same of the triton form, by this file in a process of its own: triton is to find TRITON_INTERPRET set."""
    name = "unchanged triton" if fault is None else fault.name
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), name, str(folder)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: the process ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


def _main() -> None:
    from faults import BY_NAME, cases_of

    name, folder = sys.argv[1], Path(sys.argv[2])
    fault = BY_NAME.get(name)
    form = name.partition(" ")[2] if fault is None else fault.form
    copy_of(folder, form, fault)
    for case, said in outcomes(folder, form, cases_of(form) if fault is None else fault.caught_by).items():
        print(f"{case}: {' '.join(said.split())}")


if __name__ == "__main__":
    _main()
