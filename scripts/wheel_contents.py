"""Does a wheel hold every file that the running program reads, and nothing of the tests?

    python scripts/wheel_contents.py dist/statecheck-0.1.0-py3-none-linux_x86_64.whl

The compiled library must be in it where there is a C++ compiler, and in its tag where it is in it.
Prints the size of each part; exit 1 names what is missing or too much.
"""

import os
import shutil
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "statecheck": ROOT / "statecheck",
    "statecheck_kernels": ROOT / "kernels/statecheck_kernels",
    "statecheck_reference": ROOT / "reference_models/statecheck_reference",
}
LIBRARY = "statecheck_kernels/cpu/_cpu.so"
NOT_SHIPPED = {".pyc", ".so"}  # the library is built for the wheel, not copied from here


def expected() -> Iterator[str]:
    """Every file of the packages, as the wheel names it, the compiled library apart."""
    for name, folder in PACKAGES.items():
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix not in NOT_SHIPPED:
                yield f"{name}/{path.relative_to(folder).as_posix()}"


def has_compiler() -> bool:
    """Whether the C++ compiler that setuptools would call is there."""
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return shutil.which(command.split()[0]) is not None


def main(wheel: str) -> int:
    """Compare the wheel with the source tree."""
    with ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.compress_size for entry in archive.infolist()}
    wanted = set(expected())
    if has_compiler() or not wheel.endswith("-py3-none-any.whl"):
        wanted.add(LIBRARY)
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
