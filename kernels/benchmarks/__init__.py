"""What `kernels/bench.py` measures: the kernels of this package beside the peers installed next to it."""
