"""Real bugs of published recurrences, planted in copies of ours: what changes, and which case of the battery sees it.

Each row of :data:`FAULTS` names the report that the bug is from (a repository and its issue, pull request or commit),
the form it is planted in, the exact text before and after, and the cases that must catch it.

    vllm#14857        zeros are written into a copy, the old request's state survives
    fla#167           every row gets the last row's token shift
    mamba 3854ad8     the softplus of the one-step path overflows where the scan's does not
    fla 9b9e47d7      train and inference norms place eps differently
    fla 2675c107      a mask that is not strict shows what is to be foretold
    fla#1176          gates that are sums already are summed again; a call of one step hides it
    mamba#352         gradients are wrong, or NaN, when the length is no multiple of the chunk
    fla#754           on load log() is taken of a trained A_log
    sglang#31833      the second request of a batch keeps the wrong state
    mlx-lm#1169       a batch index wraps, a new sequence inherits another's state
    fla#37            gradients are added up in bfloat16
    vllm#23279        a chunk's boundary is taken for the sequence's: wrong decay of the initial state
"""

from planting import Change, Fault


def _fault(name: str, source: str, form: str, caught_by: tuple[str, ...], *changes: tuple[str, str, str]) -> Fault:
    return Fault(name, source, form, tuple(Change(*change) for change in changes), caught_by)


K, R = "statecheck_kernels", "statecheck_reference"
CPU, CHUNKED, TRITON = f"{K}/cpu/src", f"{K}/chunked", f"{K}/triton_form"
CONVOLUTION = "causal_conv1d-sizes_agree-5-4-3"

