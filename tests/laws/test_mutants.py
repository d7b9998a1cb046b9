"""The table of mutants does not rot, copies are copies, what differs is told by plain calls, and laws kill it."""

from __future__ import annotations

import doctest
import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import statecheck as sc
from statecheck.verdict import Status

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import mutants
from mutation import cached, matrix, plain, planting
from mutation.elsewhere import differs_elsewhere
from mutation.planting import changed, planted, text_of
from mutation.rows import Mutant
from mutation.subjects import SUBJECTS, VOCABULARY, subject


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    """The machine is shared, and the models are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def named(name: str) -> Mutant:
    """The row whose 'model: name' that is."""
    return next(row for row in mutants.ROWS if matrix.key(row) == name)


@pytest.mark.parametrize("row", mutants.ROWS, ids=matrix.key)
def test_the_old_line_is_there_once_and_the_new_one_compiles(row: Mutant) -> None:
    compile(changed(text_of(row.module), row.old, row.new), row.module, "exec")


def test_there_are_mutants_enough_of_each_model_under_names_of_their_own() -> None:
    counts = Counter(row.subject for row in mutants.ROWS)
    assert counts["hybrid"] + counts["anchored"] >= 24
    assert counts["transformer"] >= 16
    assert set(counts) == set(SUBJECTS)
    assert len({matrix.key(row) for row in mutants.ROWS}) == len(mutants.ROWS)


@pytest.mark.parametrize("module", [planting, plain, cached])
def test_the_examples_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


def test_a_line_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="there once, found 'a' 2 times"):
        changed("a = a", "a", "b")


@pytest.mark.parametrize("name", SUBJECTS)
def test_an_unchanged_copy_gives_what_the_model_gives_and_leaves_nothing_behind(name: str) -> None:
    inputs = torch.randint(0, VOCABULARY, (2, 70), generator=torch.Generator().manual_seed(0))
    before = set(sys.modules)
    with torch.no_grad(), planted(None) as load:
        found = subject(name, load)(inputs)
        copied = [one for one in sys.modules if one.startswith("planted")]
        expected = subject(name, importlib.import_module)(inputs)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert copied
    assert not [one for one in set(sys.modules) - before if one.startswith("planted")]


def test_a_mutant_changes_its_copy_and_nothing_else() -> None:
    row = named("transformer: positions restart in every call")
    with planted(row) as load:
        bias = load("statecheck_reference.transformer").attention_bias(1, 1, torch.tensor([0.5]))
    own = importlib.import_module("statecheck_reference.transformer").attention_bias(1, 1, torch.tensor([0.5]))
    assert (bias.tolist(), own.tolist()) == ([[[0.0, float("-inf")]]], [[[-0.5, -0.0]]])


def test_the_same_model_does_not_differ_and_a_changed_one_does() -> None:
    row = named("cached: the next position counts pads")  # only histories with pads show it
    with planted(None) as first, planted(None) as second, planted(row) as third:
        models = [subject("cached", load) for load in (first, second, third)]
        same, other = (plain.first_difference(one, models[0], 40, vocabulary=VOCABULARY, seed=0) for one in models[1:])
        assert (same.history, same.error) == (None, 0.0)
        assert other.history is not None
        assert other.error > 0.01


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("transformer: keys are detached", "gradients"),
        ("transformer: training mode has no bias", "training mode"),
    ],
)
def test_what_differs_in_gradients_or_in_training_mode_alone_is_told(name: str, where: str) -> None:
    with planted(named(name)) as load, planted(None) as load_original:
        model, original = subject("transformer", load), subject("transformer", load_original)
        assert plain.first_difference(model, original, 20, vocabulary=VOCABULARY, seed=0).history is None
        assert differs_elsewhere(model, original, 5, vocabulary=VOCABULARY, seed=0) == where
        assert differs_elsewhere(original, original, 5, vocabulary=VOCABULARY, seed=0) == ""


@pytest.mark.parametrize(
    "name",
    [
        "transformer: new elements go before the cache",  # STEP
        "transformer: the norm takes the mean over the batch",  # BATCH
        "hybrid: a chunk sums over the wrong axis",  # PREFIX
    ],
)
def test_a_mutant_is_killed_by_the_law_that_ought_to_and_the_model_itself_passes_it(name: str) -> None:
    row = named(name)
    with planted(row) as load, planted(None) as load_original:
        found = sc.check_model(subject(row.subject, load), suite="conformance", only=[row.law])
        original = sc.check_model(subject(row.subject, load_original), suite="conformance", only=[row.law])
    assert found[row.law].status is Status.FAIL
    assert original[row.law].status is Status.PASS


def results(history: int | None, status: str) -> dict[str, Any]:
    """What is kept of one mutant."""
    differ = {"history": history, "error": 0.5, "note": "", "elsewhere": "" if history else "gradients"}
    return {"differ": differ, "laws": {"STEP": {"status": status, "reason": "why", "seconds": 1.0}}}


@pytest.mark.parametrize(
    ("history", "status", "code", "said"),
    [
        (1, "FAIL", 0, "1 killed, 0 survive"),
        (1, "SKIP", 1, "0 killed, 1 survive"),
        (None, "PASS", 0, "differs in gradients alone"),
    ],
)
def test_the_command_fails_if_a_mutant_that_differs_is_not_killed(
    history: int | None, status: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "transformer: positions restart in every call"
    (tmp_path / "kept.json").write_text(json.dumps({name: results(history, status)}))
    assert mutants.main(["--print", "--only", name, "--results", str(tmp_path / "kept.json")]) == code
    assert said in capsys.readouterr().out


def test_a_mutant_that_was_never_measured_is_no_success(tmp_path: Path) -> None:
    assert mutants.main(["--print", "--only", "positions restart", "--results", str(tmp_path / "none.json")]) == 1
