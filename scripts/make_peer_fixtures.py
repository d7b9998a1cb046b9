"""Write what other libraries say to the same numbers: the fixtures that the reference hybrid is compared with.

    python -m venv peers && peers/bin/pip install torch transformers==5.23.0 flash-linear-attention==0.6.0 triton
    peers/bin/python scripts/make_peer_fixtures.py            # tests/reference/peers/*.safetensors

Three peers, each at sizes drawn at random, each on several calls with its state carried from call to call:

- `transformers-mamba2`: `Mamba2Mixer` of transformers, its torch path, with `DynamicCache`
- `fla-rwkv6-recurrence`: `naive_recurrent_rwkv6` of flash-linear-attention
- `fla-rwkv6-layer`: `RWKV6Attention` of flash-linear-attention, with its cache. Its Triton kernels need a GPU, so the
  library's own torch references stand in for them: the naive recurrence, `token_shift_ref` and `group_norm_ref`

The peers run in float64: where their code casts to float32, :class:`InFloat64` makes it float64, and that the answers
are those of the untouched float32 code is checked here. Weights and inputs are numbers that float16 holds exactly, and
are kept in it. Running this again with the same versions gives the same bytes. The tests import this file too, to run
the transformers peer on sizes that are in no fixture.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FOLDER = Path(__file__).resolve().parent.parent / "tests/reference/peers"
CASES = 14  # of each peer
GROUP_NORM_EPS = 64e-5  # as the published RWKV-6 code has it; the peer's default is 1e-5
Case = dict[str, Any]
Arrays = dict[str, Tensor]


def main() -> None:
    """Run every peer on its cases and write one file each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # fla warns that there is no GPU here
    for name, (distribution, draw, run) in PEERS.items():
        cases = [draw(seed) for seed in range(CASES)]
        arrays = {f"{n}.{key}": value for n, case in enumerate(cases) for key, value in checked(run, case).items()}
        origin = {
            "peer": f"{distribution} {version(distribution)}",
            "torch": torch.__version__,
            "made by": "scripts/make_peer_fixtures.py",
            "cases": cases,
        }
        path = folder / f"{name}.safetensors"
        save_file(arrays, path, {"origin": json.dumps(origin)})  # one key: the order of several is not kept
        print(f"{path.name}: {len(cases)} cases, {len(arrays)} arrays, {path.stat().st_size} bytes")


class InFloat64(TorchFunctionMode):
    """Within it a cast to float32 is one to float64, and what is asked for in float32 is made in float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Case | None = None
    ) -> Any:
        """Call `func` with every float32 in its arguments replaced."""
        if func is Tensor.float:
            func = Tensor.double
        widened = [torch.float64 if argument is torch.float32 else argument for argument in args]
        named = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*widened, **named)


def checked(run: Callable[[Case], Arrays], case: Case) -> Arrays:
    """What the peer says in float64; raises if its untouched float32 code says something else."""
    with InFloat64():
        arrays = run(case)
    untouched = run({**case, "dtype": "float32"})
    for name, wide in arrays.items():
        error = float((untouched[name].double() - wide.double()).norm() / wide.double().norm().clamp_min(1e-30))
        if not error < 1e-4:
            raise ValueError(f"{case}: {name}: expected the float32 answers of the peer, found them {error:.1e} away")
    return arrays


# ---------------------------------------------------------------------------------------------- what is drawn


def generator(seed: int, salt: str) -> np.random.Generator:
    """Numbers that depend on nothing but the seed and the peer."""
    return np.random.default_rng([seed, *salt.encode()])


def normal(draw: np.random.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers that float16 holds exactly, in float64."""
    return torch.from_numpy(draw.standard_normal(shape) * scale).half().double()


def one_of(draw: np.random.Generator, values: Sequence[float], *shape: int) -> Tensor:
    """Each element one of `values`, as float16 holds it."""
    return torch.from_numpy(draw.choice(np.asarray(values), shape)).half().double()


