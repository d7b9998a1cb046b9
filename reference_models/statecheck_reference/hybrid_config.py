"""The shapes that the hybrid family can have: which mixers stand in which block, how they are joined, their sizes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from statecheck_reference.configuration import checked_mapping, require_multiple, require_whole_numbers
from statecheck_reference.fusion import FUSIONS
from statecheck_reference.mamba2 import CONVOLUTION

LARGEST_GAMMA = 1_000_000
LAYOUTS = ("parallel", "interleaved", "sequential")
LATER = (  # fields that the first checkpoints did not name
    "layout",
    "ratio",
    "fusion",
    "blend",
    "blend_learned",
    "branch_norm",
    "residual_gamma",
    "norm_groups",
    "attention_at",
    "attention_heads",
    "attention_window",
    "mamba_version",
    "mamba_rank",
)


@dataclass(frozen=True)
class HybridConfig:
    """The shape of the model.

    Which mixers stand where: `layout` "parallel" puts RWKV and Mamba side by side in every block, joined by `fusion`
    (see `fusion.py`; RWKV's share starts at `blend`, and `blend_learned=False` keeps a weighted sum there);
    "interleaved" and "sequential" give each block one of them, `ratio` RWKV to Mamba: 3:1 interleaved is R R R M R R R
    M, sequential is all R first. 1:0 is pure RWKV, 0:1 pure Mamba. Block `attention_at`, counted from 0, has an
    attention layer over `attention_window` tokens before its mixers; -1: no block has.

    How they are scaled: `branch_norm` normalises what each branch gives before they are joined (and so undoes the small
    start of the last matrices; take it together with `residual_gamma`). `residual_gamma` above 0 is where a learned
    scale of each channel of what a block adds starts (LayerScale); 0: no such scale, and the last matrices start
    smaller instead. `norm_groups` is the number of groups of channels over which what was read from the state is
    normalised, in RWKV and in Mamba-2; 0 is as published: RWKV's heads, Mamba's groups of B and C.

    Sizes: `rwkv_heads` of width / rwkv_heads channels; `low_rank` of RWKV's token shift (its decay has twice as many);
    `mamba_heads` of mamba_inner / mamba_heads channels, in `mamba_groups`, each with a state of `mamba_state` numbers a
    channel (Mamba-1, `mamba_version` 1, has channels instead of heads, and the low rank `mamba_rank` for its step);
    `feed_forward` 0: no feed-forward part.

    >>> HybridConfig().parameters_of_state  # numbers a row and block: WKV, shift, SSM, convolution window
    {'wkv': 16384, 'shift': 256, 'ssm': 16384, 'conv': 1728}
    >>> HybridConfig(blocks=3, layout="interleaved", ratio="2:1").mixers
    (('rwkv',), ('rwkv',), ('mamba',))
    """

    vocabulary: int = 4096
    width: int = 256
    blocks: int = 6
    layout: str = "parallel"
    ratio: str = "1:1"
    fusion: str = "channel-gate"
    blend: float = 0.5
    blend_learned: bool = True
    branch_norm: bool = False
    residual_gamma: float = 0.0
    norm_groups: int = 0
    attention_at: int = -1
    attention_heads: int = 4
    attention_window: int = 256
    rwkv_heads: int = 4
    low_rank: int = 16
    mamba_version: int = 2
    mamba_inner: int = 512
    mamba_heads: int = 8
    mamba_groups: int = 1
    mamba_state: int = 32
    mamba_rank: int = 12
    feed_forward: int = 576

    def __post_init__(self) -> None:
        require_whole_numbers(
            self, "HybridConfig", {"norm_groups": 0, "feed_forward": 0, "attention_at": -1, "attention_window": 2}
        )
        self._check_choices()
        self._check_places()
        self._check_divisions()

    def _check_choices(self) -> None:
        for name, known in (("layout", LAYOUTS), ("fusion", tuple(FUSIONS)), ("mamba_version", (1, 2))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"HybridConfig.{name}: expected one of {', '.join(map(str, known))}, found {getattr(self, name)!r}"
                )
        for name in ("blend_learned", "branch_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"HybridConfig.{name}: expected true or false, found {getattr(self, name)!r}")
        if not _is_number(self.blend) or not 0 < self.blend < 1:
            raise ValueError(f"HybridConfig.blend: expected a share between 0 and 1, found {self.blend!r}")
        if not _is_number(self.residual_gamma) or not 0 <= self.residual_gamma <= LARGEST_GAMMA:
            raise ValueError(
                f"HybridConfig.residual_gamma: expected a number from 0 to {LARGEST_GAMMA:,}, "
                f"found {self.residual_gamma!r}"
            )
        if not self.blend_learned and self.fusion != "sum":
            raise ValueError(f"HybridConfig.blend_learned: only the fusion sum can be fixed, found {self.fusion!r}")

    def _check_places(self) -> None:
        rwkv, mamba = self.parts
        if self.layout == "parallel" and self.ratio != "1:1":
            raise ValueError(
                f"HybridConfig.ratio: every block of the layout parallel has both, found {self.ratio!r}; "
                "another ratio, and a pure model (1:0, 0:1), is interleaved or sequential"
            )
        missing = [name for name, part in (("rwkv", rwkv), ("mamba", mamba)) if part and name not in self.components]
        if missing:
            raise ValueError(
                f"HybridConfig.ratio: with {self.blocks} blocks {self.layout} {self.ratio} has no {missing[0]}; "
                "ask for more blocks or another ratio"
            )
        if self.attention_at >= self.blocks:
            raise ValueError(
                f"HybridConfig.attention_at: expected a block from 0 to {self.blocks - 1}, or -1 for none, "
                f"found {self.attention_at}"
            )

    def _check_divisions(self) -> None:
        pairs = [("width", "rwkv_heads"), ("mamba_inner", "mamba_groups")]
        if self.mamba_version == 2:
            pairs += [("mamba_inner", "mamba_heads"), ("mamba_heads", "mamba_groups")]
        if self.norm_groups:
            pairs += [("width", "norm_groups"), ("mamba_inner", "norm_groups")]
        if self.attention_at >= 0:
            pairs += [("width", "attention_heads")]
        for whole, part in pairs:
            require_multiple(self, "HybridConfig", whole, part)
        groups = "norm_groups" if self.norm_groups else "rwkv_heads"
        if "rwkv" in self.components and getattr(self, groups) == self.width:
            raise ValueError(f"HybridConfig.{groups}: expected groups of several channels, found {self.width} of one")

    def to_dict(self) -> dict[str, Any]:
        """The config as a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "HybridConfig":
        """The config that a checkpoint names: no other key is known, and those of the first checkpoints are required.

        Raises ValueError that names the missing and the unknown keys.
        """
        return checked_mapping(cls, config, "hybrid config", later=LATER)

    @property
    def parts(self) -> tuple[int, int]:
        """The ratio as two numbers, RWKV and Mamba."""
        words = str(self.ratio).split(":")
        if len(words) != 2 or not all(word.isdecimal() for word in words) or not any(int(word) for word in words):
            raise ValueError(
                f"HybridConfig.ratio: expected RWKV:MAMBA, say 3:1 (1:0 is pure RWKV), found {self.ratio!r}"
            )
        return int(words[0]), int(words[1])

    @property
    def mixers(self) -> tuple[tuple[str, ...], ...]:
        """The recurrent mixers of each block, "rwkv" and "mamba"."""
        rwkv, mamba = self.parts
        if self.layout == "parallel":
            return (("rwkv", "mamba"),) * self.blocks
        if self.layout == "interleaved":
            return tuple(("rwkv",) if n % (rwkv + mamba) < rwkv else ("mamba",) for n in range(self.blocks))
        first = round(self.blocks * rwkv / (rwkv + mamba))
        return (("rwkv",),) * first + (("mamba",),) * (self.blocks - first)

    @property
    def components(self) -> tuple[str, ...]:
        """The kinds of mixer that the model has, in the order rwkv, mamba, attention."""
        recurrent = {name for names in self.mixers for name in names}
        return (*(name for name in ("rwkv", "mamba") if name in recurrent), *["attention"] * (self.attention_at >= 0))

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of every state and its shape, without the batch."""
        own = self._shapes_by_mixer()
        return {
            f"blocks.{n}.{mixer}.{name}": shape
            for n, mixers in enumerate(self.mixers)
            for mixer in (*["attention"] * (n == self.attention_at), *mixers)
            for name, shape in own[mixer].items()
        }

    def _shapes_by_mixer(self) -> dict[str, dict[str, tuple[int, ...]]]:
        head, kept = self.width // self.rwkv_heads, self.attention_window - 1
        cached = (kept, self.attention_heads, self.width // self.attention_heads)
        return {
            "rwkv": {"wkv": (self.rwkv_heads, head, head), "shift": (self.width,)},
            "mamba": {"ssm": self._ssm_shape, "conv": (self._convolved, CONVOLUTION - 1)},
            "attention": {"keys": cached, "values": cached, "filled": (kept,)},
        }

    @property
    def _ssm_shape(self) -> tuple[int, ...]:
        if self.mamba_version == 1:
            return (self.mamba_inner, self.mamba_state)
        return (self.mamba_heads, self.mamba_inner // self.mamba_heads, self.mamba_state)

    @property
    def _convolved(self) -> int:
        """Channels of Mamba's convolution: x, and in Mamba-2 B and C."""
        return self.mamba_inner + (0 if self.mamba_version == 1 else 2 * self.mamba_groups * self.mamba_state)

    @property
    def parameters_of_state(self) -> dict[str, int]:
        """Numbers that one row of a batch remembers in a block that has it, by kind of state."""
        shapes = {name.rpartition(".")[2]: shape for name, shape in self.state_shapes.items()}
        return {name: torch.Size(shape).numel() for name, shape in shapes.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
