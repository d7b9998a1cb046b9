"""Tiny models, made of a copy of the packages, with weights under which the state matters.

Initial values as published hide faults: all ones, all zeros, small last matrices. Here every parameter is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mutation.planting import Load

VOCABULARY = 32
HYBRID = {
    "vocabulary": VOCABULARY,
    "width": 16,
    "blocks": 2,
    "rwkv_heads": 4,
    "low_rank": 4,
    "mamba_inner": 32,
    "mamba_heads": 4,
    "mamba_groups": 2,
    "mamba_state": 4,
    "feed_forward": 16,
}
ANCHOR = {"attention_at": 1, "attention_heads": 2, "attention_window": 6}
TRANSFORMER = {"vocabulary": VOCABULARY, "width": 16, "layers": 2, "heads": 2, "feed_forward": 24}


def hybrid(load: Load, shape: Mapping[str, int]) -> nn.Module:
    """RWKV-6 beside Mamba-2."""
    config = load("statecheck_reference.hybrid_config").HybridConfig(**shape)
    return load("statecheck_reference.hybrid").HybridLanguageModel(config)


def transformer(load: Load) -> nn.Module:
    """The reference transformer, with its cache."""
    module = load("statecheck_reference.transformer")
    return module.TransformerLanguageModel(module.TransformerConfig(**TRANSFORMER))


def cached(load: Load) -> nn.Module:
    """The transformer of this package, with masks and operations of its own."""
    return load("mutation.cached").CachedTransformer(VOCABULARY, width=16, heads=2, layers=2)


SUBJECTS: Mapping[str, Callable[[Load], nn.Module]] = {
    "hybrid": lambda load: hybrid(load, HYBRID),
    "anchored": lambda load: hybrid(load, HYBRID | ANCHOR),
    "transformer": transformer,
    "cached": cached,
}


def subject(name: str, load: Load, seed: int = 0) -> nn.Module:
    """The model of that name from the copy that `load` loads from, its parameters drawn from `seed`."""
    model = SUBJECTS[name](load).eval()
    draw(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def draw(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter: the same numbers for the same names and shapes."""
    for name, parameter in model.named_parameters():
        normal = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(_scaled(name.rpartition(".")[2], name, parameter, normal))


def _scaled(last: str, name: str, parameter: Tensor, normal: Tensor) -> Tensor:
    """Of standard normal numbers, values of the right size for a parameter."""
    if "norm" in name and last == "weight":
        return 1 + 0.2 * normal
    if last == "A_log":  # rates of about 0.2 to 2 a step
        return -0.5 + 0.5 * normal
    if last == "decay":  # exp(-exp(decay)): half-lives of a token to some thirty
        return -1.5 + normal
    if last in ("mu", "mu_x"):
        return 0.5 + 0.3 * normal
    return (0.5 if parameter.dim() < 2 or last == "bonus" or "embedding" in name else 0.3) * normal
