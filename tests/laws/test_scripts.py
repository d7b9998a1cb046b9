"""A claim written as a script runs as it stands and prints the deviation that statecheck found."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from two_operation_faults import Library, Sloppy

from statecheck.deviation import deviation
from statecheck.errors import CapabilityMissing
from statecheck.histories.operations import Claim
from statecheck.histories.playing import ROUTES, sides
from statecheck.histories.scripts import INPUTS, SCRIPT, script, write

HERE = Path(__file__).parent
RECIPE = [
    f"import sys; sys.path.insert(0, {str(HERE)!r})",
    "from two_operation_faults import Library",
    'model = Library(torch.load("model.pt", weights_only=False))',
]
FLOOR = 1.25e-7
NUMBER = re.compile(r"-?\d[\d.]*(?:e-?\d+)?(?= relative|$|, found)")
ROUNDING = 1e-6  # slices and chosen rows lie differently in memory
CLAIMS = [
    "2x6@3: feed(0:5) feed(5:6) == whole(0:6)",
    "2x9@3: feed(0:4) feed(4:5) feed(5:6) feed(6:7) feed(7:9) == whole(0:9)",
    "3x5@1: feed(0:5, first 2) feed(0:3) == of(0,1,2) whole(0:2) whole(0:3)",
    "3x4@1: of(2,0,1) feed(0:3) feed(3:4) == of(2) whole(0:4) & of(0) whole(0:4) & of(1) whole(0:4)",
    "2x7@2: feed(0:6, left 2/0) feed(6:7) == of(0) feed(0:4) feed(6:7) & of(1) whole(0:7)",
    "2x7@2: feed(0:6, right 0/3) feed(6:7) == of(0) whole(0:7) & of(1) feed(0:3) feed(6:7)",
    "2x7@2: feed(0:6, left 1/0, right 0/3) feed(6:7) == of(0) feed(0:5) feed(6:7) & of(1) feed(0:3) feed(6:7)",
    "3x4@5: read(0:3) rows(2,0,0) feed(3:4) == of(2,0,0) read(0:3) feed(3:4)",
    "2x6@7: read(0:3) other(3:5) crop(3) feed(3:4) == read(0:3) feed(3:4)",
    "3x4@9: of(0) other(0:4) forget(3) feed(0:2) feed(2:3) == whole(0:3)",
    "2x5@4: read(0:3) copy(a) other(0:4) back(a) feed(3:4) back(a) feed(3:4) == whole(0:5)",
    "2x5@4: read(0:3) file(a) other(0:4) back(a) feed(3:5) == read(0:3) feed(3:5)",
    "2x5@4: feed(0:3) park(a) other(0:4) park(b) take(a) feed(3:4) == whole(0:4)",
    "2x4@4: read(0:3) move() feed(3:4) == read(0:3) feed(3:4)",
    "2x4@4: feed(0:3) lose() feed(3:4) == whole(0:4)",
    "2x4@6: read(0:1) copy(a) read(1:2) rows(0,0) sources(0,1) feed(2:3) back(a) feed(3:4) == recorded",
    "3x9@6: read(0:2) free(1) feed(2:3) admit(1, 3:6) feed(6:7) free(0) rows(1,2,0) feed(7:9) == recorded",
    "2x9@6: read(0:5, left 3/0) free(1) file(a) forget(1) feed(5:7) back(a) move() feed(7:8) == recorded",
    "2x9@8: read(0:5, left 0/2) free(0) feed(5:6) admit(0, 6:8) feed(8:9) == recorded",
]


def found_by_statecheck(claim: Claim, route: str, *, uncached: bool = False) -> str:
    torch.manual_seed(0)
    with torch.no_grad():
        return str(deviation(*sides(Library(Sloppy(), uncached=uncached), claim, route)))


def written(folder: Path, claim: Claim, route: str, *, uncached: bool = False) -> list[Path]:
    folder.mkdir()
    torch.manual_seed(0)
    model = Library(Sloppy(), uncached=uncached)
    torch.save(model.module, folder / "model.pt")
    recipe = [*RECIPE[:-1], RECIPE[-1].removesuffix(")") + ", uncached=True)"] if uncached else RECIPE
    return write(folder, model, claim, route, recipe, FLOOR)


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def size(printed: str) -> float:
    """The relative error of a line that tells of a deviation."""
    return float(printed.split()[0])


def numbers(printed: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(printed)]


def test_a_script_prints_the_deviation_and_the_noise_floor(tmp_path: Path) -> None:
    claim = Claim.parse(CLAIMS[0])
    paths = written(tmp_path / "case", claim, "native")
    assert [path.name for path in paths] == [SCRIPT, INPUTS]
    lines = run(tmp_path / "case", SCRIPT).splitlines()
    assert lines == [found_by_statecheck(claim, "native"), "noise floor of the model: 1.2e-07 relative"]
    assert "relative, first at row" in lines[0]


def test_every_operation_on_each_route_gives_the_same_deviation_as_statecheck(tmp_path: Path) -> None:
    expected, folders = [], []
    for number, (text, route, uncached) in enumerate((t, r, u) for t in CLAIMS for r in ROUTES for u in (False, True)):
        claim = Claim.parse(text)
        try:
            expected.append(found_by_statecheck(claim, route, uncached=uncached))
        except CapabilityMissing:
            continue
        folders.append(f"case{number}")
        written(tmp_path / folders[-1], claim, route, uncached=uncached)
    together = f"import os, runpy\nfor name in {folders}:\n os.chdir('../' + name); runpy.run_path('{SCRIPT}')"
    printed = run(tmp_path / folders[0], "-c", together).splitlines()[::2]
    assert len(expected) == len(folders) >= 70
    wrong = [(one, other) for one, other in zip(printed, expected, strict=True) if size(other) > ROUNDING]
    assert len(wrong) > 0.7 * len(expected)
    for one, other in wrong:
        assert NUMBER.sub("", one) == NUMBER.sub("", other)  # the same place
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-3, abs=1e-5)
    assert all(size(one) <= ROUNDING for one, other in zip(printed, expected, strict=True) if size(other) <= ROUNDING)


def test_inputs_hold_only_what_the_script_reads(tmp_path: Path) -> None:
    _, plain = written(tmp_path / "plain", Claim.parse("2x6@3: feed(0:5) feed(5:6) == whole(0:6)"), "native")
    _, padded = written(tmp_path / "padded", Claim.parse(CLAIMS[4]), "native")
    assert set(safetensors.torch.load_file(plain)) == {"x"}
    assert set(safetensors.torch.load_file(padded)) == {"x", "pad"}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("text", CLAIMS)
def test_scripts_are_short_and_say_nothing_of_histories(text: str, route: str) -> None:
    claim = Claim.parse(text)
    model = Library(Sloppy())
    code = script(model, claim, route, ["model = make()"], FLOOR)
    ast.parse(code)
    body = [line for line in code.splitlines()[1:] if line]
    assert "histories" not in "".join(body)
    assert all(len(line) <= 160 for line in body)
    assert len(body) <= 13 + 3 * text.count("(")


def test_a_claim_of_steps_takes_eleven_lines() -> None:
    code = script(Library(Sloppy()), Claim.parse(CLAIMS[0]), "native", ["model = make()"], FLOOR)
    assert len([line for line in code.splitlines()[1:] if line]) == 11
