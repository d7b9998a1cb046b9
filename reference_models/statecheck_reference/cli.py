"""`statecheck-reference`: train, export and plot the reference models."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from statecheck_reference.corpus import build_corpus, unigram_entropies
from statecheck_reference.export import RECORD, evaluate_shipped
from statecheck_reference.export import export as write_export
from statecheck_reference.progress import reporter
from statecheck_reference.registry import LSTM_FOLDER, TEXT_FOLDER
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.train import LOG, TrainingDiverged
from statecheck_reference.train import train as run_training
from statecheck_reference.training_log import read_log

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
HELD_OUT = ["dracula", "the-moonstone"]
DEFAULT = TrainingSettings()


@app.callback()
def commands() -> None:
    """Train, export and plot the reference models."""


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder of UTF-8 .txt files, one document a file.")],
    out: Annotated[Path, typer.Option(help="Work directory: corpus, checkpoint, log. The same one resumes.")],
    held_out: Annotated[list[str], typer.Option(help="Document to validate on (repeat).")] = HELD_OUT,
    steps: int = DEFAULT.steps,
    batch: int = DEFAULT.batch,
    window: Annotated[int, typer.Option(help="Tokens of back-propagation.")] = DEFAULT.window,
    passage_windows: Annotated[int, typer.Option(help="Windows until a row forgets.")] = DEFAULT.passage_windows,
    seed: int = DEFAULT.seed,
    peak_rate: float = DEFAULT.peak_rate,
    warm_up: int = DEFAULT.warm_up,
    weight_decay: float = DEFAULT.weight_decay,
    clip: float = DEFAULT.clip,
    log_every: int = DEFAULT.log_every,
    validate_every: int = DEFAULT.validate_every,
    checkpoint_every: int = DEFAULT.checkpoint_every,
    validation_rows: int = DEFAULT.validation_rows,
    validation_length: int = DEFAULT.validation_length,
    vocabulary: int = DEFAULT.vocabulary,
    width: int = DEFAULT.width,
    layers: int = DEFAULT.layers,
    threads: Annotated[int | None, typer.Option(help="Part of the result: 2 threads round otherwise than 1.")] = None,
) -> None:
    """Train the LSTM language model; run the same command again to resume."""
    if threads is not None:
        torch.set_num_threads(threads)
    settings = TrainingSettings(
        steps=steps,
        batch=batch,
        window=window,
        passage_windows=passage_windows,
        seed=seed,
        peak_rate=peak_rate,
        warm_up=warm_up,
        weight_decay=weight_decay,
        clip=clip,
        log_every=log_every,
        validate_every=validate_every,
        checkpoint_every=checkpoint_every,
        validation_rows=validation_rows,
        validation_length=validation_length,
        vocabulary=vocabulary,
        width=width,
        layers=layers,
    )
    corpus = build_corpus(data, out / "corpus", vocabulary=vocabulary, held_out=held_out)
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


@app.command()
def export(
    work: Annotated[Path, typer.Option(help="Work directory of a training run; its last checkpoint is exported.")],
    out: Annotated[Path, typer.Option(help="Folder to write: weights, tokenizer, config, log, record.")] = LSTM_FOLDER,
    text: Annotated[Path, typer.Option(help="Documents on which the loss is recorded.")] = TEXT_FOLDER,
) -> None:
    """Write the folder that ships from a training run."""
    _print_record(write_export(work, out, text))


@app.command()
def show(folder: Annotated[Path, typer.Option(help="A shipped folder.")] = LSTM_FOLDER) -> None:
    """Print how the shipped model was trained and what it reached."""
    _print_record(_record(folder))


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Option(help="A shipped folder.")] = LSTM_FOLDER,
    text: Annotated[Path, typer.Option(help="A folder of .txt documents.")] = TEXT_FOLDER,
) -> None:
    """Measure the shipped model's loss on text."""
    for name, value in evaluate_shipped(folder, text).items():
        print(f"{name:24} {value:.6g}")


@app.command()
def plot(
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    folder: Annotated[Path, typer.Option(help="A shipped folder.")] = LSTM_FOLDER,
) -> None:
    """Draw the losses of the training log."""
    from statecheck_reference.plotting import plot_training  # matplotlib takes a second to import

    plot_training(read_log(folder / LOG), _record(folder)["unigram_entropy"]["training_on_validation"], out)
    print(out)


def _record(folder: Path) -> dict[str, Any]:
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
