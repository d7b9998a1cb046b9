"""One short text that stands for the C++ sources. `setup.py` runs this file too, so it imports Python's own alone."""

from hashlib import sha256
from pathlib import Path


def source_hash(folder: Path) -> str | None:
    """Of the .cpp and .hpp files in `folder`: 16 hex digits of SHA-256 over names and bytes; None if there are none.

    >>> source_hash(Path("no such folder")) is None
    True
    """
    paths = sorted([*folder.glob("*.cpp"), *folder.glob("*.hpp")], key=lambda path: path.name)
    digest = sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16] if paths else None
