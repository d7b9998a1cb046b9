"""Texts and arrays become documents, and the source says what was done to them."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from statecheck.documents import Documents, load_documents, tokenise_text
from statecheck.errors import InputRefused, UsageError

torch.set_num_threads(1)

WORDS = {word: number for number, word in enumerate("[UNK] <bos> the cat sat on a mat".split())}  # noqa: SIM905


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Whole words, a <bos> in front, and (as saved files often have) truncation and padding switched on."""
    built = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    built.enable_truncation(max_length=4)
    built.enable_padding(length=6)
    path = tmp_path / "tokenizer.json"
    built.save(str(path))
    return path


def text(documents: Documents) -> list[str]:
    return [bytes(row.tolist()).decode() for row in documents.rows]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def archive(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def refusal_of(path: Path, error: type[InputRefused] | type[UsageError] = InputRefused, **options: Any) -> str:
    with pytest.raises(error) as caught:
        load_documents(path, **{"tokenizer": None, "vocabulary": 256, "width": None, **options})
    assert caught.value.exit_code == (4 if error is InputRefused else 2)
    line = str(caught.value)
    assert line.isprintable()
    return line


# Texts


def test_a_folder_holds_one_document_a_file_in_natural_order(tmp_path: Path) -> None:
    folder = tmp_path / "book"
    folder.mkdir()
    for number in (10, 9, 1):
        written(folder / f"chapter-{number}.txt", f"text {number}")
    written(folder / "SOURCE.md", "where it is from")
    written(folder / ".hidden.txt", "x")
    written(folder / "empty.txt", "")
    documents = load_documents(folder, vocabulary=256)
    assert text(documents) == ["text 1", "text 9", "text 10"]
    assert documents.titles == ("chapter-1", "chapter-9", "chapter-10")
    assert documents.kind == "tokens"
    assert all(row.dtype == torch.int64 for row in documents.rows)
    counted = f"3 documents, 19 tokens: 4 files in {folder}, read as bytes; 1 empty document was left out"
    assert documents.source == counted


def test_form_feeds_come_before_chapter_headings(tmp_path: Path) -> None:
    path = written(tmp_path / "t.txt", "CHAPTER 1\none\fCHAPTER 2\ntwo\f\fthree\n")
    documents = load_documents(path, vocabulary=256)
    assert text(documents) == ["CHAPTER 1\none", "CHAPTER 2\ntwo", "three\n"]
    assert documents.titles == ("part 1", "part 2", "part 4")
    assert "t.txt, cut at its form feeds" in documents.source
    assert "1 empty document was left out" in documents.source


@pytest.mark.parametrize(
    "heading",
    [
        "CHAPTER 12",
        "Chapter XII.",
        "BOOK THE FIRST: POVERTY",
        "PART II",
        "  Chapter 3  ",
        "CHAPTER 1. I AM BORN",
        "Book One",
    ],
)
def test_chapter_headings_are_recognised(heading: str, tmp_path: Path) -> None:
    path = written(tmp_path / "t.txt", f"{heading}\nfirst\n\nCHAPTER 99\nsecond\n")
    assert text(load_documents(path, vocabulary=256)) == [f"{heading}\nfirst\n\n", "CHAPTER 99\nsecond\n"]


@pytest.mark.parametrize(
    "line", ["Chapter of accidents", "Part of me", "CHAPTERS", "Book a room", "See Chapter 3", "PARTY I"]
)
def test_prose_is_no_heading(line: str, tmp_path: Path) -> None:
    path = written(tmp_path / "t.txt", f"{line}\nfirst words here, and more of them\n{line}\nsecond\n")
    assert "no chapter headings" in load_documents(path, vocabulary=256).source


def test_a_table_of_contents_is_no_chapter(tmp_path: Path) -> None:
    body = "It was a dark and stormy night. " * 40
    contents = "Chapter I\nA Night\nChapter II\nA Day\n\n"
    path = written(tmp_path / "t.txt", f"{contents}Chapter I\n{body}\nChapter II\n{body}")
    documents = load_documents(path, vocabulary=256)
    assert documents.titles == ("Chapter I", "Chapter II")
    assert [len(row) for row in documents.rows] == [len(body) + 11, len(body) + 11]
    assert "2 with hardly any text, as in a table of contents, were left out" in documents.source


def test_chapters_of_several_books_keep_apart(tmp_path: Path) -> None:
    path = written(tmp_path / "t.txt", "preface\nCHAPTER 1\na\nCHAPTER 2\nb\nCHAPTER 1\nc\n")
    titles = ("before the first heading", "CHAPTER 1", "CHAPTER 2", "CHAPTER 1 (2)")
    assert load_documents(path, vocabulary=256).titles == titles


@pytest.mark.parametrize("length", [5, 32, 33, 1000])
def test_other_texts_are_cut_into_equal_pieces(length: int, tmp_path: Path) -> None:
    whole = "".join(chr(97 + number % 26) for number in range(length))
    documents = load_documents(written(tmp_path / "t.txt", whole), vocabulary=256)
    assert "".join(text(documents)) == whole
    lengths = [len(row) for row in documents.rows]
    assert len(lengths) == min(32, length)
    assert max(lengths) - min(lengths) <= 1
    assert f"cut into {min(32, length)} equal pieces" in documents.source


def test_line_ends_and_byte_order_marks_are_no_text(tmp_path: Path) -> None:
    path = written(tmp_path / "t.txt", b"\xef\xbb\xbfCHAPTER 1\r\none\r\nCHAPTER 2\rtwo")
    assert text(load_documents(path, vocabulary=256)) == ["CHAPTER 1\none\n", "CHAPTER 2\ntwo"]


def test_a_tokenizer_is_used_at_full_length(tmp_path: Path, tokenizer: Path) -> None:
    path = written(tmp_path / "t.txt", "the cat sat on the mat\fa cat")
    documents = load_documents(path, tokenizer=tokenizer, vocabulary=len(WORDS))
    assert [row.tolist() for row in documents.rows] == [[1, 2, 3, 4, 5, 2, 7], [1, 6, 3]]
    assert "tokenised by tokenizer.json" in documents.source
    assert tokenise_text("the dog", tokenizer).tolist() == [1, 2, 0]


def test_a_tokenizer_comes_before_bytes(tmp_path: Path, tokenizer: Path) -> None:
    documents = load_documents(written(tmp_path / "t.txt", "the\fcat"), tokenizer=tokenizer, vocabulary=256)
    assert [row.tolist() for row in documents.rows] == [[1, 2], [1, 3]]


def test_ids_beyond_the_vocabulary_are_refused_with_both_numbers(tmp_path: Path, tokenizer: Path) -> None:
    path = written(tmp_path / "t.txt", "the mat\fthe cat")
    line = refusal_of(path, tokenizer=tokenizer, vocabulary=5)
    assert "largest id is 7" in line
    assert "vocabulary of 5 ends at 4" in line
    assert "--tokenizer" in line


@pytest.mark.parametrize("vocabulary", [None, 4096])
def test_text_without_a_tokenizer_names_the_option(vocabulary: int | None, tmp_path: Path) -> None:
    line = refusal_of(written(tmp_path / "t.txt", "text"), UsageError, vocabulary=vocabulary)
    assert "--tokenizer FILE" in line


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def folder(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, content in files.items():
        written(path / f"{name}.md", content)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "gone.txt", ("no such file", "check the path")),
        (lambda p: written(p / "t.txt", ""), ("empty (0 bytes)", "write it again")),
        (lambda p: written(p / "t.txt", " \n\f\n "), ("the text is empty", "give a text")),
        (lambda p: written(p / "t.txt", "caf\xe9".encode("latin-1")), ("byte 0xe9 at position 3", "iconv")),
        (lambda p: written(p / "t.txt", "a\0b"), ("NUL bytes", "UTF-8 text")),
        (lambda p: fifo(p / "t.txt"), ("named pipe", "give the path")),
        (lambda p: folder(p / "e"), ("no .txt file (none)", "one .txt a document")),
        (lambda p: folder(p / "e", notes="x"), ("no .txt file (notes.md)", "one .txt a document")),
        (lambda p: fifo(folder(p / "e") / "t.txt").parent, ("named pipe", "give the path")),
        (lambda p: written(folder(p / "e") / "t.txt", "").parent, ("no document with anything", "longer text")),
    ],
    ids=["missing", "empty", "blank", "latin-1", "NUL", "FIFO", "empty folder", "no txt", "FIFO inside", "all empty"],
)
def test_a_bad_text_is_refused(make: Callable[[Path], Path], words: tuple[str, ...], tmp_path: Path) -> None:
    line = refusal_of(make(tmp_path))
    assert line.startswith(str(tmp_path))
    assert all(word in line for word in words), line


