"""What the commands do, a file each; `statecheck.cli` only reads their arguments. None of them loads torch."""
