"""The recurrences unrolled: every output a sum over all earlier steps, no state carried, in numpy. Slow, and apart."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arrays = Mapping[str, Array]


def _kept(log_decay: Array, start: int, stop: int) -> Array:
    """The product of the decays of steps start to stop - 1, from logarithms (B, T, ...)."""
    return np.exp(log_decay[:, start:stop].sum(1))


def wkv6(a: Arrays) -> tuple[Array, Array]:
    """Outputs (B, T, H, V) and the last state."""
    steps = a["r"].shape[1]

    def state(t: int) -> Array:
        """After t steps."""
        found = np.einsum("bhkv,bhk->bhkv", a["state"], _kept(a["log_w"], 0, t))
        for j in range(t):
            kept = _kept(a["log_w"], j + 1, t)
            found += np.einsum("bhk,bhv,bhk->bhkv", a["k"][:, j], a["v"][:, j], kept)
        return found

    new = np.einsum("bthk,hk,bthk,bthv->bthv", a["r"], a["u"], a["k"], a["v"])
    old = [np.einsum("bhk,bhkv->bhv", a["r"][:, t], state(t)) for t in range(steps)]
    return new + np.stack(old, 1), state(steps)


def selective_scan(a: Arrays) -> tuple[Array, Array]:
    """Outputs (B, T, D) and the last state."""
    steps = a["x"].shape[1]
    log_decay = np.einsum("btd,dn->btdn", a["dt"], a["A"])

    def state(t: int) -> Array:
        found = a["state"] * _kept(log_decay, 0, t)
        for j in range(t):
            kept = _kept(log_decay, j + 1, t)
            found += np.einsum("bd,bd,bn,bdn->bdn", a["x"][:, j], a["dt"][:, j], a["B"][:, j], kept)
        return found

    read = [np.einsum("bdn,bn->bd", state(t + 1), a["C"][:, t]) for t in range(steps)]
    return np.stack(read, 1) + a["D"] * a["x"], state(steps)


def ssd(a: Arrays) -> tuple[Array, Array]:
    """Outputs (B, T, H, P) and the last state."""
    steps, heads = a["x"].shape[1:3]
    log_decay = a["dt"] * a["A"]
    group = np.arange(heads) // (heads // a["B"].shape[2])  # of each head
    write, read = a["B"][:, :, group], a["C"][:, :, group]

    def state(t: int) -> Array:
        found = np.einsum("bhpn,bh->bhpn", a["state"], _kept(log_decay, 0, t))
        for j in range(t):
            kept = _kept(log_decay, j + 1, t)
            found += np.einsum("bhp,bh,bhn,bh->bhpn", a["x"][:, j], a["dt"][:, j], write[:, j], kept)
        return found

    outputs = [np.einsum("bhpn,bhn->bhp", state(t + 1), read[:, t]) for t in range(steps)]
    return np.stack(outputs, 1) + a["D"][:, None] * a["x"], state(steps)


def causal_conv1d(a: Arrays) -> tuple[Array, Array]:
    """Outputs (B, T, D), after SiLU, and the last state."""
    seen = np.concatenate([a["state"].transpose(0, 2, 1), a["x"]], 1)  # (B, W - 1 + T, D)
    windows = np.lib.stride_tricks.sliding_window_view(seen, a["weight"].shape[1], axis=1)  # (B, T, D, W)
    y = np.einsum("btdw,dw->btd", windows, a["weight"]) + a["bias"]
    return y / (1 + np.exp(-y)), seen[:, a["x"].shape[1] :].transpose(0, 2, 1)


UNROLLED: dict[str, Callable[[Arrays], tuple[Array, Array]]] = {
    "wkv6": wkv6,
    "selective_scan": selective_scan,
    "ssd": ssd,
    "causal_conv1d": causal_conv1d,
}
