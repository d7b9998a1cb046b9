"""The Python snippets of a page, run from top to bottom, and the output that the page shows beneath each.

python tests/documentation.py docs/wrapping.md ...    # run the snippets and write what they print into the page
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: A Python block, and the text block that follows it with nothing but an empty line between.
SNIPPET = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def with_output(page: str, name: str = "page") -> str:
    """The page with what its snippets print in the text block beneath each; one namespace for the whole page."""
    space: dict[str, Any] = {"__name__": "snippet"}
    return SNIPPET.sub(lambda found: _run(found, page, name, space), page)


def _run(found: re.Match[str], page: str, name: str, space: dict[str, Any]) -> str:
    line = page[: found.start()].count("\n") + 1
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * line + found["code"], name, "exec"), space)
    text = f"```python\n{found['code']}```\n"
    return text + (f"\n```text\n{printed.getvalue().rstrip()}\n```\n" if printed.getvalue() else "")


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_output(path.read_text("utf-8"), path.name), "utf-8")
