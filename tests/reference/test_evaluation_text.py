"""The script that writes the bundled text: reading R's lazy-load format, cutting into chapters."""

import importlib.util
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

rdata = pytest.importorskip("rdata", reason="the script's own dependency: pip install statecheck[text]")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_evaluation_text.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_evaluation_text", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_lazy_data(folder: Path, books: dict[str, list[str]]) -> None:
    """As R does: entries of a length and a zlib stream, one after the other, and an index of where they are."""
    places, entries = {}, b""
    for name, lines in books.items():
        rdata.write_rds(folder / "one.rds", np.array(lines), compression=None)
        content = (folder / "one.rds").read_bytes()
        entry = len(content).to_bytes(4, "big") + zlib.compress(content)
        places[name] = np.array([len(entries), len(entry)], dtype=np.int32)
        entries += entry
    (folder / "Rdata.rdb").write_bytes(entries)
    rdata.write_rds(folder / "Rdata.rdx", {"variables": places})


def test_a_book_is_read_from_the_lazy_load_format(script: ModuleType, tmp_path: Path) -> None:
    books = {"emma": ["EMMA", "", "Handsome, clever, and rich"], "prideprejudice": ["Chapter 1", "It is a truth"]}
    write_lazy_data(tmp_path, books)
    for name, lines in books.items():
        assert script.read_lazy_data(tmp_path, name) == lines


def test_chapters_are_cut_without_headings_and_with_lines_as_printed(script: ModuleType) -> None:
    lines = ["TITLE", ""]
    for number in range(1, 62):
        lines += [f"Chapter {number}", "", f"  first of {number}", "", "Chapter and verse", ""]
    chapters = script.split_chapters(lines)
    assert chapters[0] == "  first of 1\n\nChapter and verse\n"
    assert len(chapters) == 61
    with pytest.raises(ValueError, match="expected chapters 1 to 61 in order"):
        script.split_chapters(lines[:-6])
