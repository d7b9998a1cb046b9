"""The reference hybrid: RWKV-6 and Mamba, side by side in every block or block by block, and the models between.

Papers
------
- Peng et al. 2024, arXiv 2404.05892: RWKV-6, the time mixing in `rwkv6.py`.
- Dao & Gu 2024, arXiv 2405.21060: Mamba-2, the mixer in `mamba2.py`.
- Gu & Dao 2023, arXiv 2312.00752: Mamba, the mixer in `mamba1.py`.
- Dong et al. 2024, arXiv 2411.13676 (Hymba): two kinds of mixer side by side in one layer, reading the same input.
- Lieber et al. 2024, arXiv 2403.19887 (Jamba): kinds of mixer block by block, and a few attention layers among them.
- Touvron et al. 2021, arXiv 2103.17239 (CaiT): LayerScale, the learned scale `residual_gamma`.
- Zhang & Sennrich 2019, arXiv 1910.07467: RMSNorm.
- So et al. 2021, arXiv 2109.08668 (Primer): the squared ReLU of the feed-forward part.
- Press & Wolf 2017, arXiv 1608.05859: the tied output head.

Glossary, one block, one token; W = width, the mixers' own symbols in their files
---------------------------------------------------------------------------------
    stream        x_t   (W)    what runs from block to block; at first the token's embedding
    anchor                     x_t + attention of RMSNorm(x_t), in one block at most     states `blocks.N.attention.*`
    normed        n_t   (W)    RMSNorm(x_t): all mixers of the block and the gate read it
    rwkv          r_t   (W)    RWKV-6 of n_t     states `blocks.N.rwkv.wkv` (H, K, V), `blocks.N.rwkv.shift` (W)
    mamba         m_t   (W)    Mamba of n_t      states `blocks.N.mamba.ssm` (H, P, N), `blocks.N.mamba.conv` (E+2GN, 3)
    fused         f_t   (W)    both, joined as `fusion.py` says: with the channel gate g_t * r_t + (1 - g_t) * m_t
    stream        x_t          x_t + gamma * f_t, then + gamma * W_2 relu(W_1 RMSNorm(x_t + gamma * f_t))^2
    logits        (V)          E RMSNorm(x_t) with E (V, W) the embedding table itself

gamma is 1, or with `residual_gamma` a learned scale of each channel, one for each thing that is added. A block of the
interleaved and the sequential layout has one mixer, and f_t is what that says.

Departures: no dropout, no biases but the gate's; the feed-forward part sees one token, so that all memory is in the
mixers (RWKV's own channel mixing would carry a second token shift).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from statecheck_kernels import Observe, StateStatistics
from statecheck_kernels.forms import backend
from statecheck_kernels.statistics import of_states
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from statecheck_reference.attention import Attention
from statecheck_reference.carrying import CarriesStates, States, check_tokens
from statecheck_reference.fusion import FUSIONS
from statecheck_reference.hybrid_config import HybridConfig
from statecheck_reference.mamba1 import Mamba1Mixer
from statecheck_reference.mamba2 import Mamba2Mixer
from statecheck_reference.rwkv6 import TimeMix

STATES = {"rwkv": ("shift", "wkv"), "mamba": ("conv", "ssm"), "attention": ("keys", "values", "filled")}


def make_mixer(name: str, config: HybridConfig, block: int) -> nn.Module:
    """The mixer of that name in block number `block`."""
    width, groups = config.width, config.norm_groups
    if name == "rwkv":
        return TimeMix(width, config.rwkv_heads, config.low_rank, block, config.blocks, groups)
    if name == "attention":
        return Attention(width, config.attention_heads, config.attention_window)
    if config.mamba_version == 1:
        return Mamba1Mixer(width, config.mamba_inner, config.mamba_state, config.mamba_rank)
    return Mamba2Mixer(width, config.mamba_inner, config.mamba_heads, config.mamba_groups, config.mamba_state, groups)


class Block(nn.Module):
    """One block of the glossary: the anchor if it is here, the mixers on one normed input, the feed-forward part."""

    def __init__(self, config: HybridConfig, index: int) -> None:
        super().__init__()
        width, hidden, anchored = config.width, config.feed_forward, index == config.attention_at
        self.names = (*["attention"] * anchored, *config.mixers[index])
        for name in self.names:
            self.add_module(name, make_mixer(name, config, index))
        self.attention_norm = nn.RMSNorm(width, eps=1e-6) if anchored else None
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.fused_by = config.fusion  # the name alone: its functions can't be pickled
        both = len(config.mixers[index]) == 2
        self.fusion = FUSIONS[self.fused_by].layer(width, config.blend, config.blend_learned) if both else None
        normed = config.mixers[index] if config.branch_norm else ()
        self.branch_norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in normed)
        self.feed_norm, self.feed_in, self.feed_out = None, None, None
        if hidden:
            self.feed_norm = nn.RMSNorm(width, eps=1e-6)
            self.feed_in = nn.Linear(width, hidden, bias=False)
            self.feed_out = nn.Linear(hidden, width, bias=False)
        scaled = ["attention"] * anchored + ["mixing"] + ["feeding"] * (hidden > 0)
        start = torch.full((width,), float(config.residual_gamma))
        self.gamma = nn.ParameterDict({name: start.clone() for name in scaled if config.residual_gamma})
        self.gate: Tensor | None = None  # of the last call (B, T, W or 1): a signal to look at
        self._initialise(config)

    def _initialise(self, config: HybridConfig) -> None:
        last = [_last_of(self.get_submodule(name)) for name in self.names]
        if self.feed_in is not None and self.feed_out is not None:
            nn.init.normal_(self.feed_in.weight, std=self.feed_in.in_features**-0.5)
            nn.init.normal_(self.feed_out.weight, std=self.feed_out.in_features**-0.5)
            last.append(self.feed_out)
        if not config.residual_gamma:
            with torch.no_grad():  # what is added to the stream starts small, the deeper the stack the smaller
                for linear in last:
                    linear.weight.mul_((2 * config.blocks) ** -0.5)

    def signals(self) -> dict[str, Tensor]:
        """Of the last call: fusion gate (B, T, W or 1) and each recurrent mixer's `log_decay`; {} before it."""
        found = {"gate": self.gate} | {
            f"{name}.log_decay": self.get_submodule(name).log_decay for name in self.names if name != "attention"
        }
        return {name: signal.clone() for name, signal in found.items() if isinstance(signal, Tensor)}

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Of the last call: the statistics that were asked for, by state."""
        layers = {
            name: cast(dict[str, StateStatistics | None], self.get_submodule(name).statistics) for name in self.names
        }
        found = {f"{layer}.{name}": own for layer, states in layers.items() for name, own in states.items()}
        return {name: dict(own.items()) for name, own in found.items() if own is not None}

    @property
    def forms(self) -> set[str]:
        """The forms of the kernels that ran in the last call."""
        return {str(self.get_submodule(name).form) for name in self.names if name != "attention"} - {""}

    def forward(
        self, stream: Tensor, states: States, observe: Mapping[str, Observe] | None = None
    ) -> tuple[Tensor, States]:
        """(B, T, W) and this block's states to the stream after it and the next states.

        `observe` asks for :meth:`statistics`, by the names that the states have here.
        """
        after: States = {}
        if self.attention_norm is not None:
            anchored = self._mix("attention", self.attention_norm(stream), states, observe, after)
            stream = self._add(stream, anchored, "attention")
        normed = self.norm(stream)  # (B, T, W)
        answers = [self._mix(name, normed, states, observe, after) for name in self.names if name != "attention"]
        answers = (
            [norm(answer) for norm, answer in zip(self.branch_norms, answers, strict=True)]
            if self.branch_norms
            else answers
        )
        fused = answers[0]  # (B, T, W)
        if self.fusion is not None:
            fused, gate = FUSIONS[self.fused_by].join(self.fusion, normed, *answers)
            self.gate = None if gate is None else gate.detach()
        stream = self._add(stream, fused, "mixing")
        return self._feed(stream), {name: after[name] for name in states}

    def _mix(
        self, name: str, normed: Tensor, states: States, observe: Mapping[str, Observe] | None, after: States
    ) -> Tensor:
        """What the mixer `name` says; its next states go to `after`."""
        held = [states[f"{name}.{state}"] for state in STATES[name]]
        asked = {state: observe[f"{name}.{state}"] for state in STATES[name]} if observe else None
        answer, *following = self.get_submodule(name)(normed, *held, asked)
        after |= {f"{name}.{state}": one for state, one in zip(STATES[name], following, strict=True)}
        return answer

    def _feed(self, stream: Tensor) -> Tensor:
        if self.feed_norm is None or self.feed_in is None or self.feed_out is None:
            return stream
        hidden = functional.relu(self.feed_in(self.feed_norm(stream))).square()  # (B, T, feed_forward)
        return self._add(stream, self.feed_out(hidden), "feeding")

    def _add(self, stream: Tensor, part: Tensor, name: str) -> Tensor:
        return torch.addcmul(stream, self.gamma[name], part) if name in self.gamma else stream + part


class _NoCall:
    """While a block computes again for a gradient, which is no call: what it tells of its last call stays as it was."""

    def __init__(self, block: Block) -> None:
        self.block = block

    def __enter__(self) -> None:
        self.told = {module: dict(vars(module)) for module in self.block.modules()}

    def __exit__(self, *error: object) -> None:
        for module, own in self.told.items():
            vars(module).update(own)
        del self.told


def _last_of(mixer: nn.Module) -> nn.Linear:
    """The matrix that a mixer's answer leaves by."""
    return cast(nn.Linear, mixer.get_submodule("out_proj" if hasattr(mixer, "out_proj") else "output"))


