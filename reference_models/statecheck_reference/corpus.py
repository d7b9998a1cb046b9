"""The training corpus: a folder of plain texts, one document a file, encoded once to a file of 16-bit token ids.

A token is a byte pair or a character. Whole documents are held out for validation; the tokenizer never sees them. The
digest names the corpus by its titles and contents, so that anyone can assemble the same one and know it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from statecheck.atomic import atomic_write_bytes, atomic_write_text
from statecheck_reference.tokenizer import UNSEEN, load_tokenizer, train_byte_pairs, train_characters

HELD_OUT = ["dracula", "the-moonstone"]  # of the novels that the bundled models are trained on
TOKENS, INDEX, TOKENIZER = "tokens.bin", "corpus.json", "tokenizer.json"
BYTE_PAIRS, CHARACTERS = "byte-pairs", "characters"  # what a token is
TOKEN_TYPE = np.dtype("<u2")  # little-endian on every machine
LARGEST_VOCABULARY = 65_536  # ids that 16 bits hold
CODE_POINTS = 0x110000  # all that Unicode has


@dataclass(frozen=True)
class Document:
    """One text in the token file: tokens [start, start + length), `bytes` in UTF-8 (0: an old index doesn't tell)."""

    title: str
    start: int
    length: int
    held_out: bool
    bytes: int = 0


@dataclass(frozen=True)
class Corpus:
    """An encoded corpus: the token file, memory-mapped, and where each document lies in it."""

    tokens: np.ndarray  # (total,) uint16, read-only
    documents: tuple[Document, ...]
    vocabulary: int
    digest: str
    folder: Path
    units: str = BYTE_PAIRS

    @property
    def training(self) -> tuple[Document, ...]:
        """The documents that are trained on."""
        return tuple(document for document in self.documents if not document.held_out)

    @property
    def validation(self) -> tuple[Document, ...]:
        """The documents held out."""
        return tuple(document for document in self.documents if document.held_out)

    def of(self, document: Document) -> np.ndarray:
        """The tokens of one document, (length,) uint16."""
        return self.tokens[document.start : document.start + document.length]


def read_texts(folder: Path) -> dict[str, str]:
    """Title (file name without .txt) -> text, sorted by title.

    Raises FileNotFoundError if there is no such folder or no .txt in it, ValueError for an empty file or one that is
    not UTF-8.
    """
    paths = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not paths:
        raise FileNotFoundError(f"corpus: expected a folder of .txt files, one document a file, found none in {folder}")
    texts = {}
    for path in paths:
        try:
            text = path.read_bytes().decode("utf-8")  # not read_text: line ends stay as they are
        except UnicodeDecodeError as error:
            raise ValueError(f"corpus: {path.name} is not UTF-8 text ({error})") from error
        if not text.strip():
            raise ValueError(f"corpus: {path.name} is empty; remove it or fill it")
        texts[path.stem] = text
    return texts


def corpus_digest(texts: Mapping[str, str]) -> str:
    """SHA-256 over titles and contents, whatever their order.

    >>> corpus_digest({"b": "two", "a": "one"}) == corpus_digest({"a": "one", "b": "two"})
    True
    """
    total = hashlib.sha256()
    for title in sorted(texts):
        total.update(title.encode() + b"\0" + hashlib.sha256(texts[title].encode()).digest())
    return total.hexdigest()


def build_corpus(
    source: Path, folder: Path, *, units: str = BYTE_PAIRS, vocabulary: int | None = None, held_out: Sequence[str]
) -> Corpus:
    """Encode the texts in `source` into `folder`, or open what an earlier call with the same texts left there.

    `units` is "byte-pairs", `vocabulary` of them, or "characters", as many as the texts hold. The tokenizer is trained
    on the documents that are not held out. Raises ValueError for other units or a vocabulary that doesn't go with
    them, for a title in `held_out` that is not there, when nothing is left to train on, and when `folder` holds
    another corpus.
    """
    _check_units(units, vocabulary)
    texts = read_texts(source)
    unknown = sorted(set(held_out) - set(texts))
    if unknown or not held_out or len(held_out) == len(texts):
        raise ValueError(
            f"corpus: expected to hold out some but not all of the documents {', '.join(texts)}; "
            f"asked for {', '.join(held_out) or 'none'}"
        )
    digest = corpus_digest(texts)
    if (folder / INDEX).is_file():
        return _reopened(folder, digest, units, vocabulary, held_out)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _trained([text for title, text in texts.items() if title not in held_out], vocabulary)
    atomic_write_text(folder / TOKENIZER, tokenizer.to_str(pretty=True))
    index = {
        "digest": digest,
        "units": units,
        "vocabulary": tokenizer.get_vocab_size(),
        "documents": [asdict(document) for document in _encode(texts, tokenizer, units, folder / TOKENS, held_out)],
    }
    atomic_write_text(folder / INDEX, json.dumps(index, indent=1))  # last: its presence says that the rest is whole
    return open_corpus(folder)


def open_corpus(folder: Path) -> Corpus:
    """The encoded corpus in `folder`; FileNotFoundError or ValueError with one line if there is none or it is cut."""
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"corpus: expected an encoded corpus, found no {INDEX} in {folder}")
    index = json.loads((folder / INDEX).read_text())
    documents = tuple(Document(**document) for document in index["documents"])
    tokens = np.memmap(folder / TOKENS, dtype=TOKEN_TYPE, mode="r")
    expected = sum(document.length for document in documents)
    if len(tokens) != expected:
        raise ValueError(f"corpus: expected {expected} tokens in {folder / TOKENS}, found {len(tokens)}; delete it")
    units = index.get("units", BYTE_PAIRS)  # an index from before there were others doesn't tell
    return Corpus(tokens, documents, index["vocabulary"], index["digest"], folder, units)


