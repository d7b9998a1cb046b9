"""Names that come from models (states, layers, titles, paths) are data: this makes their hidden characters visible.

Each format then escapes what is special to it (Markdown, HTML, terminal markup).
"""

from __future__ import annotations


def visible(text: object) -> str:
    r"""`text` on one line, with every character that a reader would not see written as a Python escape.

    Terminal escape codes, newlines, right-to-left marks and lone surrogates lose their power; the result can always
    be encoded as UTF-8.

    >>> visible("a\x1b[31m\nb")
    'a\\x1b[31m\\nb'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in str(text))