def kept(arrays: Arrays, exact: Iterable[str]) -> Arrays:
    """The arrays as they are stored: those named `exact` in float16, which holds them."""
    exact = set(exact)
    stored = {name: (x.half() if name in exact else x).detach().clone().contiguous() for name, x in arrays.items()}
    if wrong := [name for name in exact if not torch.equal(stored[name].double(), arrays[name].double())]:
        raise ValueError(f"expected numbers that float16 holds, found others in {', '.join(wrong)}")
    return stored


def lengths(draw: np.random.Generator, seed: int) -> list[int]:
    """How long the calls are: one token, a prefix and single tokens, and past both chunk sizes (32 and 64)."""
    fixed = {0: [1], 1: [1, 1, 1], 2: [66], 3: [2, 1], 4: [33, 1, 7], 5: [70, 3]}
    if seed in fixed:
        return fixed[seed]
    return [int(draw.choice([1, 1, 2, 3, 5, 9, 14])) for _ in range(int(draw.integers(1, 5)))]


# -------------------------------------------------------------------------------------------- Mamba-2, transformers


def mamba_case(seed: int) -> Case:
    """Sizes of one comparison with `Mamba2Mixer`; `chunk` is the peer's chunk size."""
    draw = generator(seed, "mamba")
    heads = int(draw.choice([1, 2, 3, 4, 6]))
    size = int(draw.integers(1, 5))
    expand = int(draw.choice([e for e in (1, 2, 3) if heads * size % e == 0]))
    return {
        "seed": seed,
        "batch": int(draw.integers(1, 4)) if seed > 5 else 1,
        "width": heads * size // expand,
        "expand": expand,
        "heads": heads,
        "groups": int(draw.choice([g for g in range(1, heads + 1) if heads % g == 0])),
        "state_size": int(draw.integers(1, 6)),
        "pieces": lengths(draw, seed),
        "chunk": int(draw.choice([2, 8, 16, 256])),
        "started": seed % 2 == 1,  # from states that are not zero
        "extreme": seed % 3 == 2,  # log decays near -100 in some heads, near -1e-4 in the others
    }


def run_mamba(case: Case) -> Arrays:
    """Weights, inputs, outputs of the calls one after the other, and `conv.N`, `ssm.N` after call N (0: before any).

    The peer's window holds 4 inputs; the oldest is never read again, and is left out.
    """
    draw, dtype = generator(case["seed"], "mamba numbers"), getattr(torch, case.get("dtype", "float64"))
    mixer, cache = _mamba_peer(case)
    arrays = {f"weights.{name}": value for name, value in _mamba_weights(draw, mixer, case).items()}
    mixer.to(dtype).load_state_dict({name.removeprefix("weights."): x.to(dtype) for name, x in arrays.items()})
    arrays["inputs"] = normal(draw, case["batch"], sum(case["pieces"]), case["width"])
    window = normal(draw, case["batch"], mixer.conv_dim, 4)
    window[..., 0] *= 100  # it must not matter
    ssm = normal(draw, case["batch"], case["heads"], mixer.head_dim, case["state_size"])
    if case["started"]:
        cache.update_conv_state(window.to(dtype), 0, conv_kernel_size=4)
        cache.update_recurrent_state(ssm.to(dtype), 0)
        arrays |= {"conv.0": window[..., 1:], "ssm.0": ssm}
    outputs, exact = [], list(arrays)
    with torch.no_grad():
        for n, piece in enumerate(arrays["inputs"].to(dtype).split(case["pieces"], 1), start=1):
            outputs.append(mixer(piece, cache_params=cache))
            arrays[f"conv.{n}"] = cache.get_conv_state(0)[..., 1:].clone()
            arrays[f"ssm.{n}"] = cache.get_recurrent_state(0).clone()
    return kept({**arrays, "outputs": torch.cat(outputs, 1)}, exact)


def _mamba_peer(case: Case) -> tuple[Any, Any]:
    """The mixer and an empty cache."""
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
    return peer.Mamba2Mixer(config, layer_idx=0).eval(), peer.DynamicCache(config=config)


