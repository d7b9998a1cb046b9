"""The reference hybrid: RWKV-6 and Mamba-2 side by side in every block, joined by a gate that is learned.

Papers
------
- Peng et al. 2024, arXiv 2404.05892: RWKV-6, the time mixing in `rwkv6.py`.
- Dao & Gu 2024, arXiv 2405.21060: Mamba-2, the mixer in `mamba2.py`.
- Dong et al. 2024, arXiv 2411.13676 (Hymba): two kinds of mixer side by side in one layer, reading the same input.
- Zhang & Sennrich 2019, arXiv 1910.07467: RMSNorm.
- So et al. 2021, arXiv 2109.08668 (Primer): the squared ReLU of the feed-forward part.
- Press & Wolf 2017, arXiv 1608.05859: the tied output head.

Glossary, one block, one token; W = width, the branches' own symbols in their files
-----------------------------------------------------------------------------------
    stream        x_t   (W)    what runs from block to block; at first the token's embedding
    normed        n_t   (W)    RMSNorm(x_t): both branches and the gate read it
    rwkv          r_t   (W)    RWKV-6 of n_t     states `blocks.N.rwkv.wkv` (H, K, V), `blocks.N.rwkv.shift` (W)
    mamba         m_t   (W)    Mamba-2 of n_t    states `blocks.N.mamba.ssm` (H, P, N), `blocks.N.mamba.conv` (E+2GN, 3)
    fusion gate   g_t   (W)    sigmoid(W_g n_t + b_g), in 0..1: the share of the RWKV branch, channel by channel
    fused         f_t   (W)    g_t * r_t + (1 - g_t) * m_t
    stream        x_t          x_t + f_t, then + W_2 relu(W_1 RMSNorm(x_t + f_t))^2
    logits        (V)          E RMSNorm(x_t) with E (V, W) the embedding table itself

Departures: no dropout, no biases but the gate's; the feed-forward part sees one token, so that all memory is in the two
branches (RWKV's own channel mixing would carry a second token shift).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from statecheck_kernels import Observe
from statecheck_kernels.forms import backend
from statecheck_kernels.statistics import of_states
from torch import Tensor, nn
from torch.nn import functional

from statecheck_reference.carrying import CarriesStates, States, check_tokens
from statecheck_reference.configuration import checked_mapping, require_whole_numbers
from statecheck_reference.mamba2 import CONVOLUTION, Mamba2Mixer
from statecheck_reference.rwkv6 import TimeMix


@dataclass(frozen=True)
class HybridConfig:
    """The shape of the model; `rwkv_heads` of width / rwkv_heads, `mamba_heads` of mamba_inner / mamba_heads channels.

    `low_rank` is that of RWKV's token shift (its decay has twice as many).

    >>> HybridConfig().parameters_of_state  # numbers a row and block: WKV, shift, SSM, convolution window
    {'wkv': 12288, 'shift': 192, 'ssm': 12288, 'conv': 1344}
    """

    vocabulary: int = 4096
    width: int = 192
    blocks: int = 2
    rwkv_heads: int = 3
    low_rank: int = 16
    mamba_inner: int = 384
    mamba_heads: int = 6
    mamba_groups: int = 1
    mamba_state: int = 32
    feed_forward: int = 576

    def __post_init__(self) -> None:
        require_whole_numbers(self, "HybridConfig")
        for whole, part in (
            ("width", "rwkv_heads"),
            ("mamba_inner", "mamba_heads"),
            ("mamba_heads", "mamba_groups"),
            ("mamba_inner", "mamba_groups"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"HybridConfig.{whole}: expected a multiple of {part} = {getattr(self, part)}, "
                    f"found {getattr(self, whole)}"
                )

    def to_dict(self) -> dict[str, int]:
        """The config as a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "HybridConfig":
        """The config that a checkpoint names; every key is required and no other is known.

        Raises ValueError that names the missing and the unknown keys.
        """
        return checked_mapping(cls, config, "hybrid config")

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each state of one block, by the end of its name, without the batch."""
        head = self.width // self.rwkv_heads
        channels = self.mamba_inner + 2 * self.mamba_groups * self.mamba_state
        return {
            "rwkv.wkv": (self.rwkv_heads, head, head),
            "rwkv.shift": (self.width,),
            "mamba.ssm": (self.mamba_heads, self.mamba_inner // self.mamba_heads, self.mamba_state),
            "mamba.conv": (channels, CONVOLUTION - 1),
        }

    @property
    def parameters_of_state(self) -> dict[str, int]:
        """Numbers that one row of a batch remembers in one block, by kind of state."""
        sizes = {name: torch.Size(shape).numel() for name, shape in self.state_shapes.items()}
        return {name.rpartition(".")[2]: size for name, size in sizes.items()}


class Block(nn.Module):
    """One block of the glossary: both branches on one normed input, the gate, the feed-forward part."""

    def __init__(self, config: HybridConfig, index: int) -> None:
        super().__init__()
        width, depth = config.width, index / max(config.blocks - 1, 1)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.rwkv = TimeMix(width, config.rwkv_heads, config.low_rank, depth)
        self.mamba = Mamba2Mixer(width, config.mamba_inner, config.mamba_heads, config.mamba_groups, config.mamba_state)
        self.fusion = nn.Linear(width, width)
        self.feed_norm = nn.RMSNorm(width, eps=1e-6)
        self.feed_in = nn.Linear(width, config.feed_forward, bias=False)
        self.feed_out = nn.Linear(config.feed_forward, width, bias=False)
        self.gate: Tensor | None = None  # of the last call (B, T, W): a signal to look at
        self._initialise(config.blocks)

    def _initialise(self, blocks: int) -> None:
        nn.init.normal_(self.fusion.weight, std=0.02)
        nn.init.zeros_(self.fusion.bias)  # both branches count the same at first
        nn.init.normal_(self.feed_in.weight, std=self.feed_in.in_features**-0.5)
        nn.init.normal_(self.feed_out.weight, std=self.feed_out.in_features**-0.5)
        with torch.no_grad():  # what is added to the stream starts small, the deeper the stack the smaller
            for last in (self.rwkv.output, self.mamba.out_proj, self.feed_out):
                last.weight.mul_((2 * blocks) ** -0.5)

    def signals(self) -> dict[str, Tensor]:
        """Of the last call: fusion gate (B, T, W), log decays (B, T, H, K) and (B, T, H); {} before it."""
        found = {
            "gate": self.gate,
            "rwkv.log_decay": self.rwkv.log_decay,
            "mamba.log_decay": self.mamba.log_decay,
        }
        return {name: signal.clone() for name, signal in found.items() if signal is not None}

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Of the last call: the statistics that were asked for, by state."""
        layers = {"rwkv": self.rwkv.statistics, "mamba": self.mamba.statistics}
        found = {f"{layer}.{name}": own for layer, states in layers.items() for name, own in states.items()}
        return {name: dict(own.items()) for name, own in found.items() if own is not None}

    def forward(
        self, stream: Tensor, states: States, observe: Mapping[str, Observe] | None = None
    ) -> tuple[Tensor, States]:
        """(B, T, W) and this block's four states to the stream after it and the next four.

        `observe` asks for :meth:`statistics`, by the names that the states have here.
        """
        normed = self.norm(stream)  # (B, T, W)
        asked = {name.partition(".")[2]: one for name, one in (observe or {}).items()}
        by_rwkv, shift, wkv = self.rwkv(normed, states["rwkv.shift"], states["rwkv.wkv"], asked)
        by_mamba, conv, ssm = self.mamba(normed, states["mamba.conv"], states["mamba.ssm"], asked)
        gate = torch.sigmoid(self.fusion(normed))  # (B, T, W)
        self.gate = gate.detach()
        stream = stream + gate * by_rwkv + (1 - gate) * by_mamba
        hidden = functional.relu(self.feed_in(self.feed_norm(stream))).square()  # (B, T, feed_forward)
        next_states = {"rwkv.wkv": wkv, "rwkv.shift": shift, "mamba.ssm": ssm, "mamba.conv": conv}
        return stream + self.feed_out(hidden), next_states


