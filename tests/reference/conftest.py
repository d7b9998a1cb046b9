"""What the tests of the reference models share: generated texts, a small corpus, settings that train in a second."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import statecheck_kernels
import torch
from statecheck_kernels import forms
from statecheck_reference.corpus import Corpus, build_corpus
from statecheck_reference.settings import TrainingSettings

VOCABULARY = "the a of and in to was her his that with as she had it for not be at on letter house garden morning"
WORDS = VOCABULARY.split()
SMALL_HYBRID = {
    "vocabulary": 300,
    "width": 12,
    "blocks": 2,
    "rwkv_heads": 2,
    "low_rank": 2,
    "mamba_inner": 16,
    "mamba_heads": 2,
    "mamba_state": 4,
    "feed_forward": 16,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The number of threads is part of a training run's result, and the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["cpu", "chunked"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The recurrences of the hybrid run in this form, by the environment; a test is skipped where it can't run."""
    name = str(request.param)
    detail = {form: detail for form, usable, detail in statecheck_kernels.describe() if not usable}
    if name in detail:
        pytest.skip(f"{name}: {detail[name]}")
    monkeypatch.setenv(forms.VARIABLE, name)
    return name


def write_texts(folder: Path) -> Path:
    """Four documents of seeded words, one of them to hold out."""
    folder.mkdir(parents=True)
    for number, title in enumerate(("first", "second", "third", "kept-apart")):
        draw = random.Random(number)
        lines = [" ".join(draw.choices(WORDS, k=9)) + "." for _ in range(60 + 10 * number)]
        (folder / f"{title}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of generated texts."""
    return write_texts(tmp_path_factory.mktemp("generated") / "texts")


@pytest.fixture(scope="session")
def corpus(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The generated texts, encoded with 300 byte pairs."""
    return build_corpus(texts, tmp_path_factory.mktemp("corpus"), vocabulary=300, held_out=["kept-apart"])


@pytest.fixture
def tiny() -> TrainingSettings:
    """A model of a few thousand weights and a run of forty steps."""
    return TrainingSettings(
        shape={"vocabulary": 300, "width": 12, "layers": 2},
        steps=40,
        batch=2,
        window=8,
        passage_windows=4,
        seed=3,
        warm_up=5,
        log_every=2,
        validate_every=10,
        checkpoint_every=6,
        validation_rows=2,
        validation_length=32,
    )


@pytest.fixture
def tiny_runs(tiny: TrainingSettings) -> dict[str, TrainingSettings]:
    """The same run for each kind of model; the components of the hybrid learn at rates of their own."""
    hybrid = replace(tiny, model="hybrid", shape=SMALL_HYBRID, component_rates={"rwkv": 0.5, "mamba": 2})
    return {"lstm": tiny, "hybrid": hybrid}