def _mamba_weights(draw: np.random.Generator, mixer: nn.Module, case: Case) -> Arrays:
    weights = {
        name: normal(draw, *p.shape, scale=p.shape[-1] ** -0.5 if p.dim() > 1 else 0.5)
        for name, p in mixer.named_parameters()
    }
    weights["norm.weight"] += 1
    weights["D"] += 1
    if case["extreme"]:
        weights["A_log"] = one_of(draw, (4.6, -9.2), case["heads"])
        weights["dt_bias"] = one_of(draw, (0.75, 1.5), case["heads"])
    return {name: x.half().double() for name, x in weights.items()}


# -------------------------------------------------------------------------------------------- RWKV-6, fla


def recurrence_case(seed: int) -> Case:
    """Sizes of one comparison with the naive recurrence: keys and values of a head may differ in size."""
    draw = generator(seed, "recurrence")
    return {
        "seed": seed,
        "batch": int(draw.integers(1, 4)) if seed > 5 else 1,
        "heads": int(draw.integers(1, 4)),
        "key": int(draw.integers(1, 6)),
        "value": int(draw.integers(1, 6)),
        "pieces": lengths(draw, seed),
        "started": seed % 2 == 1,
        "extreme": seed % 3 == 2,
    }


def run_recurrence(case: Case) -> Arrays:
    """r, k, log_w (B, T, H, K), v (B, T, H, V), u (H, K), outputs (B, T, H, V), and `wkv.N` after call N."""
    peer = import_module("fla.ops.rwkv6.recurrent_naive").naive_recurrent_rwkv6
    draw, dtype = generator(case["seed"], "recurrence numbers"), getattr(torch, case.get("dtype", "float64"))
    batch, heads, key, value = case["batch"], case["heads"], case["key"], case["value"]
    shape = (batch, sum(case["pieces"]), heads)
    arrays = {name: normal(draw, *shape, key) for name in ("r", "k")}
    arrays |= {"v": normal(draw, *shape, value), "u": normal(draw, heads, key)}
    mild = -(normal(draw, *shape, key).exp())
    arrays["log_w"] = (one_of(draw, (-100.0, -1e-4, -1.0), *shape, key) if case["extreme"] else mild).half().double()
    state = normal(draw, batch, heads, key, value)
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


def layer_case(seed: int) -> Case:
    """Sizes of one comparison with `RWKV6Attention`; the decay's low-rank map has twice the rank of the mixing's."""
    draw = generator(seed, "layer")
    heads = int(draw.integers(1, 5))
    return {
        "seed": seed,
        "batch": int(draw.integers(1, 4)) if seed > 5 else 1,
        "width": heads * int(draw.integers(2, 5)),
        "heads": heads,
        "low_rank": int(draw.integers(1, 4)),
        "pieces": lengths(draw, seed),
        "started": seed % 2 == 1,
        "extreme": seed % 3 == 2,
    }


def run_layer(case: Case) -> Arrays:
    """Weights, inputs, outputs of the calls one after the other, and `shift.N`, `wkv.N` after call N (0: before)."""
    draw, dtype = generator(case["seed"], "layer numbers"), getattr(torch, case.get("dtype", "float64"))
    layer, cache = _layer_peer(case)
    arrays = {f"weights.{name}": value for name, value in _layer_weights(draw, layer, case).items()}
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


def _layer_peer(case: Case) -> tuple[Any, Any]:
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


def _layer_weights(draw: np.random.Generator, layer: nn.Module, case: Case) -> Arrays:
    weights = {
        name: normal(draw, *p.shape, scale=p.shape[-1] ** -0.5 if p.dim() > 1 else 0.5)
        for name, p in layer.named_parameters()
    }
    weights["g_norm.weight"] += 1
    decay = "w_proj.linear.lora.2.bias"
    if case["extreme"]:
        weights[decay] = one_of(draw, (4.6, -9.2), case["width"])
    return {name: x.half().double() for name, x in weights.items()}


PEERS: dict[str, tuple[str, Callable[[int], Case], Callable[[Case], Arrays]]] = {
    "transformers-mamba2": ("transformers", mamba_case, run_mamba),
    "fla-rwkv6-recurrence": ("fla-core", recurrence_case, run_recurrence),
    "fla-rwkv6-layer": ("fla-core", layer_case, run_layer),
}

if __name__ == "__main__":
    main()