def held_out_corpus(source: Path, tokenizer: Tokenizer, titles: Sequence[str], digest: str) -> Corpus:
    """The documents `titles` of the texts in `source`, encoded in memory: what a shipped model was validated on.

    Raises ValueError if the texts are not those that `digest` names.
    """
    texts = read_texts(source)
    found = corpus_digest(texts)
    if found != digest:
        raise ValueError(
            f"corpus: expected the texts that the model was trained and validated on ({digest[:12]}), found others "
            f"({found[:12]}) in {source}; the record lists their titles"
        )
    encode = _by_library(tokenizer)
    parts = {title: encode(texts[title]) for title in titles}
    starts = np.cumsum([0, *(len(ids) for ids in parts.values())]).tolist()
    documents = tuple(
        Document(title, start, len(ids), True, len(texts[title].encode()))
        for start, (title, ids) in zip(starts, parts.items(), strict=False)
    )
    tokens = np.concatenate(list(parts.values()))
    return Corpus(tokens, documents, tokenizer.get_vocab_size(), digest, source)


def corpus_tokenizer(corpus: Corpus) -> Tokenizer:
    """The tokenizer that the corpus was encoded with."""
    return load_tokenizer(corpus.folder / TOKENIZER)


def bytes_per_token(corpus: Corpus) -> dict[str, float]:
    """UTF-8 bytes that a token stands for, on average over the `training` and over the `validation` documents.

    What makes losses comparable between vocabularies: nats a token, divided by this, are nats a byte; and models see
    equal amounts of text when tokens times this are equal. Raises ValueError if an old index doesn't tell the bytes.

    >>> documents = (Document("read", 0, 4, False, bytes=12), Document("kept", 4, 2, True, bytes=5))
    >>> bytes_per_token(Corpus(np.zeros(6, np.uint16), documents, 1, "none", Path()))
    {'training': 3.0, 'validation': 2.5}
    """
    if not all(document.bytes for document in corpus.documents):
        raise ValueError(
            f"corpus: expected the bytes of each document in {corpus.folder / INDEX}, found an index from before they "
            "were counted; delete the folder, the next run encodes the same texts into the same tokens"
        )
    parts = {"training": corpus.training, "validation": corpus.validation}
    return {
        name: sum(document.bytes for document in documents) / sum(document.length for document in documents)
        for name, documents in parts.items()
    }


