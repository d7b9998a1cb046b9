"""`python -m statecheck` is the command `statecheck`."""

from statecheck.cli import main

if __name__ == "__main__":
    main()
