"""`statecheck-reference`: train, export and plot the reference models."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from statecheck_reference.corpus import build_corpus, unigram_entropies
from statecheck_reference.export import RECORD, components_shipped, evaluate_shipped
from statecheck_reference.export import export as write_export
from statecheck_reference.models import MODELS, architecture
from statecheck_reference.progress import reporter
from statecheck_reference.registry import TEXT_FOLDER
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.train import LOG, TrainingDiverged
from statecheck_reference.train import train as run_training
from statecheck_reference.training_log import read_log

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
HELD_OUT = ["dracula", "the-moonstone"]
NONE: list[str] = []
DEFAULT = TrainingSettings()
Folder = Annotated[Path | None, typer.Option(help="A folder that ships; without it, that of --model.")]
Model = Annotated[str | None, typer.Option(help=f"Name of a model: {', '.join(sorted(MODELS))}.")]


@app.callback()
def commands() -> None:
    """Train, export and plot the reference models."""


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder of UTF-8 .txt files, one document a file.")],
    out: Annotated[Path, typer.Option(help="Work directory: corpus, checkpoint, log. The same one resumes.")],
    held_out: Annotated[list[str], typer.Option(help="Document to validate on (repeat).")] = HELD_OUT,
    model: Annotated[str, typer.Option(help=f"What to train: {', '.join(sorted(MODELS))}.")] = DEFAULT.model,
    shape: Annotated[list[str], typer.Option(help="NAME=SIZE of the model's config, say width=192 (repeat).")] = NONE,
    steps: int = DEFAULT.steps,
    batch: int = DEFAULT.batch,
    window: Annotated[int, typer.Option(help="Tokens of back-propagation.")] = DEFAULT.window,
    passage_windows: Annotated[int, typer.Option(help="Windows until a row forgets.")] = DEFAULT.passage_windows,
    seed: int = DEFAULT.seed,
    peak_rate: float = DEFAULT.peak_rate,
    component_rate: Annotated[list[str], typer.Option(help="COMPONENT=FACTOR of the rate; 0 freezes (repeat).")] = NONE,
    warm_up: int = DEFAULT.warm_up,
    weight_decay: float = DEFAULT.weight_decay,
    clip: float = DEFAULT.clip,
    log_every: int = DEFAULT.log_every,
    validate_every: int = DEFAULT.validate_every,
    checkpoint_every: int = DEFAULT.checkpoint_every,
    validation_rows: int = DEFAULT.validation_rows,
    validation_length: int = DEFAULT.validation_length,
    threads: Annotated[int | None, typer.Option(help="Part of the result: 2 threads round otherwise than 1.")] = None,
) -> None:
    """Train a language model; run the same command again to resume."""
    if threads is not None:
        torch.set_num_threads(threads)
    settings = TrainingSettings(
        model=model,
        shape=_numbers("--shape", shape),
        steps=steps,
        batch=batch,
        window=window,
        passage_windows=passage_windows,
        seed=seed,
        peak_rate=peak_rate,
        component_rates=_numbers("--component-rate", component_rate),
        warm_up=warm_up,
        weight_decay=weight_decay,
        clip=clip,
        log_every=log_every,
        validate_every=validate_every,
        checkpoint_every=checkpoint_every,
        validation_rows=validation_rows,
        validation_length=validation_length,
    )
    corpus = build_corpus(data, out / "corpus", vocabulary=int(settings.shape["vocabulary"]), held_out=held_out)
    entropies = unigram_entropies(corpus)
    print(
        f"corpus: {len(corpus.training)} documents to train on, {len(corpus.validation)} held out, "
        f"{len(corpus.tokens)} tokens; frequencies alone reach {entropies['training_on_validation']:.4f} nats a token",
        flush=True,
    )
    try:
        with reporter(steps) as show:
            run_training(settings, corpus, out, report=show, warn=lambda line: print(line, file=sys.stderr))
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"trained {steps} steps in {out}")


def _numbers(option: str, pairs: list[str]) -> dict[str, int | float]:
    """NAME=NUMBER, each once, as a mapping; whole numbers as integers."""
    found: dict[str, int | float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name in found:
            raise ValueError(f"{option}: expected {name} once, found it twice")
        try:
            found[name] = int(text) if text.lstrip("-").isdecimal() else float(text)
        except ValueError:
            raise ValueError(f"{option}: expected NAME=NUMBER, found {pair!r}") from None
    return found


@app.command()
def export(
    work: Annotated[Path, typer.Option(help="Work directory of a training run; its last checkpoint is exported.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; without it, where the model ships.")] = None,
    text: Annotated[Path, typer.Option(help="Documents on which the loss is recorded.")] = TEXT_FOLDER,
) -> None:
    """Write the folder that ships from a training run: weights, tokenizer, config, log, record."""
    _print_record(write_export(work, out, text))


@app.command()
def show(folder: Folder = None, model: Model = None) -> None:
    """Print how the shipped model was trained and what it reached."""
    _print_record(_record(_shipped(folder, model)))


@app.command()
def evaluate(
    folder: Folder = None,
    model: Model = None,
    text: Annotated[Path, typer.Option(help="A folder of .txt documents.")] = TEXT_FOLDER,
) -> None:
    """Measure the shipped model's loss on text."""
    for name, value in evaluate_shipped(_shipped(folder, model), text).items():
        print(f"{name:24} {value:.6g}")


@app.command()
def plot(
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    folder: Folder = None,
    model: Model = None,
) -> None:
    """Draw the training log: losses, and by component gradients, updates and gates where there are several."""
    from statecheck_reference.plotting import plot_training  # matplotlib takes a second to import

    found = _shipped(folder, model)
    record = _record(found)
    title, entropy = f"Training of {record['model']}", record["unigram_entropy"]["training_on_validation"]
    plot_training(read_log(found / LOG), entropy, out, title=title, components=components_shipped(found))
    print(out)


def _shipped(folder: Path | None, model: str | None) -> Path:
    """The folder that was named, else that of the model that was, else that of the default model."""
    if folder is not None and model is not None:
        raise ValueError("--folder and --model exclude each other: a folder says which model it holds")
    return folder or architecture(model or DEFAULT.model).folder


def _record(folder: Path) -> dict[str, Any]:
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"model: expected {RECORD} in {folder}, found none; export a training run there first")
    return json.loads((folder / RECORD).read_text())


def _print_record(record: dict[str, Any]) -> None:
    figures = {name: value for name, value in record.items() if name not in ("corpus", "settings", "unigram_entropy")}
    figures |= {f"unigram_entropy.{name}": value for name, value in record["unigram_entropy"].items()}
    figures |= {f"corpus.{part}": ", ".join(record["corpus"][part]) for part in ("training", "validation")}
    for name, value in figures.items():
        print(f"{name:40} {value}")


def main() -> None:
    """Run the command line: 0 done, 2 wrong option or input, 3 the run could not go on, 130 interrupted (resumable)."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (TrainingDiverged, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
