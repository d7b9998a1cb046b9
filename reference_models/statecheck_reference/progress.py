"""What a training run shows: a bar in a terminal, plain lines elsewhere."""

from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Reporter(Protocol):
    """Shows a run step by step; a context manager."""

    def __enter__(self) -> "Reporter": ...

    def __exit__(self, *reason: object) -> None: ...

    def __call__(self, step: int, row: dict[str, Any] | None) -> None:
        """A step is done; `row` is the log's, at the steps that are logged."""


class BarReporter:
    """A progress bar with the last losses beside it."""

    def __init__(self, steps: int, console: Console) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=console,
        )
        self._task = self._bar.add_task("training", total=steps, losses="")
        self._losses: dict[str, float] = {}

    def __enter__(self) -> "BarReporter":
        self._bar.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._bar.stop()

    def __call__(self, step: int, row: dict[str, Any] | None) -> None:
        if row is not None:
            self._losses |= {name: row[f"{name}_loss"] for name in ("train", "validation") if f"{name}_loss" in row}
        losses = "  ".join(f"{name} {loss:.3f}" for name, loss in self._losses.items())
        self._bar.update(self._task, completed=step, losses=losses)


class LineReporter:
    """A line every hundred steps and at each validation."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def __enter__(self) -> "LineReporter":
        return self

    def __exit__(self, *reason: object) -> None:
        return None

    def __call__(self, step: int, row: dict[str, Any] | None) -> None:
        if row is None or ("validation_loss" not in row and step % 100):
            return
        losses = "".join(f"  {name} {row[name]:.4f}" for name in ("train_loss", "validation_loss") if name in row)
        print(f"step {step}/{self._steps}{losses}", flush=True)


def reporter(steps: int) -> Reporter:
    """The bar if standard output is a terminal, else lines."""
    console = Console()
    return BarReporter(steps, console) if console.is_terminal else LineReporter(steps)
