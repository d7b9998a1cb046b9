"""Standard output and error that survive a reader who goes away (`statecheck ls | head -1`)."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


def forgiving_streams() -> None:
    """From here on a closed pipe swallows what is printed; the exit code stays that of the work."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # started with the descriptor closed
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Forgiving(stream))


class Forgiving:
    """A text stream that turns into nothing at the first broken pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._close()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._close()
        except OSError:
            self._close()  # what is buffered can't be written, and must not be tried again when Python ends: exit 120
            raise

    def _close(self) -> None:
        """Point the descriptor at nothing: what is buffered, and what others print, goes there too."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