FAULTS = (
    # ------------------------------------------------------------------------------- the old request's state survives
    _fault(
        "the window of a packed sequence begins in the one before",
        "vllm#14857",
        "cpu",
        ("causal_conv1d-packed_agree",),
        (f"{CPU}/convolution.hpp", "if (t >= 0) row(", "if (all.sequences.start(s) + t >= 0) row("),
    ),
    _fault(
        "the decays past a sequence's end are filled in a copy",
        "vllm#14857",
        "chunked",
        ("selective_scan-packed_extremes_agree",),
        (
            f"{CHUNKED}/mamba1.py",
            "decay = decay.masked_fill(~real[0][..., None, None], 1)",
            "decay[~real[0]].fill_(1)",
        ),
    ),
    _fault(
        "to forget, zeros are written into copies of the states",
        "vllm#14857",
        "layers",
        ("hybrid_forgets",),
        (
            f"{R}/carrying.py",
            " if states else {}\n",
            " if states else self._states\n"
            "        for state in self._states.values() if not states else ():\n"
            "            state[torch.arange(len(state))].zero_()\n",
        ),
    ),
    # ---------------------------------------------------------------------------- every row gets the last row's shift
    _fault(
        "every row's window is the last one's",
        "fla#167",
        "cpu",
        (CONVOLUTION, "causal_conv1d-cuts_agree"),
        (
            f"{CPU}/convolution.hpp",
            "*all.initial.at<T>(s, first_channel + d, t + past)",
            "*all.initial.at<T>(all.sequences.count - 1, first_channel + d, t + past)",
        ),
    ),
    _fault(
        "every row's window is state[-1]",
        "fla#167",
        "chunked",
        (CONVOLUTION, "causal_conv1d-cuts_agree"),
        (
            f"{CHUNKED}/convolution.py",
            "torch.cat([state.transpose(1, 2), wide], 1)",
            "torch.cat([state[-1].T.expand(len(state), -1, -1), wide], 1)",
        ),
    ),
    _fault(
        "every program's window is the last row's",
        "fla#167",
        "triton",
        (CONVOLUTION,),
        (
            f"{TRITON}/causal_conv1d_kernels.py",
            "lanes = row * state_at[0] + channels[None, :] * state_at[1] + places[:, None] * state_at[2]\n    past",
            "lanes = (tl.num_programs(0) - 1) * state_at[0] + channels[None, :] * state_at[1]"
            " + places[:, None] * state_at[2]\n    past",
        ),
    ),
    # --------------------------------------------------------------------------------------- softplus of the one step
    _fault(
        "softplus of one step is log1p(exp)",
        "mamba 3854ad8",
        "operations",
        ("selective_scan-softplus_agrees", "ssd-softplus_agrees"),
        (
            f"{K}/operations.py",
            "return functional.softplus(dt.to(self.state.dtype), threshold=40) if softplus else dt",
            "if softplus and dt.shape[1] == 1:\n"
            "            return dt.to(self.state.dtype).exp().log1p()\n"
            "        return functional.softplus(dt.to(self.state.dtype), threshold=40) if softplus else dt",
        ),
    ),
    _fault(
        "the layer's softplus of one token is log1p(exp)",
        "mamba 3854ad8",
        "layers",
        ("mixer_reads_on",),
        (
            f"{R}/mamba2.py",
            "functional.softplus(dt + self.dt_bias)",
            "functional.softplus(dt + self.dt_bias) if dt.shape[1] > 1 else (dt + self.dt_bias).exp().log1p()",
        ),
    ),
    # ----------------------------------------------------------------------------------------------- the place of eps
    _fault(
        "for one token the gated norm adds eps to the root",
        "fla 9b9e47d7",
        "layers",
        ("mixer_reads_on", "hybrid_reads_on"),
        (
            f"{R}/mamba2.py",
            "        return self.weight * functional.rms_norm(",
            "        if x.shape[1] == 1:\n"
            "            root = parts.square().mean(-1, keepdim=True).sqrt()\n"
            "            return self.weight * (parts / (root + 1e-5)).flatten(-2)\n"
            "        return self.weight * functional.rms_norm(",
        ),
    ),
    _fault(
        "for one token a block's norm adds eps to the root",
        "fla 9b9e47d7",
        "layers",
        ("hybrid_reads_on",),
        (
            f"{R}/hybrid.py",
            "        normed = self.norm(stream)  # (B, T, W)",
            "        normed = self.norm(stream)\n"
            "        if stream.shape[1] == 1:\n"
            "            root = stream.square().mean(-1, keepdim=True).sqrt()\n"
            "            normed = self.norm.weight * stream / (root + 1e-6)",
        ),
    ),
    # ------------------------------------------------------------------------------------------ a mask not strict
    _fault(
        "a step's answer is read after its own write",
        "fla 2675c107",
        "cpu",
        ("wkv6-sizes_agree-2-5-3", "ssd-sizes_agree-4-3-2-5"),
        (
            f"{CPU}/tile.hpp",
            "                if (PASS != COUNT) y[v] += read * state;\n"
            "                const Vec<T> written = write * xs[v];\n"
            "                state = kept * state + written;\n",
            "                const Vec<T> written = write * xs[v];\n"
            "                state = kept * state + written;\n"
            "                if (PASS != COUNT) y[v] += read * state;\n",
        ),
    ),
    _fault(
        "the scores of a chunk have their diagonal",
        "fla 2675c107",
        "chunked",
        ("wkv6-sizes_agree-2-5-3",),
        (
            f"{CHUNKED}/rwkv6.py",
            "scores = log_decay.new_zeros(*pairs, 1)",
            "scores = (receptance * key).sum(-1)[..., None, None]",
        ),
    ),
    _fault(
        "the scores of a chunk reach one step ahead",
        "fla 2675c107",
        "chunked",
        ("ssd-sizes_agree-4-3-2-5", "ssd-cuts_agree"),
        (f"{CHUNKED}/mamba2.py", "device=x.device).tril()", "device=x.device).tril(1)"),
        (f"{CHUNKED}/mamba2.py", "(c @ b.transpose(-1, -2)).tril()", "(c @ b.transpose(-1, -2)).tril(1)"),
    ),
    _fault(
        "a program reads after it has written",
        "fla 2675c107",
        "triton",
        ("wkv6-sizes_agree-1-1-1",),
        (
            f"{TRITON}/wkv6_kernels.py",
            "tl.sum(r_t[:, None] * (S + bonus[:, None] * written), axis=0)",
            "tl.sum(r_t[:, None] * (next_state(S, w_t, written) + bonus[:, None] * written), axis=0)",
        ),
    ),
    # ------------------------------------------------------------------------------------ summed gates summed again
    _fault(
        "the decays since a chunk's start are summed twice",
        "fla#1176",
        "chunked",
        ("ssd-sizes_agree-4-3-2-5", "ssd-cuts_agree"),
        (f"{CHUNKED}/mamba2.py", "since_start = log_a.cumsum(-1)", "since_start = log_a.cumsum(-1).cumsum(-1)"),
    ),
    _fault(
        "the decays of keys since a chunk's start are summed twice",
        "fla#1176",
        "chunked",
        ("wkv6-sizes_agree-2-5-3", "wkv6-cuts_agree"),
        (f"{CHUNKED}/rwkv6.py", "(r * since_start.exp())", "(r * since_start.cumsum(-2).exp())"),
    ),
    # ------------------------------------------------------------------------- lengths that are no multiple of a chunk
    _fault(
        "the last chunk's tail holds what was in memory",
        "mamba#352",
        "chunked",
        ("ssd-sizes_agree-4-3-2-5", "ssd-lengths_agree"),
        (
            f"{CHUNKED}/mamba2.py",
            "    x, b, c = (in_chunks(y, size) for y in (written, write, read))",
            "    x, b = (in_chunks(y, size) for y in (written, write))\n"
            "    tail = read.new_full((len(read), -steps % size, *read.shape[2:]), torch.nan)\n"
            "    c = in_chunks(torch.cat([read, tail], 1), size)",
        ),
    ),
    _fault(
        "the backward pass begins at the end of a whole chunk",
        "mamba#352",
        "cpu",
        ("wkv6-lengths_agree", "ssd-lengths_agree"),
        (
            f"{CPU}/outer.hpp",
            "back_k = (steps - 1) * wk, back_v = (steps - 1) * wv;",
            "back_k = (C - 1) * wk, back_v = (C - 1) * wv;",
        ),
    ),
    # -------------------------------------------------------------------------------------------- log() on load
    _fault(
        "A_log is taken for A when it is loaded",
        "fla#754",
        "layers",
        ("hybrid_is_loaded",),
        (
            f"{R}/mamba2.py",
            "    def _initialise(self) -> None:\n",
            "    def _load_from_state_dict(self, state_dict, prefix, *others):\n"
            '        state_dict[prefix + "A_log"] = state_dict[prefix + "A_log"].log()\n'
            "        super()._load_from_state_dict(state_dict, prefix, *others)\n\n"
            "    def _initialise(self) -> None:\n",
        ),
    ),
    # ------------------------------------------------------------------------------------ the second request's state
    _fault(
        "the first two packed sequences swap their last states",
        "sglang#31833",
        "cpu",
        ("wkv6-packed_agree", "ssd-packed_agree"),
        (
            f"{CPU}/outer.hpp",
            "write_state<T>(source.final, s, h,",
            "const bool swapped = source.sequences.cu && s < 2 && source.sequences.count > 1;\n"
            "    write_state<T>(source.final, swapped ? 1 - s : s, h,",
        ),
    ),
    _fault(
        "states are kept after the chunk that they should come before",
        "sglang#31833",
        "cpu",
        ("selective_scan-sizes_agree-5-3",),
        (
            f"{CPU}/selective.hpp",
            "        if (scan.checkpoints) std::memcpy(k.checkpoint(",
            "        if (false) std::memcpy(k.checkpoint(",
        ),
        (
            f"{CPU}/selective.hpp",
            "        k.write_rows(scan.y, first, steps, k.y);\n",
            "        k.write_rows(scan.y, first, steps, k.y);\n"
            "        T* kept = scan.checkpoints ? k.checkpoint(first / SCAN_CHUNK) : nullptr;\n"
            "        if (kept) std::memcpy(kept, k.state, k.N * k.wide * sizeof(T));\n",
        ),
    ),
    _fault(
        "all windows are taken at the first sequence's length",
        "sglang#31833",
        "chunked",
        ("causal_conv1d-packed_agree",),
        (
            f"{CHUNKED}/convolution.py",
            "column = lengths.unsqueeze(1) +",
            "column = lengths[:1].expand(layout.rows).unsqueeze(1) +",
        ),
    ),
    _fault(
        "two sequences keep their states in one place",
        "sglang#31833",
        "triton",
        ("wkv6-wide_gradients_agree",),
        (f"{TRITON}/launching.py", "slot = start // CHUNK + row", "slot = start // CHUNK"),
    ),
    # ------------------------------------------------------------------------------------------- an index wraps
    _fault(
        "a sequence's number is kept in a byte",
        "mlx-lm#1169",
        "cpu",
        ("wkv6-many_rows_agree", "ssd-many_rows_agree"),
        (
            f"{CPU}/outer.hpp",
            "read_state<T>(source.initial, s, h,",
            "read_state<T>(source.initial, static_cast<uint8_t>(s), h,",
        ),
    ),
    _fault(
        "a row's slot is kept in a byte",
        "mlx-lm#1169",
        "operations",
        ("wkv6-many_rows_agree", "selective_scan-many_rows_agree", "causal_conv1d-many_rows_agree"),
        (
            f"{K}/operations.py",
            "if state is None else state.to(wide)",
            "if state is None else state.to(wide)[torch.arange(rows).to(torch.uint8).long()]",
        ),
    ),
    # -------------------------------------------------------------------------------- gradients added up in bfloat16
    _fault(
        "the gradient of A is added up in A's own dtype",
        "fla#37",
        "chunked",
        ("selective_scan-narrow_dtypes_agree",),
        (f"{CHUNKED}/mamba1.py", "_Scan.apply(*along, A.to(state.dtype), state,", "_Scan.apply(*along, A, state,"),
    ),
    _fault(
        "the gradient of the state is carried in the dtype of the outputs'",
        "fla#37",
        "triton",
        ("ssd-wide_gradients_agree",),
        (
            f"{TRITON}/ssd_kernels.py",
            "            G = a_t * G\n",
            "            G = (a_t * G).to(dy.dtype.element_ty).to(WIDE)\n",
        ),
    ),
    # --------------------------------------------------------------------------- a chunk's boundary for a sequence's
    _fault(
        "decays are read from the chunk's boundary on, not the sequence's",
        "vllm#23279",
        "cpu",
        ("wkv6-packed_agree",),
        (
            f"{CPU}/sources.hpp",
            "copy_row(log_w, b, at, c.h, c.w",
            "copy_row(log_w, b, at - sequences.start(c.s) % c.chunk, c.h, c.w",
        ),
    ),
    _fault(
        "decays are laid out from the chunk's boundary on, not the sequence's",
        "vllm#23279",
        "chunked",
        ("ssd-packed_agree",),
        (
            f"{CHUNKED}/mamba2.py",
            "    log_decay = layout.lay(log_decay)\n",
            "    if cu_seqlens is not None:\n"
            "        log_decay = log_decay[:, torch.arange(layout.steps) - cu_seqlens[layout.row] % CHUNK]\n"
            "    log_decay = layout.lay(log_decay)\n",
        ),
    ),
)
BY_NAME = {fault.name: fault for fault in FAULTS}
#: The rows of the table above, each planted at least once.
SOURCES = (
    *("vllm#14857", "fla#167", "mamba 3854ad8", "fla 9b9e47d7", "fla 2675c107", "fla#1176", "mamba#352", "fla#754"),
    *("sglang#31833", "mlx-lm#1169", "fla#37", "vllm#23279"),
)


def cases_of(form: str) -> tuple[str, ...]:
    """The cases that catch the faults planted in `form`, which an unchanged copy must pass."""
    return tuple(dict.fromkeys(case for fault in FAULTS if fault.form == form for case in fault.caught_by))
