"""`statecheck-reference`: train, export and plot the reference models."""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from statecheck_reference.corpus import build_corpus, unigram_entropies
from statecheck_reference.progress import reporter
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.train import TrainingDiverged
from statecheck_reference.train import train as run_training

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
        f"{len(corpus.tokens)} tokens; without memory {entropies['training_on_validation']:.4f} nats a token at best",
        flush=True,
    )
    with reporter(steps) as show:
        run_training(settings, corpus, out, report=show, warn=lambda line: print(line, file=sys.stderr))
    print(f"trained {steps} steps in {out}")


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
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
