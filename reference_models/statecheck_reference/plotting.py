"""The picture of a training run: losses against the step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot_training(rows: Sequence[Mapping[str, Any]], unigram_entropy: float, path: Path) -> None:
    """Draw training and validation loss of the log's `rows`, and the loss of frequencies alone, to a PNG."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    trained = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
    validated = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    axes.plot(*zip(*trained, strict=True), color="tab:blue", linewidth=0.7, alpha=0.6, label="training (10 steps)")
    axes.plot(*zip(*validated, strict=True), color="tab:orange", linewidth=1.8, label="validation (held-out books)")
    axes.axhline(
        unigram_entropy, color="0.4", linestyle="--", linewidth=1, label="no memory: frequencies of the training books"
    )
    axes.set(xlabel="step", ylabel="loss, nats a token", title="Training of the reference LSTM")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The version of the library would otherwise stand in the file and change it.
    figure.savefig(path, dpi=130, metadata={"Software": None})
