"""The peers of each recurrence, as they ship, in the layout that they are fastest in; those not installed are named.

Steps (dt) are handed over after their softplus, and no gate, so that every variant computes the same thing. Where one
file of a package is all that is wanted (fla's naive forms), just that file is loaded: importing fla takes 15 seconds
and wants a GPU.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import eager
from benchmarks.inputs import Inputs
from benchmarks.variants import Missing, Variant, swapped

PACKAGES = ("transformers", "mambapy", "fla-core", "rwkv", "triton", "mamba-ssm", "causal-conv1d")

CHUNK_OF_MAMBA2 = 32  # of transformers' slow path: its fastest on a CPU, as are those of 64; published models have 256
CHUNK_OF_FLA = 16  # of fla's naive chunks: its fastest on a CPU; its default is 32


def versions() -> dict[str, str]:
    """Package -> its version, or "not installed"."""
    return {name: version(name) for name in PACKAGES}


def version(package: str) -> str:
    """Of an installed distribution, or "not installed".

    >>> version("no-such-package")
    'not installed'
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def peers(kernel: str) -> list[Variant | Missing]:
    """All peers of a recurrence, the eager loops among them."""
    found: dict[str, Callable[[], list[Variant | Missing]]] = {
        "selective_scan": _selective_scan,
        "wkv6": _wkv6,
        "ssd": _ssd,
        "causal_conv1d": _causal_conv1d,
    }
    return found[kernel]()


def _selective_scan() -> list[Variant | Missing]:
    # Views of (B, L, D): its (B, D, L, N) tensors then lie step by step in memory, and its loop is twice as fast.
    layout = swapped("x", "dt", "B", "C", "outputs", view=True)
    slow_path, why = attribute("transformers.models.mamba.modeling_mamba", "mamba_selective_scan")
    block, why_not = attribute("mambapy.mamba", "MambaBlock")
    return [
        Variant("transformers slow path", _of(slow_path), layout, layout, slow=True)
        if slow_path
        else Missing("transformers slow path", why),
        Variant("mambapy pscan", lambda i: block.selective_scan(None, *_scan_arguments(i)))
        if block
        else Missing("mambapy pscan", why_not),
        Variant("eager loop, index", eager.scan_by_index),
        Variant("eager loop, unbind", eager.scan_by_unbind),
        Variant("eager loop, checkpointed", eager.scan_checkpointed),
    ]


def _wkv6() -> list[Variant | Missing]:
    names = ("r", "k", "v", "log_w", "outputs")
    by_token, by_head = swapped(*names, view=True), swapped(*names)  # how their memory lies: the faster one of each
    recurrent, why = _file_of("fla", "ops/rwkv6/recurrent_naive.py")
    chunk, why_not = _file_of("fla", "ops/rwkv6/chunk_naive.py")
    return [
        Variant(
            "fla naive recurrent",
            lambda i: recurrent.naive_recurrent_rwkv6(*_qkvwu(i), scale=1.0)[0],
            by_token,
            by_token,
        )
        if recurrent
        else Missing("fla naive recurrent", why),
        # Its backward pass fails: a tensor that autograd needs is written in place.
        Variant(
            "fla naive chunk",
            lambda i: chunk.naive_chunk_rwkv6(*_qkvwu(i), chunk_size=CHUNK_OF_FLA),
            by_head,
            by_head,
            backward=False,
        )
        if chunk
        else Missing("fla naive chunk", why_not),
        Variant("rwkv's v6 loop (copied)", _rwkv_loop, _rwkv_layout, backward=False),
        Variant("eager loop, unbind", eager.wkv_by_unbind),
    ]