class HybridLanguageModel(CarriesStates):
    """The hybrid as a language model that keeps its states between calls.

    `activation_checkpointing` trades time for memory: each block is computed again when its gradient is.

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
        self.activation_checkpointing = False
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config, n) for n in range(config.blocks))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        # The table is also the output head: after a norm of sqrt(width), small rows keep the first logits small.
        nn.init.normal_(self.embedding.weight, std=0.02)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of every state and its shape, without the batch."""
        return self.config.state_shapes

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
        # A matrix a head; the cache of attention has the heads after its places.
        heads = 1 if len(shape) < 3 else shape[1 if ".attention." in name else 0]
        none = self.embedding.weight.new_zeros(batch, 0, heads, 1)
        return dict(of_states(none, Observe(1, entropy, held.get(name))).items())

    @property
    def backend(self) -> str:
        """What computed the recurrences of the last call."""
        forms = {form for _, block in self._numbered() for form in block.forms}
        return ", ".join(backend(form) for form in sorted(forms)) or "no call yet"

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
            stream, after = self._through(block, stream, _of_block(states, n), _of_block(observe, n))  # (B, T, W)
            new_states |= {f"blocks.{n}.{name}": state for name, state in after.items()}
        self._states = new_states
        return functional.linear(self.norm(stream), self.embedding.weight)  # (B, T, V)

    def _through(
        self, block: Block, stream: Tensor, states: States, observe: Mapping[str, Observe]
    ) -> tuple[Tensor, States]:
        if self.activation_checkpointing and torch.is_grad_enabled():
            contexts = (nullcontext(), _NoCall(block))
            return checkpoint(block, stream, states, observe, use_reentrant=False, context_fn=lambda: contexts)
        return block(stream, states, observe)

    def get_signals(self) -> dict[str, Tensor]:
        """Of the last call, by block: `gate`, and `log_decay` of rwkv and of mamba; {} before it."""
        found: dict[str, Tensor] = {}
        for n, block in self._numbered():
            found |= {f"blocks.{n}.{name}": signal for name, signal in block.signals().items()}
        return found

    def _numbered(self) -> Iterator[tuple[int, Block]]:
        yield from enumerate(cast(Iterable[Block], self.blocks))


def _of_block(named: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The entries `blocks.NUMBER.*`, by the rest of their names."""
    start = f"blocks.{number}."
    return {name.removeprefix(start): one for name, one in named.items() if name.startswith(start)}
