"""A claim written as the library's own calls: it runs where statecheck can't be imported, and shows the same error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_models import CausalLM
from configured_models import Config, Prepared, SmallLM

import statecheck as sc
from statecheck.adapters.huggingface.transcript import scatter
from statecheck.deviation import Deviation
from statecheck.errors import NotOffered
from statecheck.histories.operations import Claim
from statecheck.histories.plain_scripts import plain_script

HERE = Path(__file__).parent
#: A model that forgets breaks all but the last; the others are kept by a healthy one as well.
CLAIMS = [
    "1x5@0: feed(0:2) feed(2:5) == whole(0:5)",
    "2x6@1: read(0:3) read(3:5) crop(3) feed(3:5) feed(5:6, first 1) == read(0:3) feed(3:5) feed(5:6)",
    "3x4@2: read(0:2) rows(2,0,1) feed(2:4) == recorded",
    "2x7@3: feed(0:5, left 2/0) feed(5:7) == of(0) feed(0:3) feed(5:7) & of(1) whole(0:7)",
    "2x5@4: read(0:2) copy(a) other(0:3) back(a) feed(2:4) back(a) feed(2:4) == recorded",
    "2x5@5: feed(0:2) park(a) other(0:2) park(b) take(a) feed(2:4) take(b) feed(2:4) == recorded",
    "2x6@6: read(0:3, right 1/0) feed(3:5) == recorded",
    "2x5@7: other(0:4) forget(2) feed(0:3) == feed(0:3)",
]
WRONG = [0, 2, 3, 4, 5, 6]  # of these a model that forgets shows an error


def model(*, forgets: bool, layers: int = 2) -> SmallLM:
    return SmallLM(Config(layers=layers, forgets=forgets)).eval()


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(text, encoding="utf-8")
    blocked = "import sys, runpy; sys.modules['statecheck'] = None; runpy.run_path('script.py')"
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", blocked]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


def printed(done: subprocess.CompletedProcess[str]) -> float:
    """The largest relative error that a script printed."""
    assert done.returncode == 0, done.stderr
    errors = [float(value) for line in re.findall(r"each position \[(.*)\]", done.stdout) for value in line.split(",")]
    return max(errors)


def written(claim: str, *, forgets: bool) -> tuple[str, Deviation]:
    with torch.no_grad():
        return plain_script(sc.wrap(model(forgets=forgets)), Claim.parse(claim), None, said="CHUNK: in pieces")


@pytest.mark.parametrize("number", range(len(CLAIMS)))
def test_a_script_of_random_weights_shows_the_error_without_statecheck(number: int, tmp_path: Path) -> None:
    text, shown = written(CLAIMS[number], forgets=True)
    assert re.match("# CHUNK: in pieces\n# .*torch.*\n# case: ", text)
    assert "statecheck" not in text
    assert (shown.error > 0.01) == (number in WRONG)
    found = printed(run(tmp_path, text))
    assert found == pytest.approx(shown.error, rel=0.5) if number in WRONG else found < 1e-5


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_same_script_of_a_healthy_model_shows_no_error(claim: str, tmp_path: Path) -> None:
    text, shown = written(claim, forgets=False)
    assert shown.error < 1e-5
    assert printed(run(tmp_path, text)) < 1e-5


def test_a_script_reads_as_the_calls_that_a_user_makes() -> None:
    text, _ = written(CLAIMS[0], forgets=True)
    assert text.splitlines()[-12:-4] == [
        "model = make()",
        "out1 = model(input_ids=x[:, 0:5], use_cache=False)",
        "out2 = model(input_ids=x[:, 0:2], use_cache=True)",
        "out3 = model(input_ids=x[:, 2:5], use_cache=True, past_key_values=out2.past_key_values)",
        "",
        "expected = out1.logits",
        "found = torch.cat([out2.logits, out3.logits], 1)",
        "for row, (e, f) in enumerate(zip(expected, found)):",
    ]


def test_a_model_with_weights_of_its_own_is_saved_beside_the_script(tmp_path: Path) -> None:
    """Where random weights do not break the claim the script is of the model itself."""
    trained = scatter(model(forgets=True), seed=3)
    (tmp_path / "case").mkdir()
    with torch.no_grad():
        text, shown = plain_script(sc.wrap(trained), Claim.parse(CLAIMS[0]), tmp_path / "weights")
    assert 'SmallLM.from_pretrained("../weights")' in text
    assert printed(run(tmp_path / "case", text)) == pytest.approx(shown.error, rel=0.5)


class Raising(SmallLM):
    """It takes one element at a time."""

    def unpacked(self, cache: object) -> object:
        if self.reading > 1:
            raise IndexError("one at a time")
        return super().unpacked(cache)


def test_what_raises_is_the_last_line() -> None:
    with torch.no_grad():
        text, shown = plain_script(sc.wrap(Raising(Config())), Claim.parse(CLAIMS[0]), None)
    assert shown.error == float("inf")
    assert text.splitlines()[-3].startswith("out3 = model(")
    assert text.splitlines()[-1] == "# the line above raises IndexError in Raising: one at a time"


class Unordered(SmallLM):
    """Its cache can't be reordered."""

    def packed(self, after: list, cache: Any, time: int) -> Any:
        cache = super().packed(after, cache, time)
        cache.reorder_cache = refused
        return cache


def refused(rows: torch.Tensor) -> None:
    raise IndexError("no rows")


def test_a_reordering_that_raises_is_the_last_line() -> None:
    with torch.no_grad():
        text, shown = plain_script(sc.wrap(Unordered(Config())), Claim.parse(CLAIMS[2]), None)
    assert shown.error == float("inf")
    assert text.splitlines()[-3].endswith(".past_key_values.reorder_cache(torch.tensor([2, 0, 1]))")
    assert "the line above raises IndexError" in text.splitlines()[-1]


def test_an_empty_cache_that_preparation_makes_is_written_down(tmp_path: Path) -> None:
    with torch.no_grad():
        text, shown = plain_script(sc.wrap(Prepared(Config(forgets=True)).eval()), Claim.parse(CLAIMS[0]), None)
    assert "cache1 = model.prepare_inputs_for_generation(x[:, 0:2]" in text
    assert printed(run(tmp_path, text)) == pytest.approx(shown.error, rel=0.5)


def test_a_model_without_a_configuration_has_no_such_script() -> None:
    with torch.no_grad(), pytest.raises(NotOffered, match="no configuration"):
        plain_script(sc.wrap(CausalLM()), Claim.parse(CLAIMS[0]), None)


def test_a_class_that_no_script_can_import_has_no_such_script() -> None:
    class Local(SmallLM):
        pass

    with torch.no_grad(), pytest.raises(NotOffered, match="in a function"):
        plain_script(sc.wrap(Local(Config())), Claim.parse(CLAIMS[0]), None)


def test_writing_a_script_leaves_the_random_numbers_as_they_were() -> None:
    wrapped = sc.wrap(model(forgets=True))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad():
        plain_script(wrapped, Claim.parse(CLAIMS[0]), None)
    assert torch.equal(torch.rand(3), expected)


def test_the_report_of_a_broken_model_holds_such_a_script(tmp_path: Path) -> None:
    sc.check_model(model(forgets=True), suite="conformance", only=["CHUNK"], examples=20, out=tmp_path)
    text = (tmp_path / "violations" / "CHUNK.native" / "script.py").read_text(encoding="utf-8")
    assert text.startswith("# CHUNK: ")
    assert "from configured_models import Config, SmallLM" in text
    assert printed(run(tmp_path, text)) > 0.01
