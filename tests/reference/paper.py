"""The three layers written anew from their papers, in numpy, float64, one sequence, token by token and head by head.

Nothing here is shared with the package: no recurrence either, but the sums that the papers begin with, over all earlier
tokens. Slow, and meant to be read beside the papers.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


# ------------------------------------------------------------------------- Peng et al. 2024, arXiv 2404.05892, Finch


def wkv(r: Array, k: Array, v: Array, w: Array, u: Array, state: Array) -> tuple[Array, Array]:
    """r_t wkv_t of one head, and the state after the last token.

    wkv_t = diag(u) k_t^T v_t + sum_i<t diag(w_i+1 ... w_t-1) k_i^T v_i + diag(w_1 ... w_t-1) S_0; r, k, w (T, K).
    """
    tokens = len(r)

    def remembered(t: int) -> Array:
        """What has been written before token t, each row of it decayed by all tokens in between."""
        past = np.prod(w[:t], axis=0)[:, None] * state
        for i in range(t):
            past = past + np.prod(w[i + 1 : t], axis=0)[:, None] * np.outer(k[i], v[i])
        return past

    answers = [r[t] @ (np.diag(u) @ np.outer(k[t], v[t]) + remembered(t)) for t in range(tokens)]
    return np.array(answers).reshape(tokens, v.shape[-1]), remembered(tokens)


def time_mixing(
    p: Mapping[str, Array], x: Array, before: Array, states: Array, heads: int, eps: float = 64e-5
) -> tuple[Array, Array, Array]:
    """o (T, W) of x (T, W); `before` (W) is x_0, `states` (H, K, V). The parameters bear the paper's names.

    `p` has mu_x; lambda_q, A_q, B_q for q in r, k, v, g, d; lambda_w, A_w, B_w of the decay; W_r, W_k, W_v, W_g, W_o;
    u (H, K); gain and bias of the LayerNorm. The epsilon is that of the published code (1e-5 times 8^2).
    """

    def lora(q: str, z: Array) -> Array:
        return p[f"lambda_{q}"] + np.tanh(z @ p[f"A_{q}"]) @ p[f"B_{q}"]

    def ddlerp(q: str, a: Array, b: Array) -> Array:
        return a + (b - a) * lora(q, a + (b - a) * p["mu_x"])

    shifted = np.concatenate([before[None], x])[:-1]
    r, k, v, g = (np.array([ddlerp(q, a, b) @ p[f"W_{q}"] for a, b in zip(x, shifted, strict=True)]) for q in "rkvg")
    d = np.array([lora("w", ddlerp("d", a, b)) for a, b in zip(x, shifted, strict=True)])
    w = np.exp(-np.exp(d))
    size, normed, last = x.shape[1] // heads, np.zeros_like(x), np.zeros_like(states)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        y, last[head] = wkv(r[:, own], k[:, own], v[:, own], w[:, own], p["u"][head], states[head])
        centred = y - y.mean(-1, keepdims=True)
        normed[:, own] = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return (silu(g) * (normed * p["gain"] + p["bias"])) @ p["W_o"], x[-1], last


# ------------------------------------------------------------------------- Dao & Gu 2024, arXiv 2405.21060, Mamba-2


def ssm(x: Array, log_a: Array, b: Array, c: Array, state: Array) -> tuple[Array, Array]:
    """Y = M X of one head, with M the paper's semiseparable matrix, and the state after the last token.

    M_ts = C_t^T (a_t ... a_s+1) B_s for s <= t; x (T, P) is discretised already; log_a (T); b, c (T, N); state (P, N).
    """
    tokens = len(x)
    mixing = np.zeros((tokens, tokens))
    for t in range(tokens):
        for s in range(t + 1):
            mixing[t, s] = np.exp(log_a[s + 1 : t + 1].sum()) * (c[t] @ b[s])
    from_state = np.array([np.exp(log_a[: t + 1].sum()) * (state @ c[t]) for t in range(tokens)]).reshape(x.shape)
    last = np.exp(log_a.sum()) * state
    for s in range(tokens):
        last = last + np.exp(log_a[s + 1 :].sum()) * np.outer(x[s], b[s])
    return mixing @ x + from_state, last


def mamba2(
    p: Mapping[str, Array], u: Array, window: Array, states: Array, groups: int, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Outputs (T, W) of u (T, W), the next window (E + 2 G N, 3) and states (H, P, N); published names."""
    heads, size, n = states.shape
    inner = heads * size
    projected = u @ p["in_proj.weight"].T
    z, to_convolve, dt = np.split(projected, [inner, projected.shape[1] - heads], axis=1)
    seen = np.concatenate([window.T, to_convolve])  # token t is at t + 3
    kernel = p["conv1d.weight"][:, 0]  # (channels, 4), the latest last
    convolved = silu(np.array([(kernel.T * seen[t : t + 4]).sum(0) for t in range(len(u))]) + p["conv1d.bias"])
    x, b, c = np.split(convolved, [inner, inner + groups * n], axis=1)
    dt = softplus(dt + p["dt_bias"])
    y, last = np.zeros_like(x), np.zeros_like(states)
    for head in range(heads):
        group = head // (heads // groups)
        own, shared = slice(head * size, (head + 1) * size), slice(group * n, (group + 1) * n)
        log_a = -dt[:, head] * np.exp(p["A_log"][head])
        answer, last[head] = ssm(x[:, own] * dt[:, [head]], log_a, b[:, shared], c[:, shared], states[head])
        y[:, own] = answer + p["D"][head] * x[:, own]
    gated = y * silu(z)
    for group in np.split(np.arange(inner), groups):  # RMSNorm, each group by itself
        gated[:, group] /= np.sqrt((gated[:, group] ** 2).mean(-1, keepdims=True) + eps)
    return (gated * p["norm.weight"]) @ p["out_proj.weight"].T, seen[-3:].T, last


