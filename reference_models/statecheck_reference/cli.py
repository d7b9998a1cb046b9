"""`statecheck-reference`: train, export and plot the reference models."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer

from statecheck_reference.corpus import HELD_OUT, Corpus, build_corpus, unigram_entropies
from statecheck_reference.export import RECORD, components_shipped, evaluate_shipped, validate_shipped
from statecheck_reference.export import export as write_export
from statecheck_reference.models import MODELS, architecture
from statecheck_reference.parallel import KINDS, World, joined, whoami
from statecheck_reference.presets import PRESETS
from statecheck_reference.presets import preset as named_shape
from statecheck_reference.progress import LineReporter, reporter
from statecheck_reference.registry import TEXT_FOLDER
from statecheck_reference.settings import PRECISIONS, TrainingSettings
from statecheck_reference.stepping import TrainingDiverged
from statecheck_reference.train import LOG
from statecheck_reference.train import train as run_training
from statecheck_reference.training_log import read_log

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
NONE: list[str] = []
NO_STEPS: list[int] = []
Value = TypeVar("Value")
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
    units: Annotated[str, typer.Option(help="Tokens: byte-pairs or characters.")] = "byte-pairs",
    preset: Annotated[str | None, typer.Option(help=f"A hybrid by name: {', '.join(PRESETS)}.")] = None,
    model: Annotated[str | None, typer.Option(help=f"What to train: {', '.join(sorted(MODELS))}.")] = None,
    shape: Annotated[list[str], typer.Option(help="NAME=VALUE of the model's config, say width=192 (repeat).")] = NONE,
    steps: int = DEFAULT.steps,
    batch: int = DEFAULT.batch,
    window: Annotated[int, typer.Option(help="Tokens of back-propagation.")] = DEFAULT.window,
    passage_windows: Annotated[int, typer.Option(help="Windows until a row forgets.")] = DEFAULT.passage_windows,
    carry: Annotated[bool, typer.Option(help="Hand the state on from window to window of a passage.")] = DEFAULT.carry,
    seed: int = DEFAULT.seed,
    peak_rate: float = DEFAULT.peak_rate,
    final_rate: Annotated[float, typer.Option(help="Share of the peak that the cosine ends at.")] = DEFAULT.final_rate,
    component_rate: Annotated[list[str], typer.Option(help="COMPONENT=FACTOR of the rate (repeat).")] = NONE,
    warm_up: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = DEFAULT.warm_up,
    weight_decay: float = DEFAULT.weight_decay,
    clip: Annotated[float, typer.Option(help="Largest norm of the whole gradient.")] = DEFAULT.clip,
    component_clip: Annotated[list[str], typer.Option(help="COMPONENT=NORM of its gradient at most (repeat).")] = NONE,
    freeze: Annotated[list[str], typer.Option(help="COMPONENT=FROM:TO: steps that leave it as it is (repeat).")] = NONE,
    precision: Annotated[str, typer.Option(help=f"Of the forward pass: {', '.join(PRECISIONS)}.")] = DEFAULT.precision,
    activation_checkpointing: Annotated[bool, typer.Option(help="Save memory: compute blocks twice.")] = False,
    log_every: int = DEFAULT.log_every,
    validate_every: int = DEFAULT.validate_every,
    checkpoint_every: int = DEFAULT.checkpoint_every,
    validation_rows: int = DEFAULT.validation_rows,
    validation_length: int = DEFAULT.validation_length,
    sample_tokens: Annotated[int, typer.Option(help="Length of the generated sample.")] = DEFAULT.sample_tokens,
    keep: Annotated[list[int], typer.Option(help="Step whose checkpoint stays (repeat).")] = NO_STEPS,
    threads: Annotated[int | None, typer.Option(help="Part of the result: 2 threads round otherwise than 1.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default cpu, under torchrun GPUs if any.")] = None,
    parallel: Annotated[str | None, typer.Option(help=f"Under torchrun: {' or '.join(KINDS)}; by default ddp.")] = None,
) -> None:
    """Train a language model; run the same command again to resume."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads: expected 1 or more, found {threads}")
        torch.set_num_threads(threads)
    settings = TrainingSettings(
        model=_model_of(model, preset),
        shape={**(named_shape(preset) if preset else {}), **_pairs("--shape", shape, _value)},
        steps=steps,
        batch=batch,
        window=window,
        passage_windows=passage_windows,
        carry=carry,
        seed=seed,
        peak_rate=peak_rate,
        final_rate=final_rate,
        component_rates=_pairs("--component-rate", component_rate, _number),
        warm_up=warm_up,
        weight_decay=weight_decay,
        clip=clip,
        component_clips=_pairs("--component-clip", component_clip, _number),
        freeze=_pairs("--freeze", freeze, str),
        precision=precision,
        activation_checkpointing=activation_checkpointing,
        log_every=log_every,
        validate_every=validate_every,
        checkpoint_every=checkpoint_every,
        validation_rows=validation_rows,
        validation_length=validation_length,
        sample_tokens=sample_tokens,
    )
    try:
        with joined(parallel, device) as world:
            of_data = partial(_corpus_for, settings, data, out / "corpus", units, held_out)
            _train_on(*world.main_first(of_data), out, keep, world)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None


