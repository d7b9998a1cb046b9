"""The training corpus: a folder of plain texts, one document a file, encoded once to a file of 16-bit token ids.

Whole documents are held out for validation; the tokenizer never sees them. The digest names the corpus by its titles
and contents, so that anyone can assemble the same one and know it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from statecheck.atomic import atomic_write_bytes, atomic_write_text
from statecheck_reference.tokenizer import load_tokenizer, train_byte_pairs

TOKENS, INDEX, TOKENIZER = "tokens.bin", "corpus.json", "tokenizer.json"
TOKEN_TYPE = np.dtype("<u2")  # 65,536 ids at most; little-endian on every machine


@dataclass(frozen=True)
class Document:
    """One text in the token file: tokens [start, start + length)."""

    title: str
    start: int
    length: int
    held_out: bool


@dataclass(frozen=True)
class Corpus:
    """An encoded corpus: the token file, memory-mapped, and where each document lies in it."""

    tokens: np.ndarray  # (total,) uint16, read-only
    documents: tuple[Document, ...]
    vocabulary: int
    digest: str
    folder: Path

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


def build_corpus(source: Path, folder: Path, *, vocabulary: int, held_out: Sequence[str]) -> Corpus:
    """Encode the texts in `source` into `folder`, or open what an earlier call with the same texts left there.

    The tokenizer is trained on the documents that are not held out. Raises ValueError for a title in `held_out` that
    is not there, when nothing is left to train on, and when `folder` holds another corpus.
    """
    texts = read_texts(source)
    unknown = sorted(set(held_out) - set(texts))
    if unknown or not held_out or len(held_out) == len(texts):
        raise ValueError(
            f"corpus: expected to hold out some but not all of the documents {', '.join(texts)}; "
            f"asked for {', '.join(held_out) or 'none'}"
        )
    digest = corpus_digest(texts)
    if (folder / INDEX).is_file():
        return _reopened(folder, digest, vocabulary, held_out)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_byte_pairs((text for title, text in texts.items() if title not in held_out), vocabulary)
    atomic_write_text(folder / TOKENIZER, tokenizer.to_str(pretty=True))
    documents = _encode(texts, tokenizer, folder / TOKENS, held_out)
    index = {"digest": digest, "vocabulary": vocabulary, "documents": [asdict(document) for document in documents]}
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
    return Corpus(tokens, documents, index["vocabulary"], index["digest"], folder)


def corpus_tokenizer(corpus: Corpus) -> Tokenizer:
    """The tokenizer that the corpus was encoded with."""
    return load_tokenizer(corpus.folder / TOKENIZER)


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


def _encode(texts: Mapping[str, str], tokenizer: Tokenizer, path: Path, held_out: Iterable[str]) -> list[Document]:
    documents: list[Document] = []
    parts, start, left_out = [], 0, set(held_out)
    for title, text in texts.items():
        ids = np.array(tokenizer.encode(text).ids, dtype=TOKEN_TYPE)
        documents.append(Document(title, start, len(ids), title in left_out))
        parts.append(ids)
        start += len(ids)
    atomic_write_bytes(path, np.concatenate(parts).tobytes())
    return documents


def _reopened(folder: Path, digest: str, vocabulary: int, held_out: Iterable[str]) -> Corpus:
    corpus = open_corpus(folder)
    found = (corpus.digest, corpus.vocabulary, {document.title for document in corpus.validation})
    if found != (digest, vocabulary, set(held_out)):
        raise ValueError(
            f"corpus: {folder} holds another corpus, vocabulary or choice of held-out documents than asked for; "
            "use another work directory"
        )
    return corpus
