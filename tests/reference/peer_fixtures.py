"""What other libraries were given and said, read from `peers/`; `scripts/make_peer_fixtures.py` wrote it.

Imported before `peer_parity`, which lies among the scripts.
"""

import json
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open

SCRIPTS = Path(__file__).parents[2] / "scripts"
FOLDER = Path(__file__).parent / "peers"
sys.path.append(str(SCRIPTS))

from peer_parity.comparison import Peer  # noqa: E402


def origin(name: str) -> dict[str, Any]:
    """Peer and version, and the sizes of each comparison."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["origin"])


def peers(name: str) -> list[Peer]:
    """All comparisons of a fixture file, everything in float64."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        arrays = {key: file.get_tensor(key).double() for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    return [
        Peer(sizes, {key.partition(".")[2]: x for key, x in arrays.items() if key.startswith(f"{n}.")})
        for n, sizes in enumerate(origin(name)["cases"])
    ]


def sizes_of(peer: Peer) -> str:
    """For the names of tests."""
    return "-".join(f"{name}{value}" for name, value in peer.sizes.items() if isinstance(value, int))


MIXERS1, MIXERS = peers("transformers-mamba"), peers("transformers-mamba2")
LAYERS, STREAMS = peers("fla-rwkv6-layer"), peers("rwkv-time-mixing")
RECURRENCES = peers("fla-rwkv6-recurrence")
FIXTURES = {
    "transformers-mamba": MIXERS1,
    "transformers-mamba2": MIXERS,
    "fla-rwkv6-layer": LAYERS,
    "rwkv-time-mixing": STREAMS,
    "fla-rwkv6-recurrence": RECURRENCES,
}
