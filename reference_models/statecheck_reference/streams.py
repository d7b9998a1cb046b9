"""The order of the training data: a pure function of (seed, step), the same for a resumed run as for an unbroken one.

Documents are cut into passages of a fixed number of windows. An epoch is a random permutation of all passages, dealt
out in turn to the rows of the batch; each row reads its passage window by window with the state carried, and its state
is cleared at the first window of the next. A window never holds tokens of two documents. Rows start staggered, so that
not all of them are cleared at the same step.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from statecheck_reference.corpus import Corpus, Document
from statecheck_reference.evaluation import Windows, cut_windows


@dataclass(frozen=True)
class Batch:
    """One step's data: `targets` are the inputs one token later; `fresh` marks the rows whose state must be cleared."""

    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64
    fresh: Tensor  # (B,) bool


class PassageStreams:
    """`batch_at(step)`: the windows of step 0, 1, 2, ... for `batch` rows.

    Raises ValueError when no document is as long as one passage.
    """

    def __init__(self, corpus: Corpus, *, batch: int, window: int, passage_windows: int, seed: int) -> None:
        self.corpus, self.batch, self.window = corpus, batch, window
        self.passage_windows, self.seed = passage_windows, seed
        self._counts = [(document.length - 1) // self.passage_tokens for document in corpus.training]
        self.passages = sum(self._counts)
        if self.passages == 0:
            raise ValueError(
                f"corpus: expected a training document of more than {self.passage_tokens} tokens (one passage of "
                f"{passage_windows} windows of {window}), found none; ask for shorter passages or windows"
            )
        self._starts = lru_cache(maxsize=4)(self._starts_of_epoch)

    @property
    def passage_tokens(self) -> int:
        """Tokens that a row reads before its state is cleared."""
        return self.window * self.passage_windows

    def batch_at(self, step: int) -> Batch:
        """The data of `step`, counted from 0."""
        rows = [self._row(row, step) for row in range(self.batch)]
        tokens = torch.from_numpy(np.stack([tokens for tokens, _ in rows]))  # (B, T + 1)
        fresh = torch.tensor([position == 0 or step == 0 for _, position in rows])
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), fresh)

    def _row(self, row: int, step: int) -> tuple[np.ndarray, int]:
        turn, position = divmod(step + row * self.passage_windows // self.batch, self.passage_windows)
        epoch, index = divmod(turn * self.batch + row, self.passages)
        start = self._starts(epoch)[index] + position * self.window
        return self.corpus.tokens[start : start + self.window + 1].astype(np.int64), position

    def _starts_of_epoch(self, epoch: int) -> np.ndarray:
        """Where each passage of the epoch begins in the token file, in the order in which they are read.

        The cuts of each document are shifted at random each epoch, so that the tail left over is not always the same.
        """
        generator, size = np.random.default_rng([self.seed, epoch]), self.passage_tokens
        starts = [
            document.start + _shift(document, count, size, generator) + np.arange(count) * size
            for document, count in zip(self.corpus.training, self._counts, strict=True)
            if count
        ]
        return generator.permutation(np.concatenate(starts))


def _shift(document: Document, count: int, size: int, generator: np.random.Generator) -> int:
    """Tokens to leave out before the first of `count` passages; the last one needs a target beyond its end."""
    return int(generator.integers(0, document.length - 1 - count * size + 1))


def validation_windows(corpus: Corpus, *, rows: int, length: int, window: int) -> Windows:
    """A fixed slice of the held-out documents: `rows` passages of `length` tokens, evenly spaced, cut into windows.

    Each item is (inputs, targets), both (rows, window); the state is to be carried from item to item.
    Raises ValueError when the documents can't give as many passages that don't overlap.
    """
    per_document = -(-rows // len(corpus.validation))
    starts: list[int] = []
    for document in corpus.validation:
        spacing = (document.length - 1) // per_document
        if spacing < length:
            raise ValueError(
                f"corpus: expected {per_document} passages of {length} tokens in the held-out document "
                f"{document.title}, found {document.length} tokens; validate on fewer or shorter passages"
            )
        starts += [document.start + index * spacing for index in range(per_document)]
    rows_of_tokens = np.stack([corpus.tokens[start : start + length + 1] for start in starts[:rows]])
    return cut_windows(torch.from_numpy(rows_of_tokens.astype(np.int64)), window)
