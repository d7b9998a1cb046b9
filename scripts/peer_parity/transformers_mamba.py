"""Mamba and Mamba-2: `MambaMixer` and `Mamba2Mixer` of transformers, their torch paths, with `DynamicCache`.

The torch path of Mamba starts a call of several tokens from a state of zero, whatever the cache holds ("not supported
by the kernel path", says its code): only calls of one token carry the state on. So of its calls only the first is
longer, and none is where the states at the start are not zero.
"""

from importlib import import_module
from typing import Any

import numpy as np
import torch

from peer_parity.comparison import Arrays, Case
from peer_parity.drawing import batch, generator, kept, lengths, normal, one_of, start, weights_of
from peer_parity.float64 import dtype_of

SINGLE = 9  # calls of one token at most that Mamba is read in
WINDOW = 4  # inputs that the peers' convolution window holds


def draw_mamba(seed: int, unit: int = 1) -> Case:
    """Sizes of one comparison with Mamba; channels, units, rank and the first call `unit` times as large."""
    draw = generator(seed, "mamba-1")
    begin = start(seed)
    first, *others = [1] * SINGLE if begin["started"] else lengths(draw, seed, unit)
    return {
        "seed": seed,
        "batch": batch(draw, seed),
        "width": int(draw.integers(1, 6)) * unit,
        "expand": int(draw.integers(1, 4)),
        "state_size": int(draw.integers(1, 6)) * unit,
        "rank": int(draw.integers(1, 4)) * unit,
        "pieces": [first, *[1] * min(sum(others), SINGLE)],
        **begin,
    }


def run_mamba(case: Case) -> Arrays:
    """What :func:`_called_in_pieces` says of Mamba; `ssm` (B, E, N)."""
    peer = import_module("transformers.models.mamba.modeling_mamba")
    config = import_module("transformers").MambaConfig(
        hidden_size=case["width"],
        expand=case["expand"],
        state_size=case["state_size"],
        time_step_rank=case["rank"],
        num_hidden_layers=1,
    )
    mixer = peer.MambaMixer(config, layer_idx=0).eval()
    draw = generator(case["seed"], "mamba-1 numbers")
    weights = weights_of(draw, mixer)
    weights["D"] += 1
    if case["extreme"]:
        weights["A_log"] = one_of(draw, (4.6, -9.2), *weights["A_log"].shape)
        weights["dt_proj.bias"] = one_of(draw, (0.75, 1.5), len(weights["D"]))
    states = (mixer.intermediate_size, WINDOW), (mixer.intermediate_size, case["state_size"])
    return _called_in_pieces(case, draw, mixer, peer.DynamicCache(config=config), weights, *states)


def draw_mamba2(seed: int, unit: int = 1) -> Case:
    """Sizes of one comparison with Mamba-2; channels, units and calls `unit` times as large.

    `chunk` is the peer's chunk size.
    """
    draw = generator(seed, "mamba")
    heads = int(draw.choice([1, 2, 3, 4, 6]))
    size = int(draw.integers(1, 5))
    expand = int(draw.choice([e for e in (1, 2, 3) if heads * size % e == 0]))
    return {
        "seed": seed,
        "batch": batch(draw, seed),
        "width": heads * size // expand * unit,
        "expand": expand,
        "heads": heads,
        "groups": int(draw.choice([g for g in range(1, heads + 1) if heads % g == 0])),
        "state_size": int(draw.integers(1, 6)) * unit,
        "pieces": lengths(draw, seed, unit),
        "chunk": int(draw.choice([2, 8, 16, 256])),
        **start(seed),
    }


def run_mamba2(case: Case) -> Arrays:
    """What :func:`_called_in_pieces` says of Mamba-2; `ssm` (B, H, P, N)."""
    peer = import_module("transformers.models.mamba2.modeling_mamba2")
    config = import_module("transformers").Mamba2Config(
        hidden_size=case["width"],
        expand=case["expand"],
        num_heads=case["heads"],
        head_dim=case["width"] * case["expand"] // case["heads"],
        n_groups=case["groups"],
        state_size=case["state_size"],
        chunk_size=case["chunk"],
        num_hidden_layers=1,
    )
    mixer = peer.Mamba2Mixer(config, layer_idx=0).eval()
    draw = generator(case["seed"], "mamba numbers")
    weights = weights_of(draw, mixer)
    weights["norm.weight"] += 1
    weights["D"] += 1
    if case["extreme"]:
        weights["A_log"] = one_of(draw, (4.6, -9.2), case["heads"])
        weights["dt_bias"] = one_of(draw, (0.75, 1.5), case["heads"])
    states = (mixer.conv_dim, WINDOW), (case["heads"], mixer.head_dim, case["state_size"])
    return _called_in_pieces(case, draw, mixer, peer.DynamicCache(config=config), weights, *states)


def _called_in_pieces(
    case: Case,
    draw: np.random.Generator,
    mixer: Any,
    cache: Any,
    weights: Arrays,
    window_shape: tuple[int, ...],
    ssm_shape: tuple[int, ...],
) -> Arrays:
    """Weights, inputs, outputs of the calls one after the other, and `conv.N`, `ssm.N` after call N (0: before any).

    The oldest input in the window is never read again, and is left out.
    """
    dtype = dtype_of(case)
    arrays = {f"weights.{name}": x.half().double() for name, x in weights.items()}
    mixer.to(dtype).load_state_dict({name.removeprefix("weights."): x.to(dtype) for name, x in arrays.items()})
    arrays["inputs"] = normal(draw, case["batch"], sum(case["pieces"]), case["width"])
    window = normal(draw, case["batch"], *window_shape)
    window[..., 0] *= 100  # it must not matter
    ssm = normal(draw, case["batch"], *ssm_shape)
    if case["started"]:
        cache.update_conv_state(window.to(dtype), 0, conv_kernel_size=WINDOW)
        cache.update_recurrent_state(ssm.to(dtype), 0)
        arrays |= {"conv.0": window[..., 1:], "ssm.0": ssm}
    outputs, exact = [], list(arrays)
    with torch.no_grad():
        for n, piece in enumerate(arrays["inputs"].to(dtype).split(case["pieces"], 1), start=1):
            outputs.append(mixer(piece, cache_params=cache))
            arrays[f"conv.{n}"] = cache.get_conv_state(0)[..., 1:].clone()
            arrays[f"ssm.{n}"] = cache.get_recurrent_state(0).clone()
    return kept({**arrays, "outputs": torch.cat(outputs, 1)}, exact)
