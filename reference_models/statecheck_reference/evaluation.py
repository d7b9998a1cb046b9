"""Loss of the model on text: held-out windows while training, the bundled chapters afterwards."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from statecheck_reference.corpus import read_texts
from statecheck_reference.models import LanguageModel

Windows = Sequence[tuple[Tensor, Tensor]]  # (inputs, targets), both (rows, window) int64


def evaluate(model: LanguageModel, windows: Windows) -> float:
    """Mean loss in nats a token over `windows`, from a fresh state carried from one to the next.

    The model's own states and mode are left as they were.
    """
    loss, _ = evaluate_with_states(model, windows)
    return loss


def evaluate_with_states(model: LanguageModel, windows: Windows) -> tuple[float, dict[str, Tensor]]:
    """As `evaluate`; and the states after the last window."""
    kept, training = model.get_states(), model.training
    model.set_states(None)
    model.eval()
    with torch.no_grad():
        total = sum(_total_loss(model(inputs), targets) for inputs, targets in windows)
        states = model.get_states()
    model.set_states(kept)
    model.train(training)
    return total / sum(targets.numel() for _, targets in windows), states


def _total_loss(logits: Tensor, targets: Tensor) -> float:
    """Sum over (rows, window), in double precision; row by row, for a whole batch of logits is large."""
    rows = zip(logits, targets, strict=True)
    return sum(functional.cross_entropy(row.double(), target, reduction="sum").item() for row, target in rows)


def cut_windows(tokens: Tensor, window: int) -> Windows:
    """Windows of `tokens` (rows, length + 1), whose targets are their inputs one token later.

    >>> [inputs.tolist() for inputs, _ in cut_windows(torch.arange(5).unsqueeze(0), window=2)]
    [[[0, 1]], [[2, 3]]]
    """
    return [
        (tokens[:, at : at + window].contiguous(), tokens[:, at + 1 : at + window + 1].contiguous())
        for at in range(0, tokens.shape[1] - window, window)
    ]


def text_windows(folder: Path, tokenizer: Tokenizer, *, length: int, window: int) -> Windows:
    """The first `length` tokens of every document in `folder` that has more than that, cut into windows.

    Raises ValueError if none is that long, and as `read_texts` does.
    """
    documents = [tokenizer.encode(text).ids for text in read_texts(folder).values()]
    rows = [ids[: length + 1] for ids in documents if len(ids) > length]
    if not rows:
        longest = max(map(len, documents))
        raise ValueError(
            f"text: expected documents of more than {length} tokens in {folder}, the longest has {longest}"
        )
    return cut_windows(torch.tensor(rows), window)
