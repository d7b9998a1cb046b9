"""The recurrences in pure torch, fast enough to train with where the compiled library is absent; any device.

RWKV-6 and Mamba-2 run in chunks of steps as matrix products, Mamba's scan step by step with a backward pass that keeps
a state a chunk, the convolution as a sum of shifted products. Packed sequences lie in a rectangle, one a row.
"""

from statecheck_kernels.chunked.convolution import causal_conv1d
from statecheck_kernels.chunked.mamba1 import selective_scan
from statecheck_kernels.chunked.mamba2 import ssd
from statecheck_kernels.chunked.rwkv6 import wkv6

__all__ = ["causal_conv1d", "selective_scan", "ssd", "wkv6"]
