"""Laws of a state: statements that must hold for every history, one file each, and the search for a history that
breaks them."""
