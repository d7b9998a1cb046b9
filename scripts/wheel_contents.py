"""Does a wheel hold every file that the running program reads, and nothing of the tests?

    python scripts/wheel_contents.py dist/statecheck-0.1.0-py3-none-any.whl

Prints the size of each part; exit 1 names what is missing or too much.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"statecheck": ROOT / "statecheck", "statecheck_reference": ROOT / "reference_models/statecheck_reference"}
NOT_SHIPPED = {".pyc"}


def expected() -> Iterator[str]:
    """Every file of both packages, as the wheel names it."""
    for name, folder in PACKAGES.items():
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix not in NOT_SHIPPED:
                yield f"{name}/{path.relative_to(folder).as_posix()}"


def main(wheel: str) -> int:
    """Compare the wheel with the source tree."""
    with ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.compress_size for entry in archive.infolist()}
    wanted = set(expected())
    found = {name for name in sizes if ".dist-info/" not in name}
    parts: Counter[str] = Counter()
    for name in found:
        parts["/".join(name.split("/")[:2]) if name.count("/") > 1 else name.split("/")[0]] += sizes[name]
    for part, size in sorted(parts.items()):
        print(f"{size / 1e6:8.2f} MB  {part}")
    print(f"{sum(sizes.values()) / 1e6:8.2f} MB  {Path(wheel).name}, {len(sizes)} files")
    for word, names in (("missing", wanted - found), ("not in the source tree", found - wanted)):
        for name in sorted(names):
            print(f"{word}: {name}", file=sys.stderr)
    return 0 if wanted == found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
