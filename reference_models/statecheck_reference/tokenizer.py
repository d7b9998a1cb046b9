"""Byte-level byte pairs: train, save and load the tokenizer of the reference model.

Source: Sennrich, Haddow & Birch 2016, "Neural Machine Translation of Rare Words with Subword Units"; bytes instead of
characters after Radford et al. 2019 (GPT-2). Every one of the 256 bytes is in the vocabulary, nothing is normalised and
no space is added, so that any text comes back unchanged.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BYTES = 256


def train_byte_pairs(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level tokenizer of exactly `vocabulary` tokens, trained on `texts`.

    Raises ValueError if `vocabulary` is below 257, or if the texts are too few to find that many pairs.

    >>> tokenizer = train_byte_pairs(["the cat and the hat and the bat"] * 4, vocabulary=262)
    >>> tokenizer.decode(tokenizer.encode("the naïve cat").ids)
    'the naïve cat'
    """
    if vocabulary <= BYTES:
        raise ValueError(f"vocabulary: expected more than the {BYTES} single bytes, found {vocabulary}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(
            f"vocabulary: expected {vocabulary} byte pairs, the texts hold only {tokenizer.get_vocab_size()}; "
            "train on more text or ask for a smaller vocabulary"
        )
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`; FileNotFoundError or ValueError with one line if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer: expected a file, found nothing at {path}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"tokenizer: {path} is not a tokenizer.json that `tokenizers` can read ({error})") from error
