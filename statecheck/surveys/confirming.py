"""Runs scripts that know nothing of statecheck, one after another, in a process that never imports it.

It is run as a file, not as a module of the package. A path a line on standard input; a line of JSON for each on
standard output: what the script printed, and what it raised.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import warnings


def ran(path: str) -> dict[str, str]:
    """What a script printed, and what it raised, "" if nothing."""
    printed, raised = io.StringIO(), ""
    os.chdir(os.path.dirname(path))
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        try:
            runpy.run_path(path)
        except Exception as error:
            raised = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if any(name.partition(".")[0] == "statecheck" for name in sys.modules):
        raise SystemExit("a script imported statecheck: it confirms nothing")
    return {"printed": printed.getvalue(), "raised": raised}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        print(json.dumps(ran(line.strip())), flush=True)
