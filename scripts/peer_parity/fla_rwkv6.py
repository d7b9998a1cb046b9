"""RWKV-6: `naive_recurrent_rwkv6` and `RWKV6Attention`, with its cache, of flash-linear-attention.

The layer's Triton kernels need a GPU, so the library's own torch references stand in for them: the naive recurrence,
`token_shift_ref` and `group_norm_ref`.
"""

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peer_parity.comparison import Arrays, Case
from peer_parity.drawing import batch, generator, kept, lengths, normal, one_of, start, weights_of
from peer_parity.float64 import dtype_of

GROUP_NORM_EPS = 64e-5  # as the published RWKV-6 code has it; the peer's default is 1e-5


def draw_recurrence(seed: int, unit: int = 1) -> Case:
    """Sizes of one comparison with the naive recurrence: keys and values of a head may differ in size."""
    draw = generator(seed, "recurrence")
    return {
        "seed": seed,
        "batch": batch(draw, seed),
        "heads": int(draw.integers(1, 4)),
        "key": int(draw.integers(1, 6)) * unit,
        "value": int(draw.integers(1, 6)) * unit,
        "pieces": lengths(draw, seed, unit),
        **start(seed),
    }


def run_recurrence(case: Case) -> Arrays:
    """r, k, log_w (B, T, H, K), v (B, T, H, V), u (H, K), outputs (B, T, H, V), and `wkv.N` after call N."""
    peer = import_module("fla.ops.rwkv6.recurrent_naive").naive_recurrent_rwkv6
    draw, dtype = generator(case["seed"], "recurrence numbers"), dtype_of(case)
    rows, heads, key, value = case["batch"], case["heads"], case["key"], case["value"]
    shape = (rows, sum(case["pieces"]), heads)
    arrays = {name: normal(draw, *shape, key) for name in ("r", "k")}
    arrays |= {"v": normal(draw, *shape, value), "u": normal(draw, heads, key)}
    mild = -(normal(draw, *shape, key).exp())
    arrays["log_w"] = (one_of(draw, (-100.0, -1e-4, -1.0), *shape, key) if case["extreme"] else mild).half().double()
    state = normal(draw, rows, heads, key, value)
    if case["started"]:
        arrays["wkv.0"] = state
    exact, outputs = list(arrays), []
    state = state if case["started"] else torch.zeros_like(state)
    parts = (arrays[x].to(dtype).transpose(1, 2).split(case["pieces"], 2) for x in ("r", "k", "v", "log_w"))
    for n, piece in enumerate(zip(*parts, strict=True), start=1):
        given = {"scale": 1.0, "initial_state": state.to(dtype), "output_final_state": True}
        answers, state = peer(*piece, arrays["u"].to(dtype), **given)
        outputs.append(answers.transpose(1, 2))
        arrays[f"wkv.{n}"] = state
    return kept({**arrays, "outputs": torch.cat(outputs, 1)}, exact)


def draw_layer(seed: int, unit: int = 1) -> Case:
    """Sizes of one comparison with the layer; the decay's low-rank map has twice the rank of the mixing's."""
    draw = generator(seed, "layer")
    heads = int(draw.integers(1, 5))
    return {
        "seed": seed,
        "batch": batch(draw, seed),
        "width": heads * int(draw.integers(2, 5)) * unit,
        "heads": heads,
        "low_rank": int(draw.integers(1, 4)) * unit,
        "pieces": lengths(draw, seed, unit),
        **start(seed),
    }


def run_layer(case: Case) -> Arrays:
    """Weights, inputs, outputs of the calls one after the other, and `shift.N`, `wkv.N` after call N (0: before)."""
    draw, dtype = generator(case["seed"], "layer numbers"), dtype_of(case)
    layer, cache = _layer(case)
    arrays = {f"weights.{name}": value for name, value in _weights(draw, layer, case).items()}
    layer.to(dtype).load_state_dict({name.removeprefix("weights."): x.to(dtype) for name, x in arrays.items()})
    width, head = case["width"], case["width"] // case["heads"]
    arrays["inputs"] = normal(draw, case["batch"], sum(case["pieces"]), width)
    if case["started"]:
        arrays["shift.0"] = normal(draw, case["batch"], width)
        arrays["wkv.0"] = normal(draw, case["batch"], case["heads"], head, head)
        cache.update(
            recurrent_state=arrays["wkv.0"].to(dtype), conv_state=arrays["shift.0"].to(dtype), layer_idx=0, offset=0
        )
    outputs, exact = [], list(arrays)
    with torch.no_grad():
        for n, piece in enumerate(arrays["inputs"].to(dtype).split(case["pieces"], 1), start=1):
            outputs.append(layer(piece, past_key_values=cache, use_cache=True)[0])
            arrays[f"shift.{n}"] = cache[0]["conv_state"].clone()
            arrays[f"wkv.{n}"] = cache[0]["recurrent_state"].clone()
    return kept({**arrays, "outputs": torch.cat(outputs, 1)}, exact)


def _layer(case: Case) -> tuple[Any, Any]:
    """The layer, with the library's torch references for its kernels, and an empty cache."""
    peer = import_module("fla.layers.rwkv6")
    peer.fused_recurrent_rwkv6 = peer.chunk_rwkv6 = _by_naive_recurrence  # type: ignore[attr-defined]
    peer.token_shift = import_module("fla.modules.token_shift").token_shift_ref  # type: ignore[attr-defined]
    layer = peer.RWKV6Attention(
        hidden_size=case["width"],
        expand_k=1.0,
        expand_v=1.0,
        num_heads=case["heads"],
        proj_low_rank_dim=case["low_rank"],
        gate_low_rank_dim=2 * case["low_rank"],
        norm_eps=GROUP_NORM_EPS,
        layer_idx=0,
    )
    norm, reference = layer.g_norm, import_module("fla.modules.norm.layernorm").group_norm_ref
    norm.forward = lambda x: reference(x, norm.weight, norm.bias, norm.num_groups, eps=norm.eps)
    layer.gate_fn = nn.functional.silu
    return layer.eval(), import_module("fla.models.cache_utils").FLACache()


def _by_naive_recurrence(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    scale: float,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The kernels' signature, time before heads; the naive recurrence has heads before time."""
    assert cu_seqlens is None
    naive = import_module("fla.ops.rwkv6.recurrent_naive").naive_recurrent_rwkv6
    by_head = [x.transpose(1, 2) for x in (r, k, v, w)]
    answers, state = naive(*by_head, u, scale=scale, initial_state=initial_state, output_final_state=output_final_state)
    return answers.transpose(1, 2), state


def _weights(draw: np.random.Generator, layer: nn.Module, case: Case) -> Arrays:
    weights = weights_of(draw, layer)
    weights["g_norm.weight"] += 1
    if case["extreme"]:
        weights["w_proj.linear.lora.2.bias"] = one_of(draw, (4.6, -9.2), case["width"])  # of the decay
    return {name: x.half().double() for name, x in weights.items()}
