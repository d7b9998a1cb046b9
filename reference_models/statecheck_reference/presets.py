"""Shapes of the hybrid family by name: the models that ship, and the validation matrix around `baseline`.

hybrid-8m      the reference model: 6 parallel blocks of 256, heads of 64 as published, both states 16,384 numbers
hybrid-3m      a small one of the same make, for studies with several seeds
baseline       12 parallel blocks of 256 with an attention layer in block 6; the others differ from it in one respect:
no-attention   without that layer
shallow        half as many blocks (attention in block 3)
wide           8 blocks of 320 (attention in block 4): about as many parameters
gamma-1        what a block adds is scaled by 1 at the start, not by 0.1
groups-1       answers are normalised over all channels, not over each of 8 groups
state-32       32 numbers of state a channel, not 16
pure-rwkv, pure-mamba    one kind of mixer in all blocks, no attention; parameters and states as in no-attention
"""

from collections.abc import Mapping

from statecheck_reference.models import Shape

HYBRID_8M: Shape = {}  # what ships is what `HybridConfig` has where nothing is said
HYBRID_3M: Shape = {
    "width": 160,
    "blocks": 5,
    "rwkv_heads": 5,
    "mamba_inner": 320,
    "mamba_heads": 5,
    "mamba_state": 16,
    "feed_forward": 384,
}
BASELINE: Shape = {
    "width": 256,
    "blocks": 12,
    "residual_gamma": 0.1,
    "norm_groups": 8,
    "attention_at": 6,
    "rwkv_heads": 16,
    "mamba_inner": 256,
    "mamba_heads": 8,
    "mamba_state": 16,
    "feed_forward": 256,
}
NO_ATTENTION: Shape = {**BASELINE, "attention_at": -1}
WIDE: Shape = {
    **BASELINE,
    "width": 320,
    "blocks": 8,
    "attention_at": 4,
    "attention_heads": 5,
    "rwkv_heads": 20,
    "mamba_inner": 320,
    "mamba_heads": 10,
    "feed_forward": 320,
}
PURE_RWKV: Shape = {**NO_ATTENTION, "layout": "interleaved", "ratio": "1:0", "rwkv_heads": 8, "feed_forward": 784}
PURE_MAMBA: Shape = {
    **NO_ATTENTION,
    "layout": "interleaved",
    "ratio": "0:1",
    "mamba_inner": 512,
    "mamba_heads": 16,
    "feed_forward": 744,
}

MATRIX: Mapping[str, Shape] = {
    "baseline": BASELINE,
    "no-attention": NO_ATTENTION,
    "shallow": {**BASELINE, "blocks": 6, "attention_at": 3},
    "wide": WIDE,
    "gamma-1": {**BASELINE, "residual_gamma": 1.0},
    "groups-1": {**BASELINE, "norm_groups": 1},
    "state-32": {**BASELINE, "rwkv_heads": 8, "mamba_state": 32},
    "pure-rwkv": PURE_RWKV,
    "pure-mamba": PURE_MAMBA,
}
PRESETS: Mapping[str, Shape] = {"hybrid-8m": HYBRID_8M, "hybrid-3m": HYBRID_3M, **MATRIX}


def preset(name: str) -> Shape:
    """The shape of that name; what it leaves out is as in `HybridConfig`. ValueError lists the names that there are.

    >>> preset("hybrid-3m")["width"], preset("shallow")["blocks"]
    (160, 6)
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, found {name!r}")
    return PRESETS[name]
