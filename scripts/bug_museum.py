"""The bug museum: real bugs of recurrent state in old releases of libraries, by plain calls and by statecheck.

    python scripts/bug_museum.py ls                      the exhibits
    python scripts/bug_museum.py run --plain             each bug in library calls alone
    python scripts/bug_museum.py run --only 1-mamba2     one exhibit with all laws, in all its releases
    python scripts/bug_museum.py run                     all of them
    python scripts/bug_museum.py table                   what was found so far

Each release is installed with pip into an environment of its own under --envs, with torch and this checkout: about
1.5 GB each. Results are JSON files in --out, one for each exhibit and release; those that are there are not run again.
`table` ends with 1 if a bug was missed, or a release that is free of it was not silent.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from museum import environments, running, table


def main() -> int:
    """Read the arguments and do what they say; the exit code."""
    given = arguments()
    envs, out = given.envs.expanduser(), given.out or given.envs.expanduser() / "results"
    if given.command == "ls":
        for exhibit, release in running.wanted(given.only):
            has = dict(exhibit.releases())[release]
            cells = (exhibit.id, release, "yes" if has else "no", exhibit.law, exhibit.reference, "", exhibit.happens)
            print(table.line(cells))
        return 0
    if given.command == "install":
        for release in sorted({release for _, release in running.wanted(given.only)}):
            print(environments.prepare(envs, release, given.share_torch), flush=True)
        return 0
    good = True
    if given.command == "run":
        laws = "none" if given.plain else "own" if given.quick else "all"
        good = running.run(given.only, envs, out, given.share_torch, laws=laws, limit=given.seconds)
    return 0 if table.show(out) and good else 1


def arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("ls", "install", "run", "table"))
    parser.add_argument("--only", nargs="+", default=(), help="ids, numbers, families, laws or releases")
    parser.add_argument("--plain", action="store_true", help="library calls alone, no laws")
    parser.add_argument("--quick", action="store_true", help="of the laws only that of the exhibit")
    parser.add_argument("--envs", type=Path, default=environments.DEFAULT, help="folder of the environments")
    parser.add_argument("--out", type=Path, help="folder of the results; in --envs if not said")
    parser.add_argument("--seconds", type=float, default=900.0, help="limit of a release and family")
    parser.add_argument(
        "--share-torch",
        type=Path,
        metavar="SITE_PACKAGES",
        help="take torch and what statecheck needs from here in place of an installation: quick, for a look",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
