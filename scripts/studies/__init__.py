"""Studies of the reference family: the runs, and what is read off them. Each module is a command with a page."""
