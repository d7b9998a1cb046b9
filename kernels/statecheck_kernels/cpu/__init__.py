"""The form `cpu`: compiled C++, vectorised for the processor it runs on, threads over the batch and the heads."""

from statecheck_kernels.cpu.convolution import causal_conv1d
from statecheck_kernels.cpu.library import available, instruction_set, reason
from statecheck_kernels.cpu.outer import ssd, wkv6
from statecheck_kernels.cpu.selective import selective_scan

__all__ = ["available", "causal_conv1d", "instruction_set", "reason", "selective_scan", "ssd", "wkv6"]
