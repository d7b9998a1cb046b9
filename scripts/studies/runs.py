"""Train the runs of a study, one after the other; started again, it goes on where it was.

    python -m studies.runs founding --data NOVELS --work FOLDER      (in scripts/)

Each run is a folder of `statecheck-reference train` in WORK, named after itself; runs of the same tokens share one
encoded corpus. `--list` prints the commands instead.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from statecheck_reference.checkpointing import load_checkpoint
from statecheck_reference.presets import MATRIX

UNITS = ("characters", "byte-pairs")
FOUNDING_SEEDS, MATRIX_SEEDS, SHORT_SEEDS = (0, 1, 2), (0, 1), (1, 2, 3)
RATE = ["--peak-rate", "0.003", "--weight-decay", "0.1"]
# A constant rate after the warm-up: a curve over steps is then not one over the schedule.
FOUNDING = [*RATE, "--final-rate", "1", "--warm-up", "100", "--validate-every", "100", "--checkpoint-every", "50"]
FOUNDING += ["--validation-rows", "8", "--validation-length", "1024"]
FOUNDING += [word for step in (100, 300, 500, 1000) for word in ("--keep", str(step))]
SHORT = [*RATE, "--warm-up", "100", "--validate-every", "100", "--checkpoint-every", "50"]


@dataclass(frozen=True)
class Planned:
    """One run: its folder's name, what a token is, and the options of `statecheck-reference train`."""

    name: str
    units: str
    options: tuple[str, ...]


def founding() -> Iterator[Planned]:
    """hybrid-3m on characters and on byte pairs of the same text, 1,000 steps, three seeds."""
    for seed in FOUNDING_SEEDS:
        for units in UNITS:
            options = ("--preset", "hybrid-3m", "--steps", "1000", "--seed", str(seed), *FOUNDING)
            yield Planned(f"finding-{units}-{seed}", units, options)


def matrix() -> Iterator[Planned]:
    """Every preset of the validation matrix on the same 400 batches of 1,024 tokens, two seeds."""
    for seed in MATRIX_SEEDS:
        for name in MATRIX:
            options = ("--preset", name, "--steps", "400", "--batch", "4", "--seed", str(seed), *SHORT)
            yield Planned(f"matrix-{name}-{seed}", "byte-pairs", options)


def seeds() -> Iterator[Planned]:
    """hybrid-8m from three other seeds, 500 steps: how far two models of one recipe lie apart."""
    for seed in SHORT_SEEDS:
        options = ("--preset", "hybrid-8m", "--steps", "500", "--seed", str(seed), *SHORT)
        yield Planned(f"seed-{seed}", "byte-pairs", options)


STUDIES = {"founding": founding, "matrix": matrix, "seeds": seeds}


def command(run: Planned, data: Path, work: Path) -> list[str]:
    """The command that trains a run, with one thread: the result depends on their number."""
    where = ["--data", str(data), "--out", str(work / run.name), "--units", run.units, "--threads", "1"]
    return [sys.executable, "-m", "statecheck_reference.cli", "train", *where, *run.options]


def main(arguments: list[str] | None = None) -> int:
    """Train what is left of a study; the exit code of the first run that fails, else 0."""
    parser = argparse.ArgumentParser(prog="studies.runs", description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", type=Path, required=True, help="folder of .txt files, one document a file")
    parser.add_argument("--work", type=Path, required=True, help="where the runs are; the same one resumes")
    parser.add_argument("--list", action="store_true", help="print the commands")
    told = parser.parse_args(arguments)
    for run in STUDIES[told.study]():
        words = command(run, told.data, told.work)
        if told.list:
            print(" ".join(words))
            continue
        _share_corpus(told.work, run)
        print(run.name, flush=True)
        code = subprocess.run(words, check=False).returncode
        if code:
            return code
    return 0


def _share_corpus(work: Path, run: Planned) -> None:
    """Let the run's corpus be a link to one of all runs with the same tokens."""
    shared, own = work / f"corpus-{run.units}", work / run.name / "corpus"
    shared.mkdir(parents=True, exist_ok=True)
    own.parent.mkdir(parents=True, exist_ok=True)
    if not own.exists():
        own.symlink_to(shared.resolve(), target_is_directory=True)


def folders(study: str, work: Path) -> Mapping[str, Path]:
    """Run name -> folder, of all runs of a study; ValueError names the first that has not ended or is another run."""
    for run in STUDIES[study]():
        refuse_unfinished(run, work / run.name)
    return {run.name: work / run.name for run in STUDIES[study]()}


def refuse_unfinished(run: Planned, folder: Path) -> None:
    """ValueError unless `folder` holds `run`, trained to its end with the options that were planned."""
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        raise ValueError(f"{run.name}: expected a training run in {folder}, found none; train it with studies.runs")
    settings = json.loads(checkpoint["settings"])
    for option, value in planned(run).items():
        if type(settings[option])(value) != settings[option]:  # "1" is the rate 1.0
            raise ValueError(f"{run.name}: expected {option} {value} in {folder}, found {settings[option]}")
    if checkpoint["step"] != settings["steps"]:
        raise ValueError(
            f"{run.name}: expected {settings['steps']} steps in {folder}, found {checkpoint['step']}; "
            "train the rest with studies.runs"
        )


def planned(run: Planned) -> dict[str, str]:
    """The options of a run that its settings hold as they were said, by the names that they have there.

    >>> planned(Planned("short", "byte-pairs", ("--preset", "wide", "--peak-rate", "0.003", "--keep", "5")))
    {'peak_rate': '0.003'}
    """
    words = dict(zip(run.options[::2], run.options[1::2], strict=True))
    return {name[2:].replace("-", "_"): value for name, value in words.items() if name not in ("--preset", "--keep")}


if __name__ == "__main__":
    sys.exit(main())
