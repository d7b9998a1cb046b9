"""The tokenizers of the reference models, byte-level byte pairs and single characters: train and load them.

Source: Sennrich, Haddow & Birch 2016, "Neural Machine Translation of Rare Words with Subword Units"; bytes instead of
characters after Radford et al. 2019 (GPT-2). Every one of the 256 bytes is in the vocabulary, nothing is normalised and
no space is added, so that any text comes back unchanged; by characters, any text of characters that were trained on.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BYTES = 256
UNSEEN = "\ufffd"  # Unicode's own replacement character


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


def train_characters(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of one token a character: those of `texts`, the most frequent first, then one for all others.

    Equally frequent ones stand in the order of their code points. A character that `texts` don't hold is read as the
    last token, U+FFFD. Raises ValueError if `texts` hold no character.

    >>> tokenizer = train_characters(["to be or not to be"])
    >>> [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size() - 1)]
    [' ', 'o', 't', 'b', 'e', 'n', 'r']
    >>> tokenizer.encode("no bet!").ids  # the last one is "!", which was never seen
    [5, 1, 0, 3, 4, 2, 7]
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    if not counts:
        raise ValueError("texts: expected at least one character to make a vocabulary of, found none; add text")
    del counts[UNSEEN]  # a text that holds it already lost a character there
    characters = sorted(counts, key=lambda character: (-counts[character], character))
    vocabulary = {character: number for number, character in enumerate([*characters, UNSEEN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNSEEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")  # a dot skips line ends
    tokenizer.decoder = decoders.Fuse()  # without one, a space would stand between tokens
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`; FileNotFoundError or ValueError with one line if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer: expected a file, found nothing at {path}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"tokenizer: {path} is not a tokenizer.json that `tokenizers` can read ({error})") from error