def _ssd() -> list[Variant | Missing]:
    chunk_scan, why = attribute("transformers.models.mamba2.modeling_mamba2", "mamba2_chunk_scan")

    def run(i: Inputs) -> Tensor:
        outputs: Tensor = chunk_scan(i["x"], i["dt"], i["A"], i["B"], i["C"], chunk_size=CHUNK_OF_MAMBA2, D=i["D"])
        return outputs

    return [
        Variant("transformers slow path", run) if chunk_scan else Missing("transformers slow path", why),
        Variant("eager loop, unbind", eager.ssd_by_unbind),
    ]


def _causal_conv1d() -> list[Variant | Missing]:
    layout = swapped("x", "outputs")
    slow_path, why = attribute("transformers.models.mamba.modeling_mamba", "causal_conv1d_fn")

    def torch_conv1d(i: Inputs) -> Tensor:
        weight = i["weight"]
        padded = functional.pad(i["x"], (weight.shape[1] - 1, 0))
        return functional.silu(functional.conv1d(padded, weight.unsqueeze(1), i["bias"], groups=weight.shape[0]))

    return [
        Variant(
            "transformers slow path",
            lambda i: slow_path(i["x"], i["weight"], i["bias"], activation="silu"),
            layout,
            layout,
        )
        if slow_path
        else Missing("transformers slow path", why),
        Variant("torch conv1d + silu", torch_conv1d, layout, layout),
    ]


def _of(function: Any) -> Callable[[Inputs], Tensor]:
    return lambda i: function(*_scan_arguments(i))


def _scan_arguments(i: Inputs) -> list[Tensor]:
    return [i[name] for name in ("x", "dt", "A", "B", "C", "D")]


def _qkvwu(i: Inputs) -> list[Tensor]:
    return [i[name] for name in ("r", "k", "v", "log_w", "u")]


def _rwkv_layout(name: str, tensor: Tensor) -> Tensor:
    """r and v by row and head (B, H, T, K), k (B, H, K, T), log w (B, T, H, K, 1), u (H, K, 1), as rwkv has them."""
    if name in ("r", "v"):
        return tensor.transpose(1, 2).contiguous()
    if name == "k":
        return tensor.permute(0, 2, 3, 1)
    return tensor.unsqueeze(-1) if name in ("log_w", "u") else tensor


def _rwkv_loop(i: Inputs) -> Tensor:
    """The loop of `att_seq_v6_0` in rwkv 0.8.32, rwkv/model.py, row by row: the package reads one row at a time.

    Copied, since there it is the middle of a whole layer.
    """
    rows = zip(i["r"], i["k"], i["v"], i["log_w"].exp(), strict=True)
    return torch.stack([_rwkv_row(r, k, v, w, i["u"]) for r, k, v, w in rows])


def _rwkv_row(r: Tensor, k: Tensor, v: Tensor, w: Tensor, t_first: Tensor) -> Tensor:
    heads, time, size = r.shape
    s = r.new_zeros(heads, size, v.shape[-1])
    out = torch.empty((time, heads, v.shape[-1]), dtype=r.dtype, device=r.device)
    for t in range(time):
        rt = r[:, t : t + 1, :]
        kt = k[:, :, t : t + 1]
        vt = v[:, t : t + 1, :]
        at = kt @ vt
        out[t] = (rt @ (t_first * at + s)).squeeze(1)
        s = at + w[t] * s
    return out


def attribute(module: str, name: str) -> tuple[Any, str]:
    """A function or class of an installed package, or None and why it can't be had."""
    if importlib.util.find_spec(module.split(".")[0]) is None:
        return None, "not installed"
    try:
        return getattr(importlib.import_module(module), name), ""
    except Exception as error:  # whatever a peer raises as it is imported, the others can still be measured
        return None, f"not importable ({type(error).__name__}: {error})"


def _file_of(package: str, path: str) -> tuple[Any, str]:
    """One file of an installed package as a module, without importing the package; or None and why not."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None, "not installed"
    file = Path(found.submodule_search_locations[0]) / path
    if not file.is_file():
        return None, f"has no {path}"
    return _loaded(file), ""


def _loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"expected a Python file, found {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