def test_text_for_a_model_of_vectors_is_refused(tmp_path: Path) -> None:
    line = refusal_of(written(tmp_path / "t.txt", "text"), vocabulary=None, width=8)
    assert "vectors of width 8" in line
    assert ".npz" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{}", ("not a tokenizer", "tokenizer.json")),
        (b"\xff\xfe", ("not a tokenizer", "tokenizer.json")),
        (b"", ("empty (0 bytes)", "write it again")),
    ],
)
def test_a_bad_tokenizer_is_refused(content: bytes, words: tuple[str, ...], tmp_path: Path) -> None:
    path = written(tmp_path / "tok.json", content)
    line = refusal_of(written(tmp_path / "t.txt", "text"), tokenizer=path)
    assert line.startswith(str(path))
    assert all(word in line for word in words)


# Arrays


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "uint64"])
def test_ids_are_read_from_inputs(dtype: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", inputs=np.array([[1, 2, 3], [4, 5, 6]], dtype), notes=np.ones(1))
    documents = load_documents(path, vocabulary=7)
    assert [row.tolist() for row in documents.rows] == [[1, 2, 3], [4, 5, 6]]
    assert documents.rows[0].dtype == torch.int64
    assert documents.kind == "tokens"
    assert documents.source == "2 documents, 6 tokens: array `inputs` (its arrays notes were not read) of d.npz"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_vectors_are_read_from_inputs(dtype: str, tmp_path: Path) -> None:
    values = np.arange(24).reshape(2, 4, 3).astype(dtype)
    documents = load_documents(archive(tmp_path / "d.npz", inputs=values), width=3)
    assert torch.equal(torch.stack(documents.rows), torch.from_numpy(values).float())
    assert (documents.kind, documents.rows[0].dtype) == ("vectors", torch.float32)


def test_articles_are_split_by_article_and_put_in_order(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "d.npz",
        vectors=np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]),
        batch_ids=np.array([7, 3, 7, 3, 7]),
        seq_in_article=np.array([2, 0, 0, 5, 1]),
    )
    documents = load_documents(path, width=2)
    assert documents.titles == ("article 3", "article 7")
    assert [row[:, 0].tolist() for row in documents.rows] == [[2.0, 6.0], [4.0, 8.0, 0.0]]
    assert "article by article" in documents.source