def _train_on(settings: TrainingSettings, corpus: Corpus, out: Path, keep: list[int], world: World) -> None:
    """Train, and tell of it in the main process."""
    if world.main:
        entropies = unigram_entropies(corpus)
        print(
            f"corpus: {len(corpus.training)} documents to train on, {len(corpus.validation)} held out, "
            f"{len(corpus.tokens)} tokens; frequencies alone reach {entropies['training_on_validation']:.4f} "
            "nats a token",
            flush=True,
        )
    with reporter(settings.steps) if world.main else LineReporter(settings.steps) as show:
        run_training(
            settings,
            corpus,
            out,
            world=world,
            report=show,
            warn=lambda line: print(line, file=sys.stderr),
            keep=keep,
        )
    if world.main:
        print(f"trained {settings.steps} steps in {out}")


def _model_of(model: str | None, preset: str | None) -> str:
    if preset is not None and model not in (None, "hybrid"):
        raise ValueError(f"--preset {preset} is a hybrid: leave out --model {model}")
    return "hybrid" if preset is not None else model or DEFAULT.model


def _corpus_for(
    settings: TrainingSettings, data: Path, folder: Path, units: str, held_out: list[str]
) -> tuple[TrainingSettings, Corpus]:
    """The corpus, and the settings with its vocabulary: of characters there are as many as the texts have."""
    vocabulary = None if units == "characters" else int(settings.shape["vocabulary"])
    corpus = build_corpus(data, folder, units=units, vocabulary=vocabulary, held_out=held_out)
    return replace(settings, shape={**settings.shape, "vocabulary": corpus.vocabulary}), corpus


def _pairs(option: str, pairs: list[str], read: Callable[[str], Value]) -> dict[str, Value]:
    """NAME=VALUE, each once, as a mapping."""
    found: dict[str, Value] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if name in found:
            raise ValueError(f"{option}: expected {name} once, found it twice")
        try:
            if not equals:
                raise ValueError
            found[name] = read(text)
        except ValueError:
            what = "NAME=NUMBER" if read is _number else "NAME=VALUE"
            raise ValueError(f"{option}: expected {what}, found {pair!r}") from None
    return found


def _number(text: str) -> int | float:
    """A whole number as an integer."""
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def _value(text: str) -> int | float | str | bool:
    """A number, true or false, or a word."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return _number(text)
    except ValueError:
        return text


@app.command()
def export(
    work: Annotated[Path, typer.Option(help="Work directory of a training run; its last checkpoint is exported.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; without it, where the model ships.")] = None,
    text: Annotated[Path, typer.Option(help="Documents on which the loss is recorded.")] = TEXT_FOLDER,
    step: Annotated[int | None, typer.Option(help="A checkpoint that was kept, in place of the last.")] = None,
    precision: Annotated[str, typer.Option(help=f"Of matrices in the file: {', '.join(PRECISIONS)}.")] = PRECISIONS[0],
) -> None:
    """Write the folder that ships from a training run: weights, tokenizer, config, log, record."""
    if precision not in PRECISIONS:
        raise ValueError(f"--precision: expected one of {', '.join(PRECISIONS)}, found {precision!r}")
    _print_record(write_export(work, out, text, step=step, precision=precision))


@app.command()
def show(folder: Folder = None, model: Model = None) -> None:
    """Print how the shipped model was trained and what it reached."""
    _print_record(_record(_shipped(folder, model)))


@app.command()
def evaluate(
    folder: Folder = None,
    model: Model = None,
    text: Annotated[Path, typer.Option(help="A folder of .txt documents.")] = TEXT_FOLDER,
    data: Annotated[Path | None, typer.Option(help="The texts of its training: measure its validation loss.")] = None,
) -> None:
    """Measure the shipped model's loss on text, or on the held-out documents of its training."""
    found = _shipped(folder, model)
    for name, value in (validate_shipped(found, data) if data else evaluate_shipped(found, text)).items():
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
        print(f"error: {whoami()}{error}", file=sys.stderr)
        sys.exit(2)
    except (TrainingDiverged, RuntimeError, OSError) as error:
        print(f"error: {whoami()}{error}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
