"""RWKV-6: `att_seq_v6_0` and, for one token, `att_one_v6_0` of the `rwkv` package (ChatRWKV).

The package loads the weights itself, from a file with the names that published RWKV-6 models have. It reads one row at
a time, and what it calls attention is the time mixing with the LayerNorm before it and the stream added after it.
"""

import os
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from peer_parity.comparison import Arrays, Case
from peer_parity.drawing import batch, generator, kept, lengths, normal, one_of, start
from peer_parity.float64 import dtype_of

BLOCK = "blocks.0."
MIXED = ("w", "k", "v", "r", "g")  # the package's order of what the token shift mixes
#: Arguments of the package's functions after x and the two states, in its order; then 20 of quantised weights.
ARGUMENTS = (
    *("ln1.weight", "ln1.bias", "att.ln_x.weight", "att.ln_x.bias"),
    *("att.time_maa_x", *(f"att.time_maa_{q}" for q in MIXED), "att.time_maa_w1", "att.time_maa_w2"),
    *("att.time_decay_w1", "att.time_decay_w2", "att.time_decay", "att.time_first"),
    *(f"att.{name}.weight" for name in ("key", "value", "receptance", "gate", "output")),
)
QUANTISED = 20


def draw_case(seed: int, unit: int = 1) -> Case:
    """Sizes of one comparison, channels and calls `unit` times as large; the package wants a rank above 1."""
    draw = generator(seed, "rwkv")
    heads = int(draw.integers(1, 5))
    return {
        "seed": seed,
        "batch": batch(draw, seed),
        "width": heads * int(draw.integers(2, 5)) * unit,
        "heads": heads,
        "low_rank": int(draw.integers(2, 5)) * unit,
        "pieces": lengths(draw, seed, unit),
        **start(seed),
    }


def run(case: Case) -> Arrays:
    """Weights, inputs, outputs of the calls one after the other, and `shift.N`, `wkv.N` after call N (0: before)."""
    draw, dtype = generator(case["seed"], "rwkv numbers"), dtype_of(case)
    rows, width, heads = case["batch"], case["width"], case["heads"]
    weights = _weights(draw, case)
    model, arrays = _loaded(weights, dtype), {f"weights.{name}": x for name, x in weights.items()}
    arrays["inputs"] = normal(draw, rows, sum(case["pieces"]), width)
    shift, wkv = normal(draw, rows, width), normal(draw, rows, heads, width // heads, width // heads)
    if case["started"]:
        arrays |= {"shift.0": shift, "wkv.0": wkv}
    else:
        shift, wkv = torch.zeros_like(shift), torch.zeros_like(wkv)
    outputs, exact, shift, wkv = [], list(arrays), shift.to(dtype), wkv.to(dtype)
    with torch.no_grad():
        for n, piece in enumerate(arrays["inputs"].to(dtype).split(case["pieces"], 1), start=1):
            by_row = [_call(model, *row) for row in zip(piece, shift, wkv, strict=True)]
            answers, shift, wkv = (torch.stack(found) for found in zip(*by_row, strict=True))
            outputs.append(answers)
            arrays |= {f"shift.{n}": shift, f"wkv.{n}": wkv}
    return kept({**arrays, "outputs": torch.cat(outputs, 1)}, exact)


def _weights(draw: np.random.Generator, case: Case) -> Arrays:
    """Of one block, without its `blocks.0.`: the published names and shapes."""
    width, heads, rank = case["width"], case["heads"], case["low_rank"]
    vectors: dict[str, tuple[int, ...]] = {f"att.time_maa_{q}": (1, 1, width) for q in ("x", *MIXED)}
    vectors |= {"att.time_decay": (1, 1, width)}
    vectors |= {f"{norm}.{name}": (width,) for norm in ("ln1", "att.ln_x") for name in ("weight", "bias")}
    matrices: dict[str, tuple[int, ...]] = {
        "att.time_maa_w1": (width, 5 * rank),
        "att.time_maa_w2": (5, rank, width),
        "att.time_decay_w1": (width, 2 * rank),
        "att.time_decay_w2": (2 * rank, width),
        "att.time_faaaa": (heads, width // heads),
        **{f"att.{name}.weight": (width, width) for name in ("receptance", "key", "value", "gate", "output")},
    }
    weights = {name: normal(draw, *shape, scale=0.5) for name, shape in vectors.items()}
    weights |= {name: normal(draw, *shape, scale=shape[-2] ** -0.5) for name, shape in matrices.items()}
    for norm in ("ln1", "att.ln_x"):
        weights[f"{norm}.weight"] += 1
    if case["extreme"]:
        weights["att.time_decay"] = one_of(draw, (4.6, -9.2), 1, 1, width)
    return {name: x.half().double() for name, x in weights.items()}


def _loaded(weights: Arrays, dtype: torch.dtype) -> Any:
    """The package's model of these weights, in `dtype`; the rest of the file is what its loader looks for."""
    os.environ["RWKV_JIT_ON"] = "0"  # compiled code would not see that float64 is wanted
    width = len(weights["ln1.weight"])
    file = {f"{BLOCK}{name}": x.float() for name, x in weights.items()}
    file |= {"emb.weight": torch.zeros(1, width), f"{BLOCK}ffn.key.weight": torch.zeros(width, width)}
    file |= {f"{BLOCK}ln0.weight": torch.ones(width), f"{BLOCK}ln0.bias": torch.zeros(width)}
    with TemporaryDirectory() as folder, torch._C.DisableTorchFunction():  # a file is read in the dtypes that it has
        path = Path(folder, "model")
        torch.save(file, path.with_suffix(".pth"))
        model = import_module("rwkv.model").RWKV(str(path), "cpu fp32", verbose=False)
    model.w = {name: x.to(dtype) for name, x in model.w.items()}
    return model


def _call(model: Any, x: Tensor, shift: Tensor, wkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (T, W) and the next states of one row, by the function that the package takes for so many tokens."""
    package = import_module("rwkv.model")
    # Its own refuses float64, and takes a dtype to return.
    matmul = _matmul if x.dtype == torch.float64 else package.matmul
    given = (*(model.w[BLOCK + name] for name in ARGUMENTS), *[x] * QUANTISED)
    with mock.patch.object(package, "matmul", matmul):
        if len(x) > 1:
            outputs, shift, wkv = model.att_seq_v6_0(x, shift, wkv, *given)
            return outputs, shift, wkv
        outputs, shift, wkv = model.att_one_v6_0(x[0], shift, wkv, *given)
        return outputs.unsqueeze(0), shift, wkv


def _matmul(a: Tensor, b: Tensor, *_: Tensor, output_dtype: torch.dtype | None = None) -> Tensor:
    return a @ b