def unigram_entropies(corpus: Corpus) -> dict[str, float]:
    """What a model without any memory could reach on the held-out documents, in nats a token.

    `validation`: the entropy of the held-out tokens' own frequencies, the lowest loss of any fixed distribution.
    `training_on_validation`: the cross-entropy of the training frequencies (one added to each count) on them.
    """
    held, known = _counts(corpus, corpus.validation), _counts(corpus, corpus.training) + 1
    held, known = held / held.sum(), known / known.sum()
    seen = held > 0
    return {
        "validation": float(-(held[seen] * np.log(held[seen])).sum()),
        "training_on_validation": float(-(held * np.log(known)).sum()),
    }


def _counts(corpus: Corpus, documents: Iterable[Document]) -> np.ndarray:
    """How often each token stands in `documents`, (vocabulary,) float64."""
    counts = np.zeros(corpus.vocabulary)
    for document in documents:
        counts += np.bincount(corpus.of(document), minlength=corpus.vocabulary)
    return counts


def _check_units(units: str, vocabulary: int | None) -> None:
    if units not in (BYTE_PAIRS, CHARACTERS):
        raise ValueError(f"units: expected {BYTE_PAIRS} or {CHARACTERS}, found {units!r}")
    if units == CHARACTERS and vocabulary is not None:
        raise ValueError(f"vocabulary: expected none for {CHARACTERS}, it is what the texts hold; found {vocabulary}")
    if units == BYTE_PAIRS and not (vocabulary and vocabulary <= LARGEST_VOCABULARY):
        raise ValueError(
            f"vocabulary: expected a number of byte pairs up to {LARGEST_VOCABULARY}, such as 4096; found {vocabulary}"
        )


def _trained(texts: Iterable[str], vocabulary: int | None) -> Tokenizer:
    """A tokenizer of byte pairs, or of characters where no vocabulary is asked for."""
    if vocabulary is not None:
        return train_byte_pairs(texts, vocabulary)
    tokenizer = train_characters(texts)
    if tokenizer.get_vocab_size() > LARGEST_VOCABULARY:
        raise ValueError(
            f"corpus: expected at most {LARGEST_VOCABULARY - 1} different characters, found "
            f"{tokenizer.get_vocab_size() - 1}; use {BYTE_PAIRS}"
        )
    return tokenizer


def _encode(
    texts: Mapping[str, str], tokenizer: Tokenizer, units: str, path: Path, held_out: Iterable[str]
) -> list[Document]:
    encode = _by_table(tokenizer) if units == CHARACTERS else _by_library(tokenizer)
    documents: list[Document] = []
    parts, start, left_out = [], 0, set(held_out)
    for title, text in texts.items():
        ids = encode(text)
        documents.append(Document(title, start, len(ids), title in left_out, len(text.encode())))
        parts.append(ids)
        start += len(ids)
    atomic_write_bytes(path, np.concatenate(parts).tobytes())
    return documents


def _by_library(tokenizer: Tokenizer) -> Callable[[str], np.ndarray]:
    return lambda text: np.array(tokenizer.encode(text).ids, dtype=TOKEN_TYPE)


def _by_table(tokenizer: Tokenizer) -> Callable[[str], np.ndarray]:
    """The same ids of characters by looking them up: the library takes 440 bytes of memory for each character."""
    table = np.full(CODE_POINTS, tokenizer.token_to_id(UNSEEN), dtype=TOKEN_TYPE)
    for character, number in tokenizer.get_vocab().items():
        table[ord(character)] = number
    return lambda text: table[np.frombuffer(text.encode("utf-32-le"), dtype="<u4")]


def _reopened(folder: Path, digest: str, units: str, vocabulary: int | None, held_out: Iterable[str]) -> Corpus:
    corpus = open_corpus(folder)
    asked = (digest, units, vocabulary or corpus.vocabulary, set(held_out))  # characters: the texts decide how many
    found = (corpus.digest, corpus.units, corpus.vocabulary, {document.title for document in corpus.validation})
    if found != asked:
        raise ValueError(
            f"corpus: {folder} holds another corpus, other units, another vocabulary or choice of held-out documents "
            f"than asked for ({corpus.vocabulary} {corpus.units}); use another work directory"
        )
    return corpus
