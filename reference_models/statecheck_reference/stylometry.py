"""Text as a sequence of vectors: how each eight words of it are written. What the GRU of vectors reads.

A block is eight consecutive words (what `str.split` gives). Of each block eight counts are taken, of words that belong
to a small class: persons, tenses, quotation marks, questions. Such function words tell who writes, and how: Mosteller &
Wallace 1964, "Inference and Disputed Authorship"; persons, tenses and questions are among the features on which speech
and narration differ: Biber 1988, "Variation across Speech and Writing". Dialogue and narration, and whom a passage is
about, last for many blocks, so the next vector can be told in part from those before: a memory is of use.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 8  # words


@dataclass(frozen=True)
class Feature:
    """One count: of the words in a block that are in `words`, or have one of the characters in `marks`.

    `mean` and `spread` are the count's mean and standard deviation over all blocks of the training novels.
    """

    name: str
    mean: float
    spread: float
    words: frozenset[str] = frozenset()
    marks: str = ""

    def counts(self, word: str) -> bool:
        """True for a word that counts; letters alone are compared, in lower case.

        >>> FEATURES[0].counts('"I,'), FEATURES[0].counts("Ivy")
        (True, False)
        """
        return _letters(word) in self.words or any(mark in word for mark in self.marks)


def _letters(word: str) -> str:
    return re.sub(r"[^a-z]", "", word.lower())


def _of(words: str) -> frozenset[str]:
    return frozenset(words.split())


FEATURES = (
    Feature("first person", 0.2567, 0.5319, _of("i me my mine myself we us our ours")),
    Feature("second person", 0.1093, 0.3526, _of("you your yours yourself thou thee thy")),
    Feature("he", 0.2766, 0.5442, _of("he him his himself")),
    Feature("she", 0.1428, 0.4127, _of("she her hers herself")),
    Feature("past", 0.2412, 0.4853, _of("was were had did been")),
    Feature("present", 0.1579, 0.3941, _of("is are am have has do does")),
    Feature("quotation marks", 0.1904, 0.5624, marks='"“”'),
    Feature("questions", 0.0928, 0.3278, marks="?!"),
)


def block_counts(text: str) -> NDArray[np.int64]:
    """The counts of each block of eight words, (blocks, 8); fewer than eight words at the end are left out.

    >>> block_counts('"Is he coming?" said she to me. I was not told.').tolist()
    [[2, 0, 1, 1, 0, 1, 2, 1]]
    """
    words = text.split()
    blocks = len(words) // BLOCK
    table = {word: [feature.counts(word) for feature in FEATURES] for word in set(words)}
    rows = np.array([table[word] for word in words[: blocks * BLOCK]], dtype=np.int64)
    return rows.reshape(blocks, BLOCK, len(FEATURES)).sum(axis=1)


def style_vectors(text: str) -> NDArray[np.float32]:
    """The counts of each block, less their mean in the training novels, over their spread there: (blocks, 8)."""
    means, spreads = ([getattr(feature, name) for feature in FEATURES] for name in ("mean", "spread"))
    return ((block_counts(text) - np.array(means)) / np.array(spreads)).astype(np.float32)