# ------------------------------------------------------------------------- Gu & Dao 2023, arXiv 2312.00752, Mamba


def selective(x: Array, step: Array, a: Array, b: Array, c: Array, state: Array) -> tuple[Array, Array]:
    """Algorithm 2 for one channel, and the state after the last token: equation 2, unrolled over all earlier tokens.

    y_t = sum over units of c_t h_t, h_t = exp(a (step_1 + ... + step_t)) h_0 + sum over s <= t of
    exp(a (step_s+1 + ... + step_t)) step_s b_s x_s; x and step (T), a and state (N), b and c (T, N).
    """

    def remembered(tokens: int) -> Array:
        """h after so many tokens."""
        h = np.exp(a * step[:tokens].sum()) * state
        for s in range(tokens):
            h = h + np.exp(a * step[s + 1 : tokens].sum()) * step[s] * b[s] * x[s]
        return h

    return np.array([c[t] @ remembered(t + 1) for t in range(len(x))]), remembered(len(x))


def mamba1(p: Mapping[str, Array], u: Array, window: Array, states: Array) -> tuple[Array, Array, Array]:
    """Figure 3: outputs (T, W) of u (T, W), the next window (E, 3) and states (E, N); published names."""
    inner, n = states.shape
    x, z = np.split(u @ p["in_proj.weight"].T, 2, axis=1)
    seen = np.concatenate([window.T, x])  # token t is at t + 3
    kernel = p["conv1d.weight"][:, 0]  # (E, 4), the latest last
    x = silu(np.array([(kernel.T * seen[t : t + 4]).sum(0) for t in range(len(u))]) + p["conv1d.bias"])
    low, b, c = np.split(x @ p["x_proj.weight"].T, np.cumsum([p["dt_proj.weight"].shape[1], n]), axis=1)
    step = softplus(low @ p["dt_proj.weight"].T + p["dt_proj.bias"])
    y, last = np.zeros_like(x), np.zeros_like(states)
    for channel in range(inner):
        a, own = -np.exp(p["A_log"][channel]), np.s_[:, channel]
        answer, last[channel] = selective(x[own], step[own], a, b, c, states[channel])
        y[own] = answer + p["D"][channel] * x[own]
    return (y * silu(z)) @ p["out_proj.weight"].T, seen[-3:].T, last
