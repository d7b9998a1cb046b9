"""Tokenizer, corpus and the order of the training data."""

import json
import math
import random
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import statecheck_reference.corpus as corpus_module
from hypothesis import given, settings
from hypothesis import strategies as st
from statecheck_reference.corpus import (
    Corpus,
    Document,
    build_corpus,
    bytes_per_token,
    corpus_digest,
    corpus_tokenizer,
    open_corpus,
    read_texts,
    unigram_entropies,
)
from statecheck_reference.models import MODELS
from statecheck_reference.streams import PassageStreams, validation_windows
from statecheck_reference.tokenizer import load_tokenizer, train_byte_pairs, train_characters
from tokenizers import Tokenizer

from statecheck.documents.texts import tokenise_text

SHIPPED = load_tokenizer(MODELS["lstm"].folder / "tokenizer.json")


def artificial(lengths: list[int], held_out: int = 1) -> Corpus:
    """Documents whose tokens count up from 0 through the whole file; the last `held_out` are held out."""
    starts = np.cumsum([0, *lengths])
    documents = tuple(
        Document(f"d{index}", int(starts[index]), length, index >= len(lengths) - held_out)
        for index, length in enumerate(lengths)
    )
    return Corpus(np.arange(starts[-1], dtype=np.uint16), documents, 65_536, "none", Path())


def write(folder: Path, **texts: str) -> Path:
    """A folder of one file a text, line ends as they are."""
    folder.mkdir()
    for title, text in texts.items():
        (folder / f"{title}.txt").write_bytes(text.encode())
    return folder


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_unchanged(text: str) -> None:
    assert SHIPPED.decode(SHIPPED.encode(text).ids, skip_special_tokens=False) == text


def test_the_shipped_tokenizer_has_4096_byte_pairs() -> None:
    assert SHIPPED.get_vocab_size() == 4096
    assert len(SHIPPED.encode("Mr. Darcy danced only once with Mrs. Hurst.").ids) < 20


def test_training_the_tokenizer_twice_gives_the_same_one(texts: Path) -> None:
    first, second = (train_byte_pairs(read_texts(texts).values(), 300).to_str() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("vocabulary", "message"), [(256, "more than the 256"), (5000, "the texts hold only")])
