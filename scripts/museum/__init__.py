"""Old releases of libraries that had a bug in their recurrent state, each shown by plain calls and by statecheck.

- `catalogue`: the exhibits: reference, law, releases that have the bug, release that is free of it
- `environments`: a virtual environment for each release
- `families`: tiny models, all their numbers drawn
- `plain_*`: each bug in library calls alone, one file a library or law
- `inside`: what runs in an environment: one exhibit, its result a JSON file
- `running`, `table`: all of them, resumable, and what they brought

`scripts/bug_museum.py` is the command.
"""