ARTICLES = {"vectors": np.ones((3, 2)), "batch_ids": np.array([0, 0, 1]), "seq_in_article": np.array([0, 1, 0])}


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"x": np.ones(2), "y": np.ones(2)}, {}, ("arrays x, y", "`inputs`", "`vectors`", "`batch_ids`")),
        ({"vectors": np.ones((2, 2))}, {}, ("arrays vectors", "`seq_in_article`")),
        ({"inputs": np.array([[1, 256]])}, {}, ("largest id is 256", "vocabulary of 256 ends at 255")),
        ({"inputs": np.array([[1, -100]])}, {}, ("the id -100", "cut padding off")),
        ({"inputs": np.array([[2**64 - 1]], "uint64")}, {}, ("18446744073709551615", "below 2^63")),
        ({"inputs": np.array([1, 2, 3])}, {}, ("shape (3,)", "(documents, time)")),
        ({"inputs": np.ones((2, 3))}, {}, ("float64 and shape (2, 3)", "(documents, time, features)")),
        ({"inputs": np.ones((2, 3, 4), int)}, {}, ("shape (2, 3, 4)", "ids (documents, time)")),
        ({"inputs": np.ones((0, 3), int)}, {}, ("no documents", "at least one")),
        ({"inputs": np.ones((2, 0), int)}, {}, ("no document with anything", "longer")),
        ({"inputs": np.array([["a"]])}, {}, ("dtype <U1", "whole numbers")),
        ({"inputs": np.array([[True]])}, {}, ("dtype bool", "whole numbers")),
        ({"inputs": np.ones((1, 2, 3))}, {}, ("holds vectors", "(documents, time) ids")),
        ({"inputs": np.ones((1, 2), int)}, {"width": 3}, ("holds token ids", "vectors of width 3")),
        ({"inputs": np.ones((1, 2, 3))}, {"width": 4}, ("have 3 features", "reads 4", "embedding")),
        ({"inputs": np.full((1, 2, 3), np.nan)}, {"width": 3}, ("nan at index (0, 0, 0)", "mend the data")),
        ({"inputs": np.full((1, 2, 3), 1e300)}, {"width": 3}, ("1e+300", "no finite float32")),
        ({**ARTICLES, "seq_in_article": np.array([1, 1, 0])}, {"width": 2}, ("article 0 has two vectors at place 1",)),
        ({**ARTICLES, "batch_ids": np.array([0, 1])}, {"width": 2}, ("`batch_ids`", "one whole number")),
        ({**ARTICLES, "batch_ids": np.array([0.5, 1, 2])}, {"width": 2}, ("dtype float64", "one whole number")),
        ({**ARTICLES, "vectors": np.ones(3)}, {"width": 2}, ("`vectors`", "(elements, features)")),
        (ARTICLES, {"width": 5}, ("have 2 features", "reads 5")),
    ],
)
def test_a_bad_archive_is_refused(
    arrays: Mapping[str, Any], options: Mapping[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    path = archive(tmp_path / "d.npz", **arrays)
    line = refusal_of(path, **({"vocabulary": None, **options} if options else {}))
    assert line.startswith(str(path))
    assert all(word in line for word in words), line


def test_object_arrays_are_refused_and_never_opened(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = archive(tmp_path / "d.npz", inputs=np.array([Evil(marker), None], dtype=object))
    line = refusal_of(path)
    assert "'inputs' holds Python objects" in line
    assert "np.savez" in line
    assert not marker.exists()
    with np.load(path, allow_pickle=True) as loaded, pytest.raises((ValueError, TypeError, pickle.UnpicklingError)):
        loaded["inputs"].sum()
    assert marker.exists(), "the archive does run code when pickles are allowed"


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", inputs=np.arange(40).reshape(4, 10))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    assert "Bad CRC-32" in refusal_of(written(path, bytes(data)))
    assert "cut off" in refusal_of(written(path, bytes(data[:200])))


def test_an_array_whose_header_lies_is_refused(tmp_path: Path) -> None:
    """A header that promises 8 TB over a few bytes, with right checksums."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<i8", "fortran_order": False, "shape": (10**6, 10**6)})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("inputs.npy", buffer.getvalue() + bytes(80))
    assert "'inputs' can't be read" in refusal_of(tmp_path / "d.npz")
