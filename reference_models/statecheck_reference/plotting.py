"""The picture of a training run: losses against the step, and by component gradients, updates and gates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]


def plot_training(
    rows: Rows, unigram_entropy: float, path: Path, *, title: str, components: Sequence[str] = ()
) -> None:
    """Draw training and validation loss of the log's `rows`, and the loss of frequencies alone, to a PNG.

    With several `components`, three more panels: norms of the raw gradients and relative updates of each component, and
    the mean fusion gate of each layer.
    """
    several = len(components) > 1
    figure = Figure(figsize=(11, 7.5) if several else (7.5, 4.2), layout="constrained")
    panels = list(figure.subplots(2, 2).flat) if several else [figure.subplots()]
    _losses(panels[0], rows, unigram_entropy, title)
    if several:
        _curves(panels[1], rows, "gradient_norms", components, "norm of the gradient, before clipping")
        _curves(panels[2], rows, "relative_updates", components, "RMS of the update / RMS of the parameters")
        layers = sorted({layer for row in rows for layer in row.get("gates", {})})
        _curves(panels[3], rows, "gates", layers, f"mean fusion gate: share of {components[0]}", logarithmic=False)
        panels[3].set_ylim(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The version of the library would otherwise stand in the file and change it.
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _losses(axes: Axes, rows: Rows, unigram_entropy: float, title: str) -> None:
    trained = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
    validated = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    interval = f"training ({trained[0][0]} steps)"
    axes.plot(*zip(*trained, strict=True), color="tab:blue", linewidth=0.7, alpha=0.6, label=interval)
    axes.plot(*zip(*validated, strict=True), color="tab:orange", linewidth=1.8, label="validation (held-out books)")
    axes.axhline(
        unigram_entropy, color="0.4", linestyle="--", linewidth=1, label="no memory: frequencies of the training books"
    )
    axes.set(xlabel="step", ylabel="loss, nats a token", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _curves(axes: Axes, rows: Rows, key: str, names: Sequence[str], label: str, *, logarithmic: bool = True) -> None:
    """One line a name, of the entries that the rows' table `key` has for it."""
    for name in names:
        points = [(row["step"], row[key][name]) for row in rows if name in row.get(key, {})]
        axes.plot(*zip(*points, strict=True), linewidth=0.8, label=name)
    if logarithmic:
        axes.set_yscale("log")
    axes.set(xlabel="step", title=label)
    axes.grid(alpha=0.25)
    if names:
        axes.legend()