class HybridLanguageModel(CarriesStates):
    """The hybrid as a language model that keeps its states between calls.

    >>> model = HybridLanguageModel(HybridConfig(vocabulary=16, width=8, blocks=1, rwkv_heads=2, low_rank=2,
    ...                             mamba_inner=16, mamba_heads=2, mamba_state=4, feed_forward=16))
    >>> logits = model(torch.tensor([[3, 1, 4]]))
    >>> logits.shape, {name: tuple(state.shape) for name, state in model.get_states().items()}
    (torch.Size([1, 3, 16]), {'blocks.0.rwkv.wkv': (1, 2, 4, 4), 'blocks.0.rwkv.shift': (1, 8), \
'blocks.0.mamba.ssm': (1, 2, 8, 4), 'blocks.0.mamba.conv': (1, 24, 3)})
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config, n) for n in range(config.blocks))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        # The table is also the output head: after a norm of sqrt(width), small rows keep the first logits small.
        nn.init.normal_(self.embedding.weight, std=0.02)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of every state and its shape, without the batch."""
        shapes = self.config.state_shapes
        return {f"blocks.{n}.{name}": shape for n in range(self.config.blocks) for name, shape in shapes.items()}

    def forward(self, inputs: Tensor) -> Tensor:
        """Read `inputs` (batch, time) of token ids on from the current states; return logits (batch, time, vocabulary).

        A call with no tokens returns (batch, 0, vocabulary) and changes nothing. Raises ValueError for inputs that are
        not (batch, time) ids of the vocabulary, and for another batch size than the states have.
        """
        return self._read(inputs, {})

    def forward_with_statistics(
        self, inputs: Tensor, *, every: int, entropy: bool, running: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """Read `inputs` as a call does; logits, and by state its statistics after each `every` tokens of this call.

        :class:`statecheck_kernels.StateStatistics` says which, all (batch, time // every, heads); its `running`, by
        state, is what the next call is given (None at the start).

        >>> model = HybridLanguageModel(HybridConfig(vocabulary=16, width=8, blocks=1, rwkv_heads=2, low_rank=2,
        ...                             mamba_inner=16, mamba_heads=2, mamba_state=4, feed_forward=16))
        >>> _, found = model.forward_with_statistics(torch.tensor([[3, 1, 4]]), every=1, entropy=False, running=None)
        >>> {name: tuple(own["largest"].shape) for name, own in found.items()}
        {'blocks.0.rwkv.shift': (1, 3, 1), 'blocks.0.rwkv.wkv': (1, 3, 2), \
'blocks.0.mamba.conv': (1, 3, 1), 'blocks.0.mamba.ssm': (1, 3, 2)}
        """
        held = running or {}
        logits = self._read(inputs, {name: Observe(every, entropy, held.get(name)) for name in self.state_shapes})
        if logits.shape[1] == 0:  # no block has run
            return logits, {name: self._unobserved(name, len(logits), entropy, held) for name in self.state_shapes}
        own = {n: block.statistics() for n, block in self._numbered()}
        return logits, {f"blocks.{n}.{name}": found for n, states in own.items() for name, found in states.items()}

    def _unobserved(self, name: str, batch: int, entropy: bool, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The statistics of a state in a call without tokens: none, and `running` as it was."""
        shape = self.state_shapes[name]
        heads = shape[0] if len(shape) == 3 else 1  # wkv and ssm are a matrix a head
        none = self.embedding.weight.new_zeros(batch, 0, heads, 1)
        return dict(of_states(none, Observe(1, entropy, held.get(name))).items())

    @property
    def backend(self) -> str:
        """What computed the recurrences of the last call."""
        forms = {form for _, block in self._numbered() for form in (block.rwkv.form, block.mamba.form)}
        return ", ".join(backend(form) for form in sorted(forms - {""})) or "no call yet"

    def _read(self, inputs: Tensor, observe: Mapping[str, Observe]) -> Tensor:
        check_tokens(inputs, self.config.vocabulary, self._states)
        batch, time = inputs.shape
        if time == 0:
            return self.embedding.weight.new_zeros(batch, 0, self.config.vocabulary)
        states = self._states or {
            name: self.embedding.weight.new_zeros(batch, *shape) for name, shape in self.state_shapes.items()
        }
        stream = self.embedding(inputs)  # (B, T, W)
        new_states: States = {}
        for n, block in self._numbered():
            own = {name: states[f"blocks.{n}.{name}"] for name in self.config.state_shapes}
            asked = {name: observe[f"blocks.{n}.{name}"] for name in own} if observe else None
            stream, after = block(stream, own, asked)  # (B, T, W)
            new_states |= {f"blocks.{n}.{name}": state for name, state in after.items()}
        self._states = new_states
        return functional.linear(self.norm(stream), self.embedding.weight)  # (B, T, V)

    def get_signals(self) -> dict[str, Tensor]:
        """Of the last call, by block: `gate`, and `log_decay` of rwkv and of mamba; {} before it."""
        found: dict[str, Tensor] = {}
        for n, block in self._numbered():
            found |= {f"blocks.{n}.{name}": signal for name, signal in block.signals().items()}
        return found

    def _numbered(self) -> Iterator[tuple[int, Block]]:
        yield from enumerate(cast(Iterable[Block], self.blocks))
