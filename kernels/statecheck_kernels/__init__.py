"""Fast recurrences for models that remember, with statistics of their state measured on the way. Needs torch alone.

    wkv6             RWKV-6, a matrix of keys by values a head
    selective_scan   Mamba, N numbers a channel
    ssd              Mamba-2, a matrix of channels by numbers a head
    causal_conv1d    the short convolution of both Mambas; its state is the window

Each takes its inputs and an initial state and gives a :class:`Scan`: outputs, the state after the last step, statistics
of the state if asked, and the form that ran. `form` names one of `reference`, `chunked`, `cpu` and `triton`; without it
the fastest that can run here is taken (:mod:`statecheck_kernels.forms`; :func:`describe` lists them).

Glossary: B rows, T steps, H heads, K keys, V values, D channels (as an axis) and skip (as a tensor), N numbers a
channel, P channels of a head, G groups of heads that share what they write and read with, W the window.

Dtypes
    Inputs are float64, float32, bfloat16 or float16. Arithmetic is in float64 if any tensor given is float64, else in
    float32. Outputs have the dtype of the first input. The final state has the dtype of the state given; with none
    given, the dtype of the arithmetic. Autocast is off inside; backward() belongs outside of it, as torch asks.
State
    The initial state is (rows, ...), zeros if None, and is never changed. Two calls, the second on the state of the
    first, give what one call gives; a call may have no step at all.
Packing
    `cu_seqlens` (sequences + 1), from 0 to T, packs sequences into one row: sequence s is steps cu_seqlens[s] to
    cu_seqlens[s + 1], starts from row s of `state`, and sees nothing of the others. It may have no step: its state
    stays. The values are checked, which waits for the device.
Statistics
    `statistics=Observe(...)` asks for :class:`StateStatistics` of the state after every step, or every so many steps,
    counted along the call (in packed sequences along the packed row).
Gradients
    For all floating inputs, the initial state too, of outputs and final state; none for statistics.
Errors
    ValueError (shape, device, cu_seqlens, form) or TypeError (dtype, kind) that names what was expected and found.
    NaN and infinities are no errors: they go on as the formula says, and never back in time.

>>> import torch
>>> x = torch.ones(1, 3, 2)
>>> scan = causal_conv1d(x, torch.ones(2, 2), statistics=Observe(), form="reference")
>>> scan.outputs[0, :, 0].tolist(), scan.statistics.square_sum.flatten().tolist()
([1.0, 2.0, 2.0], [2.0, 2.0, 2.0])
"""

from statecheck_kernels.contract import Observe, Scan, StateStatistics
from statecheck_kernels.forms import describe
from statecheck_kernels.operations import causal_conv1d, selective_scan, ssd, wkv6

__all__ = [
    "Observe",
    "Scan",
    "StateStatistics",
    "causal_conv1d",
    "describe",
    "selective_scan",
    "ssd",
    "wkv6",
]
