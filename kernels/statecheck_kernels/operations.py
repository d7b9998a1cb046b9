"""The four recurrences for callers: checks, defaults, the choice of form. The work is done in the forms.

Glossary: :mod:`statecheck_kernels`. Formulas: :mod:`statecheck_kernels.reference`.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from statecheck_kernels import checks, forms
from statecheck_kernels.contract import Observe, Results, Scan

Maybe = TypeVar("Maybe", Tensor, Tensor | None)


def wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    statistics: Observe | None = None,
    form: str | None = None,
) -> Scan:
    """RWKV-6: y_t = r_t (S_t-1 + diag(u) k_t^T v_t), S_t = diag(exp(log_w_t)) S_t-1 + k_t^T v_t.

    `r`, `k`, `log_w` (0 or below, minus infinity too) are (B, T, H, K), `v` (B, T, H, V), `u` (H, K), `state`
    (rows, H, K, V); outputs (B, T, H, V). Dtypes, packing, statistics and errors: see :mod:`statecheck_kernels`.

    >>> one = torch.ones(1, 2, 1, 1)
    >>> scan = wkv6(one, one, 3 * one, (0.5 * one).log(), 2 * one[0, 0])
    >>> [round(y, 4) for y in scan.outputs.flatten().tolist()], round(scan.state.item(), 4)  # 2*3, 3+2*3; 0.5*3+3
    ([6.0, 9.0], 4.5)
    """
    given = (
        ("r", r, "B T H K"),
        ("k", k, "B T H K"),
        ("v", v, "B T H V"),
        ("log_w", log_w, "B T H K"),
        ("u", u, "H K"),
    )
    size = checks.inputs(given)
    call = _prepare(given, (size["H"], size["K"], size["V"]), size["H"], state, cu_seqlens, statistics, form)
    r, k, v, log_w, u = (call.widened(x) for x in (r, k, v, log_w, u))
    with call.exact():
        found = forms.load(call.form).wkv6(r, k, v, log_w, u, call.state, call.sequences, statistics)
    return call.scan(found)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    softplus: bool = False,
    cu_seqlens: Tensor | None = None,
    statistics: Observe | None = None,
    form: str | None = None,
) -> Scan:
    """Mamba's selective scan: h_t = exp(dt_t A) h_t-1 + dt_t x_t B_t, y_t = sum over n of h_t C_t + D x_t.

    `x` and `dt` are (B, T, D), `A` (D, N), `B` and `C` (B, T, N), `D` and `dt_bias` (D), `state` (rows, D, N); outputs
    (B, T, D). The step that is used is dt + dt_bias, with `softplus` log(1 + exp) of that. Dtypes, packing, statistics
    and errors: see :mod:`statecheck_kernels`.

    >>> one = torch.ones(1, 2, 1)
    >>> scan = selective_scan(3 * one, one, torch.full((1, 1), 0.5).log(), one, 2 * one)
    >>> scan.outputs.flatten().tolist(), scan.state.item()  # 2 * 3, 2 * (0.5 * 3 + 3)
    ([6.0, 9.0], 4.5)
    """
    given = (
        *(("x", x, "B T D"), ("dt", dt, "B T D"), ("A", A, "D N"), ("B", B, "B T N"), ("C", C, "B T N")),
        *(("D", D, "D"), ("dt_bias", dt_bias, "D")),
    )
    size = checks.inputs(given)
    call = _prepare(given, (size["D"], size["N"]), 1, state, cu_seqlens, statistics, form)
    dt = call.step(dt, dt_bias, softplus)
    x, dt, A, B, C, D = *(call.widened(y) for y in (x, dt, A, B, C)), call.widened(D)
    with call.exact():
        found = forms.load(call.form).selective_scan(x, dt, A, B, C, D, call.state, call.sequences, statistics)
    return call.scan(found)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    softplus: bool = False,
    cu_seqlens: Tensor | None = None,
    statistics: Observe | None = None,
    form: str | None = None,
) -> Scan:
    """Mamba-2's recurrence: h_t = exp(dt_t A) h_t-1 + (dt_t x_t) B_t^T, y_t = h_t C_t + D x_t.

    `x` is (B, T, H, P), `dt` (B, T, H), `A`, `D` and `dt_bias` (H), `B` and `C` (B, T, G, N), H a multiple of G: head h
    uses group h // (H / G); `state` (rows, H, P, N); outputs (B, T, H, P). The step that is used is dt + dt_bias, with
    `softplus` log(1 + exp) of that. Dtypes, packing, statistics and errors: see :mod:`statecheck_kernels`.

    >>> one = torch.ones(1, 2, 1, 1)
    >>> scan = ssd(3 * one, one[..., 0], torch.tensor([0.5]).log(), one, 2 * one)
    >>> scan.outputs.flatten().tolist(), scan.state.item()  # 2 * 3, 2 * (0.5 * 3 + 3)
    ([6.0, 9.0], 4.5)
    """
    given = (
        *(("x", x, "B T H P"), ("dt", dt, "B T H"), ("A", A, "H"), ("B", B, "B T G N"), ("C", C, "B T G N")),
        *(("D", D, "H"), ("dt_bias", dt_bias, "H")),
    )
    size = checks.inputs(given)
    checks.whole_groups(size["H"], size["G"])
    call = _prepare(given, (size["H"], size["P"], size["N"]), size["H"], state, cu_seqlens, statistics, form)
    dt = call.step(dt, dt_bias, softplus)
    x, dt, A, B, C, D = *(call.widened(y) for y in (x, dt, A, B, C)), call.widened(D)
    with call.exact():
        found = forms.load(call.form).ssd(x, dt, A, B, C, D, call.state, call.sequences, statistics)
    return call.scan(found)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    silu: bool = False,
    cu_seqlens: Tensor | None = None,
    statistics: Observe | None = None,
    form: str | None = None,
) -> Scan:
    """Each channel's own causal convolution: y_t = bias + sum over w of weight[:, w] x_t-(W-1)+w, SiLU of it if `silu`.

    `x` is (B, T, D), `weight` (D, W), `bias` (D), `state` (rows, D, W - 1): the inputs before the first, oldest first
    (W = 1: empty); outputs (B, T, D). Dtypes, packing, statistics and errors: see :mod:`statecheck_kernels`.

    >>> scan = causal_conv1d(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[10.0, 1.0]]))
    >>> scan.outputs.flatten().tolist(), scan.state.flatten().tolist()
    ([1.0, 12.0], [2.0])
    """
    given = (("x", x, "B T D"), ("weight", weight, "D W"), ("bias", bias, "D"))
    size = checks.inputs(given)
    call = _prepare(given, (size["D"], size["W"] - 1), 1, state, cu_seqlens, statistics, form)
    x, weight, bias = call.widened(x), call.widened(weight), call.widened(bias)
    with call.exact():
        found = forms.load(call.form).causal_conv1d(x, weight, bias, silu, call.state, call.sequences, statistics)
    return call.scan(found)


@dataclass(frozen=True)
class _Call:
    """What a form needs beside its inputs, and what its results are turned into."""

    form: str
    state: Tensor  # float64, or float32 where no tensor given is float64; arithmetic is in this dtype
    sequences: Tensor | None
    given: Tensor | None  # the state as given
    outputs: torch.dtype

    def widened(self, x: Maybe) -> Maybe:
        """Float64 where arithmetic is, else as it is: forms meet no mixture of float64 and narrower tensors."""
        if x is None:
            return x
        x = x.resolve_neg()  # forms may read memory
        return x.to(torch.float64) if self.state.dtype == torch.float64 else x

    def step(self, dt: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
        """The step as used, in the dtype of the arithmetic where anything is done to it."""
        if bias is not None:
            dt = dt.to(self.state.dtype) + bias.to(self.state.dtype)
        # Above 40, log(1 + exp(x)) is x to the last digit in float64 too; below it exp can't overflow.
        return functional.softplus(dt.to(self.state.dtype), threshold=40) if softplus else dt

    def exact(self) -> torch.autocast:
        """No autocast inside a form: a state in bfloat16 would lose what it is to keep."""
        return torch.autocast(self.state.device.type, enabled=False)

    def scan(self, found: Results) -> Scan:
        """The results under the names and dtypes that callers get; the last state is never the tensor given."""
        outputs, state, statistics = found
        if self.given is not None:
            state = state.to(self.given.dtype)
            state = state.clone() if state is self.given else state
        return Scan(outputs.to(self.outputs), state, statistics, self.form)


def _prepare(
    given: tuple[checks.Given, ...],
    shape: tuple[int, ...],
    heads: int,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    statistics: Observe | None,
    form: str | None,
) -> _Call:
    """Check what is common to all four; `shape` is that of one row's state."""
    name, first, _ = given[0]
    assert first is not None
    sequences = checks.sequences(cu_seqlens, name, first)
    rows = first.shape[0] if sequences is None else len(sequences) - 1
    checks.observe(statistics, rows, heads)
    if state is not None:
        checks.initial(state, (rows, *shape), f"of {name}" if sequences is None else "a sequence", first)
    tensors = [x for _, x, _ in given if x is not None] + ([] if state is None else [state])
    wide = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    zeros = (
        torch.zeros(rows, *shape, dtype=wide, device=first.device) if state is None else state.to(wide).resolve_neg()
    )
    return _Call(forms.choose(first.device, form), zeros, sequences, state, first.dtype)
