"""Mutants of the reference models: faults of the state, one changed line each, and which law kills which.

- `rows`: what a mutant is; `kernel_rows`, `layer_rows`, `transformer_rows`, `cached_rows`: the tables
- `cached`: a small transformer with a mask, a reorder, a crop and a reset of its own, which the reference models lack
- `planting`: a copy of the packages with a line changed, in memory alone; `subjects`: tiny models made from a copy
- `plain`: does a mutant differ? Random histories by plain calls, nothing of statecheck in them
- `elsewhere`: does it differ in gradients or in training mode alone?
- `measuring`: both, and the laws; `matrix`: what is printed

`scripts/mutants.py` runs them.
"""
