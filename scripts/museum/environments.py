"""A virtual environment for each release: the library, torch, and statecheck from this checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = Path("~/.cache/statecheck-museum").expanduser()
TORCH = "torch==2.13.0"
DONE = "installed.txt"  # written last: an environment without it is made again


def python_of(envs: Path, release: str) -> Path:
    """The interpreter of the environment of a release, `transformers==4.44.0`."""
    return envs / release.replace("==", "-") / "bin" / "python"


def prepare(envs: Path, release: str, share: Path | None) -> Path:
    """The interpreter of an environment that holds the release; it is made if it is not there.

    `share`: site-packages of another environment that has torch and what statecheck needs, in this Python's version.
    They are then read from there, after the environment's own: quick, and good enough for a look.
    """
    python = python_of(envs, release)
    folder = python.parent.parent
    if (folder / DONE).exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    if share is None:
        _pip(python, "install", "--quiet", TORCH, release, str(ROOT), "-c", str(_constraints(folder)))
    else:
        _pip(python, "install", "--quiet", release)
        _share(folder, share)
    (folder / DONE).write_text(_pip(python, "freeze"))
    return python


def _constraints(folder: Path) -> Path:
    """Of constraints.txt what an old release can live with: torch; it brings its own tokenizers and numpy."""
    kept = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    path = folder / "constraints.txt"
    path.write_text("\n".join(kept) + "\n")
    return path


def _share(folder: Path, share: Path) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = folder / "lib" / version / "site-packages"
    (own / "zz_shared.pth").write_text(f"{share}\n")
    # Not the whole checkout: its folder `kernels` bears the name of a package that transformers looks for.
    (own / "statecheck").symlink_to(ROOT / "statecheck")


def _pip(python: Path, *arguments: str) -> str:
    line = [str(python), "-m", "pip", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stderr.strip()}")
    return done.stdout
