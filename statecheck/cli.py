"""The command line: arguments -> one function call -> exit code. What the commands do stands in `statecheck.commands`.

Exit codes: 0 pass, 1 the gate failed, 2 usage, 3 inconclusive or could not judge, 4 input refused, 5 nothing was
checked, 130 and 143 interrupted. An error is one line on standard error; a traceback never reaches the user.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from statecheck.errors import StatecheckError

app = typer.Typer(
    name="statecheck",
    help="The test bench for models that remember: is the state right, is it healthy, is it any use?",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)

Spec = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Checkpoint, registered name, or package.module:factory (runs your code). Default: reference.",
    ),
]
Name = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Registered model that a bare .pt fits.")]
Loader = Annotated[str | None, typer.Option(metavar="M:F", help="Function of yours that makes a model of a file.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float64 or bfloat16; default: as it comes.")]
Data = Annotated[Path | None, typer.Option(metavar="TEXT|FOLDER|NPZ", help="Your documents; default: the model's own.")]
Tokenizer = Annotated[Path | None, typer.Option(metavar="FILE", help="tokenizer.json that fits the model.")]
TrainingLog = Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines of the training, for `extended`.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides every random number of the run.")]
Out = Annotated[Path | None, typer.Option(metavar="D", help="Run directory; the same one resumes. Default: a new one.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over in a run directory that holds another run.")]
CellSeconds = Annotated[float, typer.Option(min=0.001, help="Limit for one item.")]
LoadSeconds = Annotated[float, typer.Option(min=0.001, help="Limit for loading the model.")]
MaxSeconds = Annotated[float | None, typer.Option(min=0.001, help="Limit for the whole run.")]
MaxMemory = Annotated[str | None, typer.Option(metavar="SIZE", help="Limit like 2GB; default: 80 % of what is free.")]
Suite = Annotated[str, typer.Option(help="A bundled suite, or a suite file.")]
Junit = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML too.")]
Github = Annotated[
    bool | None,
    typer.Option("--github/--no-github", help="Annotations for GitHub; default: where GITHUB_ACTIONS=true."),
]


@app.command()
def run(
    model: Spec = None,
    suite: Suite = "phase39",
    data: Data = None,
    tokenizer: Tokenizer = None,
    training_log: TrainingLog = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    seed: Seed = 0,
    out: Out = None,
    max_seconds: MaxSeconds = None,
    cell_seconds: CellSeconds = 900.0,
    load_seconds: LoadSeconds = 900.0,
    max_memory: MaxMemory = None,
    only: Annotated[list[str] | None, typer.Option(metavar="ITEM", help="Only this item (repeat).")] = None,
    fresh: Fresh = False,
    model_name: Name = None,
    loader: Loader = None,
    junit: Junit = None,
    github: Github = None,
) -> int:
    """Check a model: the exit code is the verdict.

    With no MODEL, the bundled reference model is checked on its bundled text.
    """
    from statecheck.commands import run as command
    from statecheck.commands.asking import Asked, make_limits

    asked = Asked(model, model_name, loader, device, dtype, data, tokenizer, training_log)
    limits = make_limits(
        cell_seconds=cell_seconds, load_seconds=load_seconds, max_memory=max_memory, max_seconds=max_seconds
    )
    told = command.Told.of(junit, github)
    return command.run(asked, suite=suite, only=only or [], seed=seed, out=out, fresh=fresh, limits=limits, told=told)


@app.command()
def conform(
    model: Spec = None,
    law: Annotated[list[str] | None, typer.Option(metavar="LAW", help="Only this law (repeat).")] = None,
    case: Annotated[
        str, typer.Option(metavar="CASE", help="Only this case, as a report prints it; with exactly one --law.")
    ] = "",
    seed: Seed = 0,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Cases that each part of a law draws; default: 40.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.001, help="Limit for each part of a law; what is not through by then is SKIP. Default: 10."),
    ] = None,
    expect_failure: Annotated[
        list[str] | None,
        typer.Option(metavar="LAW=REASON", help="A failure that is known: PADR, or PADR.native alone (repeat)."),
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    out: Out = None,
    fresh: Fresh = False,
    junit: Junit = None,
    github: Github = None,
    max_seconds: MaxSeconds = None,
    cell_seconds: CellSeconds = 900.0,
    load_seconds: LoadSeconds = 900.0,
    max_memory: MaxMemory = None,
    model_name: Name = None,
    loader: Loader = None,
) -> int:
    """Is the state implemented right? Laws, and the shortest history that breaks each.

    For every law that fails, the report has the case, the first wrong element, the command that plays it again, and a
    script in violations/ of the run directory.
    """
    from statecheck.commands import conform as command
    from statecheck.commands.asking import Asked, make_limits
    from statecheck.commands.run import Told

    asked = Asked(model, model_name, loader, device, dtype)
    wanted = command.Wanted(
        law or [], command.Budget(examples, seconds, case), command.parse_expected(expect_failure or [])
    )
    limits = make_limits(
        cell_seconds=cell_seconds, load_seconds=load_seconds, max_memory=max_memory, max_seconds=max_seconds
    )
    told = Told.of(junit, github)
    return command.conform(asked, wanted, seed=seed, out=out, fresh=fresh, limits=limits, told=told)


@app.command()
def survey(
    library: Annotated[str, typer.Argument(metavar="LIBRARY", help="transformers, mambapy, xlstm or rwkv.")],
    profile: Annotated[str, typer.Option(metavar="quick|full", help="quick: keys alone get a short run.")] = "quick",
    only: Annotated[list[str] | None, typer.Option(metavar="MODEL", help="Only this model (repeat).")] = None,
    out: Annotated[Path, typer.Option(metavar="D", help="Folder of the results; the same one resumes.")] = Path(
        "statecheck-survey"
    ),
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 2,
    limit: Annotated[float, typer.Option(min=1.0, metavar="SECONDS", help="Limit for one model.")] = 300.0,
) -> int:
    """Run the laws on every model of an installed library, each built tiny with random weights."""
    from statecheck.commands import survey as command

    return command.survey(library, profile=profile, only=only or [], out=out, jobs=jobs, limit=limit)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")]) -> int:
    """Write the report of a run directory again."""
    from statecheck.commands import run as command

    return command.render(folder)


@app.command()
def ls() -> int:
    """List items, suites and registered models."""
    from statecheck.commands import tables

    return tables.ls()


@app.command()
def show(
    item: Annotated[str, typer.Argument(metavar="ITEM")],
    suite: Annotated[str | None, typer.Option(help="A suite that judges it; default: a bundled one.")] = None,
) -> int:
    """Explain an item and its thresholds."""
    from statecheck.commands import tables

    return tables.show(item, suite=suite)


@app.command()
def doctor(
    model: Spec = None,
    data: Data = None,
    tokenizer: Tokenizer = None,
    training_log: TrainingLog = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    seed: Seed = 0,
    cell_seconds: CellSeconds = 900.0,
    load_seconds: LoadSeconds = 900.0,
    max_memory: MaxMemory = None,
    model_name: Name = None,
    loader: Loader = None,
) -> int:
    """Pre-flight check of machine, model and data."""
    from statecheck.commands import single
    from statecheck.commands.asking import Asked, make_limits

    asked = Asked(model, model_name, loader, device, dtype, data, tokenizer, training_log)
    limits = make_limits(cell_seconds=cell_seconds, load_seconds=load_seconds, max_memory=max_memory)
    return single.doctor(asked, given=model is not None, seed=seed, limits=limits)


@app.command()
def trace(
    model: Spec = None,
    data: Data = None,
    every: Annotated[int, typer.Option(min=1, help="Look at the state after each so many elements.")] = 16,
    apart: Annotated[
        int | None,
        typer.Option(min=0, help="Cosines of states so many elements apart; 0: none. Default: --every, at least 64."),
    ] = None,
    path: Annotated[
        str, typer.Option(metavar="auto|fused|generic", help="Statistics from the model itself, or from its states.")
    ] = "auto",
    length: Annotated[
        int | None, typer.Option(min=1, help="Elements of each document; default: 4 training lengths.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Documents.")] = 16,
    tokenizer: Tokenizer = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    seed: Seed = 0,
    out: Out = None,
    fresh: Fresh = False,
    cell_seconds: CellSeconds = 900.0,
    load_seconds: LoadSeconds = 900.0,
    max_memory: MaxMemory = None,
    model_name: Name = None,
    loader: Loader = None,
) -> int:
    """Record the states over time: a table and pictures."""
    from statecheck.commands import single
    from statecheck.commands.asking import Asked, make_limits

    asked = Asked(model, model_name, loader, device, dtype, data, tokenizer)
    limits = make_limits(cell_seconds=cell_seconds, load_seconds=load_seconds, max_memory=max_memory)
    options = {"every": every, "apart": apart, "path": path, "length": length, "rows": rows}
    return single.trace(asked, options, seed=seed, out=out, fresh=fresh, limits=limits)


@app.command()
def baseline(
    model: Spec = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the numbers go.")] = Path("metrics/baseline.json"),
    suite: Suite = "phase39",
    data: Data = None,
    tokenizer: Tokenizer = None,
    training_log: TrainingLog = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    seed: Seed = 0,
    run_folder: Annotated[Path | None, typer.Option("--run", metavar="D", help="Run directory of the run.")] = None,
    max_seconds: MaxSeconds = None,
    cell_seconds: CellSeconds = 900.0,
    load_seconds: LoadSeconds = 900.0,
    max_memory: MaxMemory = None,
    fresh: Fresh = False,
    model_name: Name = None,
    loader: Loader = None,
) -> int:
    """Keep the numbers of a healthy model.

    In place of MODEL the directory of a finished run may stand: then nothing is run.
    """
    from statecheck.commands import baselines
    from statecheck.commands.asking import Asked, make_limits

    asked = Asked(model, model_name, loader, device, dtype, data, tokenizer, training_log)
    limits = make_limits(
        cell_seconds=cell_seconds, load_seconds=load_seconds, max_memory=max_memory, max_seconds=max_seconds
    )
    return baselines.baseline(asked, suite=suite, seed=seed, out=out, run_folder=run_folder, fresh=fresh, limits=limits)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="report.json, baseline file or run directory.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="The same, of the later model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Is a fix a fix? 0 accepted, 1 refused.

    Accepted only if a number that did not pass is better by more than 5 % and nothing is worse.
    """
    from statecheck.commands import baselines

    return baselines.compare(before, after, as_json=as_json)