def test_a_vocabulary_out_of_reach_is_refused(texts: Path, vocabulary: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_byte_pairs(read_texts(texts).values(), vocabulary)


KNOWN = "aé\u0301“”‘’\"' \n\r\t\u2028…ß漢😀\ufffd"
BY_CHARACTERS = train_characters([KNOWN])


@given(st.text(st.sampled_from(KNOWN)))
@settings(max_examples=200, deadline=None)
def test_text_of_known_characters_comes_back_unchanged_a_token_a_character(text: str) -> None:
    ids = BY_CHARACTERS.encode(text).ids
    assert (BY_CHARACTERS.decode(ids), len(ids)) == (text, len(text))


def test_characters_are_numbered_by_frequency_then_by_code_point_and_the_last_token_is_for_all_others() -> None:
    """c three times, a and b twice, the line end and d once; what is no character of the texts is number 5."""
    tokenizer = train_characters(["cbd\nc", "abca"])
    assert tokenizer.get_vocab() == {"c": 0, "a": 1, "b": 2, "\n": 3, "d": 4, "\ufffd": 5}
    assert tokenizer.encode("dc😀\nB\ufffda").ids == [4, 0, 5, 3, 5, 5, 1]
    assert tokenizer.decode([0, 5, 3, 1]) == "c\ufffd\na"


def test_texts_that_hold_the_replacement_character_give_it_no_second_token() -> None:
    assert train_characters(["\ufffd\ufffda"]).get_vocab() == {"a": 0, "\ufffd": 1}


def test_characters_come_back_from_their_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(BY_CHARACTERS.to_str(pretty=True))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.get_vocab() == BY_CHARACTERS.get_vocab()
    assert loaded.decode(loaded.encode(KNOWN).ids) == KNOWN
    assert tokenise_text("é\n", tmp_path / "tokenizer.json").tolist() == BY_CHARACTERS.encode("é\n").ids


def test_no_text_makes_no_vocabulary_of_characters() -> None:
    with pytest.raises(ValueError, match="expected at least one character"):
        train_characters(["", ""])


@pytest.fixture(scope="module")
def characters(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The generated texts, encoded by characters."""
    return build_corpus(texts, tmp_path_factory.mktemp("characters"), units="characters", held_out=["kept-apart"])


@pytest.mark.parametrize("encoded", ["corpus", "characters"])
def test_an_encoded_corpus_decodes_to_its_texts(texts: Path, encoded: str, request: pytest.FixtureRequest) -> None:
    corpus = request.getfixturevalue(encoded)
    tokenizer = corpus_tokenizer(corpus)
    decoded = {document.title: tokenizer.decode(corpus.of(document).tolist()) for document in corpus.documents}
    assert decoded == read_texts(texts)
    assert [document.title for document in corpus.validation] == ["kept-apart"]


def test_the_tokenizer_never_sees_what_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.txt").write_text("the cat sat on the mat and the hat " * 50)
    (tmp_path / "texts" / "held.txt").write_text("zyzzyva " * 500)
    corpus = build_corpus(tmp_path / "texts", tmp_path / "work", vocabulary=270, held_out=["held"])
    assert len(corpus_tokenizer(corpus).encode("zyzzyva").ids) == len("zyzzyva")


def test_characters_are_encoded_as_the_library_does_and_those_held_out_are_never_seen(tmp_path: Path) -> None:
    train, held = KNOWN * 3 + "\r\n\r\n", "“a”\n\n\r\n漢z😀Z\ufffd" + chr(sys.maxunicode) + "\0"
    source = write(tmp_path / "texts", train=train, held=held)
    corpus = build_corpus(source, tmp_path / "work", units="characters", held_out=["held"])
    tokenizer = corpus_tokenizer(corpus)
    assert (corpus.units, corpus.vocabulary) == ("characters", len(set(KNOWN)))  # which holds U+FFFD itself
    for document, text in zip(corpus.documents, (held, train), strict=True):  # by title
        assert corpus.of(document).tolist() == tokenizer.encode(text).ids
    assert (corpus.of(corpus.validation[0]) == tokenizer.token_to_id("\ufffd")).sum() == len("zZ\ufffd") + 2


def test_the_vocabulary_goes_with_the_units(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(units: str, vocabulary: int | None) -> Corpus:
        return build_corpus(texts, tmp_path, units=units, vocabulary=vocabulary, held_out=["first"])

    with pytest.raises(ValueError, match="expected byte-pairs or characters, found 'words'"):
        build("words", 300)
    with pytest.raises(ValueError, match="expected none for characters, it is what the texts hold; found 300"):
        build("characters", 300)
    for vocabulary in (None, 65_537):
        with pytest.raises(ValueError, match=f"byte pairs up to 65536, such as 4096; found {vocabulary}"):
            build("byte-pairs", vocabulary)
    monkeypatch.setattr(corpus_module, "LARGEST_VOCABULARY", 10)
    with pytest.raises(ValueError, match="expected at most 9 different characters"):
        build("characters", None)


def test_a_corpus_is_encoded_once_and_another_one_is_refused(texts: Path, tmp_path: Path) -> None:
    first = build_corpus(texts, tmp_path / "work", vocabulary=300, held_out=["kept-apart"])
    written = (tmp_path / "work" / "tokens.bin").stat().st_mtime_ns
    again = build_corpus(texts, tmp_path / "work", vocabulary=300, held_out=["kept-apart"])
    assert (again.digest, again.documents) == (first.digest, first.documents)
    assert (tmp_path / "work" / "tokens.bin").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="holds another corpus"):
        build_corpus(texts, tmp_path / "work", vocabulary=300, held_out=["first"])
    with pytest.raises(ValueError, match=r"holds another corpus, other units.*\(300 byte-pairs\)"):
        build_corpus(texts, tmp_path / "work", units="characters", held_out=["kept-apart"])


def test_a_corpus_of_characters_is_encoded_once(texts: Path, characters: Corpus) -> None:
    written = (characters.folder / "tokens.bin").stat().st_mtime_ns
    again = build_corpus(texts, characters.folder, units="characters", held_out=["kept-apart"])
    assert (again.units, again.vocabulary, again.documents) == (
        "characters",
        characters.vocabulary,
        characters.documents,
    )
    assert (characters.folder / "tokens.bin").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"holds another corpus, other units"):
        build_corpus(texts, characters.folder, vocabulary=characters.vocabulary, held_out=["kept-apart"])


def test_an_index_without_units_and_bytes_is_one_of_byte_pairs(texts: Path, tmp_path: Path) -> None:
    new = build_corpus(texts, tmp_path, vocabulary=300, held_out=["kept-apart"])
    index = json.loads((tmp_path / "corpus.json").read_text())
    del index["units"]
    for document in index["documents"]:
        del document["bytes"]
    (tmp_path / "corpus.json").write_text(json.dumps(index))
    old = build_corpus(texts, tmp_path, vocabulary=300, held_out=["kept-apart"])
    assert (old.units, old.digest, [document.bytes for document in old.documents]) == (
        "byte-pairs",
        new.digest,
        [0] * 4,
    )
    assert old.tokens.tolist() == new.tokens.tolist()
    assert unigram_entropies(old) == unigram_entropies(new)
    with pytest.raises(ValueError, match=r"expected the bytes of each document in .*corpus.json.*delete the folder"):
        bytes_per_token(old)


def test_bytes_per_token_by_hand(tmp_path: Path) -> None:
    """Training: 4 characters of 1, 2, 3 and 4 bytes, and 2 of 1 byte; held out: 3 bytes and a line end of 1."""
    source = write(tmp_path / "texts", four="aé“😀", two="bb", held="“\n")
    corpus = build_corpus(source, tmp_path / "work", units="characters", held_out=["held"])
    assert {document.title: document.bytes for document in corpus.documents} == {"four": 10, "held": 4, "two": 2}
    assert bytes_per_token(corpus) == {"training": 12 / 6, "validation": 4 / 2}


def test_bytes_are_of_the_text_whatever_the_units(texts: Path, corpus: Corpus, characters: Corpus) -> None:
    sizes = {path.stem: path.stat().st_size for path in texts.iterdir()}
    for one in (corpus, characters):
        assert {document.title: document.bytes for document in one.documents} == sizes
    assert bytes_per_token(characters) == {"training": 1, "validation": 1}  # the texts are ASCII
    assert bytes_per_token(corpus)["training"] > 1.5


def test_the_digest_is_of_the_texts_whatever_the_units(corpus: Corpus, characters: Corpus) -> None:
    assert characters.digest == corpus.digest


def test_the_digest_names_titles_and_contents() -> None:
    digests = {
        corpus_digest(texts) for texts in ({"a": "x", "b": "y"}, {"a": "y", "b": "x"}, {"a": "x"}, {"a": "xb", "": "y"})
    }
    assert len(digests) == 4


def test_folders_that_are_no_corpus_are_refused(tmp_path: Path, texts: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a folder of .txt files"):
        read_texts(tmp_path / "nowhere")
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"bad.txt is not UTF-8"):
        read_texts(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b" \n")
    with pytest.raises(ValueError, match=r"bad.txt is empty"):
        read_texts(tmp_path)
    for held_out in (["nobody"], [], ["first", "second", "third", "kept-apart"]):
        with pytest.raises(ValueError, match="expected to hold out some but not all"):
            build_corpus(texts, tmp_path / "work", vocabulary=300, held_out=held_out)


def test_a_token_file_cut_short_is_refused(texts: Path, tmp_path: Path) -> None:
    build_corpus(texts, tmp_path, vocabulary=300, held_out=["kept-apart"])
    tokens = tmp_path / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"expected \d+ tokens in .*tokens.bin"):
        open_corpus(tmp_path)


def test_unigram_entropies_by_hand() -> None:
    """Training counts 1, 1, 2 with one added: 2/7, 2/7, 3/7; held out 1/2, 0, 1/2."""
    documents = (Document("train", 0, 4, False), Document("held", 4, 4, True))
    corpus = Corpus(np.array([0, 1, 2, 2, 0, 0, 2, 2], dtype=np.uint16), documents, 3, "none", Path())
    assert unigram_entropies(corpus) == {
        "validation": pytest.approx(math.log(2)),
        "training_on_validation": pytest.approx(-0.5 * (math.log(2 / 7) + math.log(3 / 7))),
    }


def streams(corpus: Corpus, seed: int = 0) -> PassageStreams:
    return PassageStreams(corpus, batch=3, window=5, passage_windows=4, seed=seed)


def test_the_order_is_a_function_of_seed_and_step() -> None:
    corpus = artificial([400, 333, 50, 100])
    forwards, backwards = streams(corpus), streams(corpus)
    first = [forwards.batch_at(step) for step in range(120)]
    second = [backwards.batch_at(step) for step in reversed(range(120))][::-1]
    assert all(a.inputs.equal(b.inputs) and a.fresh.equal(b.fresh) for a, b in zip(first, second, strict=True))
    assert not first[0].inputs.equal(streams(corpus, seed=1).batch_at(0).inputs)


def test_windows_follow_each_other_until_a_row_starts_afresh() -> None:
    """Tokens count up through the corpus: the next window of a row begins where the last ended, or the row is fresh."""
    order = streams(artificial([400, 333, 50, 100]))
    batches = [order.batch_at(step) for step in range(120)]
    assert batches[0].fresh.all()
    for before, after in pairwise(batches):
        goes_on = after.inputs[:, 0] == before.targets[:, -1]
        assert (goes_on | after.fresh).all()
    assert all((batch.targets == batch.inputs + 1).all() for batch in batches)
    for row in range(3):
        fresh = [step for step in range(1, 120) if batches[step].fresh[row]]
        assert set(np.diff(fresh)) == {4}
    assert not any(batch.fresh.all() for batch in batches[1:])  # staggered


def test_an_epoch_reads_every_passage_once_within_one_document_and_never_what_is_held_out() -> None:
    corpus = artificial([400, 333, 50, 100])
    order = streams(corpus)
    assert order.passages == 399 // 20 + 332 // 20 + 49 // 20
    starts = [int(start) for start in order._starts(0)]
    assert len(starts) == len(set(starts)) == order.passages
    for start in starts:
        homes = [d for d in corpus.training if d.start <= start and start + 20 < d.start + d.length]
        assert len(homes) == 1
    read = {int(token) for step in range(400) for token in order.batch_at(step).targets.flatten()}
    assert max(read) < corpus.validation[0].start


def test_what_a_row_reads_between_two_clearings_is_one_run_of_one_book(tmp_path: Path) -> None:
    """By characters; each book has letters of its own in random order, so a run stands in one place of one book."""
    draw = random.Random(0)
    letters = {"one": "abcdef", "two": "ghijk", "three": "\n“”é ", "held": "uvwxyz"}
    books = {title: "".join(draw.choices(letters[title], k=300)) for title in letters}
    corpus = build_corpus(write(tmp_path / "texts", **books), tmp_path / "work", units="characters", held_out=["held"])
    order, tokenizer, runs, found = streams(corpus), corpus_tokenizer(corpus), ["", "", ""], set()
    for step in range(100):
        batch = order.batch_at(step)
        for row in range(3):
            read, last = tokenizer.decode(batch.inputs[row].tolist()), tokenizer.decode([int(batch.targets[row, -1])])
            runs[row] = read if batch.fresh[row] else runs[row] + read
            homes = [title for title, book in books.items() if runs[row] + last in book]
            assert len(homes) == 1
            found.update(homes)
        assert max(map(len, runs)) <= 20
    assert found == {"one", "two", "three"}


def test_documents_shorter_than_a_passage_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a training document of more than 20 tokens"):
        streams(artificial([20, 20, 100]))


def test_validation_windows_stay_in_their_document_and_carry_on() -> None:
    corpus = artificial([50, 100, 90], held_out=2)
    windows = validation_windows(corpus, rows=4, length=20, window=5)
    assert [tuple(inputs.shape) for inputs, _ in windows] == [(4, 5)] * 4
    rows = np.concatenate([inputs.numpy() for inputs, _ in windows], axis=1)
    assert (np.diff(rows, axis=1) == 1).all()
    assert rows[:, 0].tolist() == [50, 50 + 49, 150, 150 + 44]
    with pytest.raises(ValueError, match="expected 2 passages of 60 tokens in the held-out document d1"):
        validation_windows(corpus, rows=4, length=60, window=5)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found nothing at"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a tokenizer.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    assert isinstance(SHIPPED, Tokenizer)
