"""The battery catches real bugs: each is planted in a copy of the kernels, which unchanged passes the same cases."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from faults import BY_NAME, FAULTS, SOURCES, cases_of
from planting import Fault, compiler, copy_of, interpreted, outcomes, plant

FORMS = ("cpu", "chunked", "operations", "layers")
compiled = {"cpu": pytest.mark.skipif(compiler() is None, reason="no C++ compiler: g++ is not on the path")}
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed: pip install 'triton>=3.5'"
)
PLANTED = [pytest.param(f, id=f"{f.form}-{f.name}", marks=compiled.get(f.form, ())) for f in FAULTS if f.form in FORMS]
IN_TRITON = [pytest.param(f, id=f.name) for f in FAULTS if f.form == "triton"]


class Copies:
    """The copies that are compiled, all of them asked for when the first one is: two are built at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(2)
        self._building: dict[Fault | None, Future[Path]] = {}

    def get(self, form: str, fault: Fault | None) -> Path:
        """The folder of the copy with `fault`, or of the unchanged one."""
        if form != "cpu":
            return copy_of(
                self._folder / f"{form}-{'unchanged' if fault is None else FAULTS.index(fault)}", form, fault
            )
        if not self._building:
            for n, one in enumerate([None, *(fault for fault in FAULTS if fault.form == "cpu")]):
                self._building[one] = self._pool.submit(copy_of, self._folder / f"cpu-{n}", "cpu", one)
        return self._building[fault].result()

    def close(self) -> None:
        """What is not being built yet won't be."""
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copies]:
    copies = Copies(tmp_path_factory.mktemp("copies"))
    yield copies
    copies.close()


@pytest.mark.parametrize("form", [pytest.param(form, marks=compiled.get(form, ())) for form in FORMS])
def test_the_unchanged_copy_passes(form: str, copies: Copies) -> None:
    said = outcomes(copies.get(form, None), form, cases_of(form))
    assert set(said.values()) == {"passes"}, said


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_caught(fault: Fault, copies: Copies) -> None:
    said = outcomes(copies.get(fault.form, fault), fault.form, fault.caught_by)
    assert all(what.startswith("fails") for what in said.values()), said


@needs_triton
@pytest.mark.slow
def test_the_unchanged_triton_form_passes(tmp_path: Path) -> None:
    said = interpreted(tmp_path, None)
    assert set(said) == set(cases_of("triton"))
    assert set(said.values()) == {"passes"}, said


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("fault", IN_TRITON)
def test_a_fault_of_the_triton_form_is_caught(fault: Fault, tmp_path: Path) -> None:
    said = interpreted(tmp_path, fault)
    assert set(said) == set(fault.caught_by)
    assert all(what.startswith("fails") for what in said.values()), said


def test_every_bug_is_planted_and_no_name_twice() -> None:
    assert {fault.source for fault in FAULTS} == set(SOURCES)
    assert len(BY_NAME) == len(FAULTS)
    assert all(fault.caught_by for fault in FAULTS)


def test_every_fault_still_fits_its_source(tmp_path: Path) -> None:
    """Those too that can't be built or run here."""
    for n, fault in enumerate(FAULTS):
        folder = copy_of(tmp_path / str(n), "none", fault)
        for change in fault.changes:  # a text that was not there just once has raised
            assert change.new in (folder / change.file).read_text()


@pytest.mark.parametrize(("old", "times"), [("no such text", 0), ("def ", 3)])
def test_a_text_that_is_not_there_once_is_refused(old: str, times: int, tmp_path: Path) -> None:
    """A fault whose place has changed must not be planted nowhere, nor anywhere."""
    (tmp_path / "a.py").write_text("def one() -> None: ...\ndef two() -> None: ...\ndef three() -> None: ...\n")
    fault = FAULTS[0]
    change = replace(fault.changes[0], file="a.py", old=old)
    with pytest.raises(ValueError, match=f"expected the text .* once in a.py, found it {times} times"):
        plant(tmp_path, replace(fault, changes=(change,)))