@app.command()
def calibrate(
    only: Annotated[list[str] | None, typer.Option(metavar="CULPRIT", help="Only this fault (repeat).")] = None,
    architecture: Annotated[list[str] | None, typer.Option(help="Only this architecture (repeat).")] = None,
    seed: Seed = 0,
    out: Out = None,
    fresh: Fresh = False,
    max_seconds: MaxSeconds = None,
    cell_seconds: CellSeconds = 900.0,
    max_memory: MaxMemory = None,
) -> int:
    """Prove the checks on planted faults.

    Prints the culprit matrix: 0 if each fault is caught by its row and no other row cries wolf. The same command
    resumes.
    """
    from statecheck.commands import calibrate as command
    from statecheck.commands.asking import make_limits

    limits = make_limits(cell_seconds=cell_seconds, load_seconds=900.0, max_memory=max_memory, max_seconds=max_seconds)
    return command.calibrate(
        faults=only or [], architectures=architecture or [], seed=seed, out=out, fresh=fresh, limits=limits
    )


def main() -> None:
    """Entry point of the command `statecheck`."""
    from statecheck.commands.streams import forgiving_streams

    forgiving_streams()
    sys.exit(_exit_code())


def _exit_code() -> int:
    """Run the command; whatever it raises becomes one line and an exit code that is never 1."""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except StatecheckError as error:
        return _say(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted; the same command with the same --out resumes", 130)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _say(f"{place}{error.strerror or error}", 3)
    except Exception as error:
        if isinstance(error, _usage_errors()):
            error.show()  # type: ignore[attr-defined]
            return 2
        return _unexpected(error)


def _say(line: str, code: int) -> int:
    from statecheck.wording import one_line

    print(f"statecheck: {one_line(line, 1000)}", file=sys.stderr)
    return code


def _usage_errors() -> tuple[type, ...]:
    """What typer raises for wrong arguments; the class has no public name that all its versions share."""
    return tuple(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _unexpected(error: Exception) -> int:
    """A fault of statecheck's own: one line, and a file with the traceback."""
    import tempfile
    import traceback

    from statecheck.wording import raised

    with tempfile.NamedTemporaryFile(
        "w", prefix="statecheck-", suffix=".log", delete=False, encoding="utf-8", errors="replace"
    ) as file:
        file.writelines(traceback.format_exception(error))
    return _say(f"a fault of statecheck itself, {raised(error)}; please report it with {file.name}", 3)
