"""Write the bundled evaluation text: Jane Austen, "Pride and Prejudice", one file a chapter.

    python scripts/make_evaluation_text.py                 # fetches Debian's r-cran-janeaustenr with apt-get
    python scripts/make_evaluation_text.py --deb FILE      # uses a package that is there already

Needs `apt-get` (without --deb), `dpkg-deb`, and the PyPI package `rdata` (`pip install statecheck[text]`). Running it
again gives the same bytes. The text is in the public domain (1813); the package's own files are MIT-licensed.
"""

import argparse
import hashlib
import re
import subprocess
import tempfile
import warnings
import zlib
from pathlib import Path

import rdata

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "r-cran-janeaustenr"
DATA = Path("usr/lib/R/site-library/janeaustenr/data")
BOOK, CHAPTERS = "prideprejudice", 61
HEADING = re.compile(r"Chapter (\d+)\s*$")


def main() -> None:
    """Fetch, unpack, cut into chapters, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deb", type=Path, help=f"a {PACKAGE} package; fetched with apt-get if left out")
    parser.add_argument("--out", type=Path, default=ROOT / "reference_models/statecheck_reference/text")
    parser.add_argument("--tokenizer", type=Path, help="count the tokens of each chapter with this tokenizer.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        package = options.deb or fetch(Path(folder))
        lines = read_lazy_data(unpack(package, Path(folder) / "files") / DATA, BOOK)
        chapters = split_chapters(lines)
        write(chapters, options.out, package)
    print(f"{len(chapters)} chapters, {sum(map(len, chapters))} characters, in {options.out}")
    if options.tokenizer:
        print_token_counts(chapters, options.tokenizer)


def fetch(folder: Path) -> Path:
    """Download the package with apt-get into `folder`."""
    subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob(f"{PACKAGE}_*.deb"))


def unpack(package: Path, folder: Path) -> Path:
    """Unpack a Debian package without installing it."""
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    return folder


def read_lazy_data(folder: Path, name: str) -> list[str]:
    """The lines of one character vector in an R package's lazy-load database (Rdata.rdx: where; Rdata.rdb: what).

    Each entry of the database is its own length in 4 bytes, big-endian, and a zlib stream of serialised R.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rdata: "Unknown file type: assumed RDS"; it is RDS
        places = {str(key): value for key, value in rdata.read_rds(folder / "Rdata.rdx")["variables"].items()}
        start, length = (int(number) for number in places[name])
        entry = (folder / "Rdata.rdb").read_bytes()[start : start + length]
        content = zlib.decompress(entry[4:])
        if len(content) != int.from_bytes(entry[:4], "big"):
            raise ValueError(f"{folder / 'Rdata.rdb'}: expected {name} to hold as many bytes as it says")
        return [str(line) for line in rdata.conversion.convert(rdata.parser.parse_data(content))]


def split_chapters(lines: list[str]) -> list[str]:
    """The text of each chapter, lines as printed, without its heading and the blank lines around it."""
    headings = [index for index, line in enumerate(lines) if HEADING.match(line)]
    numbers = [int(HEADING.match(lines[index])[1]) for index in headings]  # type: ignore[index]
    if numbers != list(range(1, CHAPTERS + 1)):
        raise ValueError(f"expected chapters 1 to {CHAPTERS} in order, found {numbers}")
    ends = [*headings[1:], len(lines)]
    return ["\n".join(lines[start + 1 : end]).strip("\n") + "\n" for start, end in zip(headings, ends, strict=True)]


def write(chapters: list[str], folder: Path, package: Path) -> None:
    """One file a chapter, and where they come from."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for number, text in enumerate(chapters, start=1):
        (folder / f"chapter-{number:02d}.txt").write_bytes(text.encode())
        digest.update(text.encode())
    (folder / "SOURCE.md").write_text(
        f"""# The bundled evaluation text

Jane Austen, *Pride and Prejudice* (1813; public domain), {len(chapters)} chapters, one file and one document each.
Lines as printed; the headings ("Chapter 1") and the blank lines around them are left out. None of it is in the training
text of the reference models.

Taken from Debian's package `{package.name}` (the R package janeaustenr by Julia Silge, MIT licence,
from the Project Gutenberg edition), by `scripts/make_evaluation_text.py`, which writes the same bytes again.

SHA-256 of the chapters in order: `{digest.hexdigest()}`
"""
    )


def print_token_counts(chapters: list[str], path: Path) -> None:
    """How many chapters are long enough for the windows that the checks read."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    counts = [len(tokenizer.encode(text).ids) for text in chapters]
    print(f"tokens: {sum(counts)} in all, {min(counts)} to {max(counts)} a chapter")
    for length in (1024, 1057, 1200, 2048):
        print(f"chapters of at least {length} tokens: {sum(count >= length for count in counts)}")


if __name__ == "__main__":
    main()
