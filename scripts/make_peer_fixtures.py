"""Write what other libraries say to the same numbers (fixtures of the tests), or compare them with our layers now.

    python -m venv peers && peers/bin/pip install -c constraints.txt '.[peers]'
    peers/bin/python scripts/make_peer_fixtures.py                      # tests/reference/peers/*.safetensors
    peers/bin/python scripts/make_peer_fixtures.py --check --seed 7     # at sizes that nobody here has chosen

The peers, each at sizes drawn at random, each on several calls with its states carried from call to call:

- `transformers-mamba`, `transformers-mamba2`: the mixers of transformers, their torch paths, with `DynamicCache`
- `fla-rwkv6-recurrence`, `fla-rwkv6-layer`: the naive recurrence and the layer of flash-linear-attention
- `rwkv-time-mixing`: the loop over tokens of the `rwkv` package

The peers run in float64: where their code casts to float32 it is made to cast to float64, and that the answers are
those of the untouched float32 code is checked here. Weights and inputs are numbers that float16 holds exactly, and are
kept in it. Writing again with the same versions gives the same bytes.

--check prints relative errors, and writes nothing. It ends with 0 if all are small enough, 1 if any is not, 2 if a peer
that was asked for is not installed.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from peer_parity.catalogue import SOURCES
from peer_parity.float64 import checked
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parent.parent / "tests/reference/peers"
CASES = 14  # of each peer


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the fixtures or check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--only", choices=SOURCES, action="append", help="this peer (may be repeated); else all")
    parser.add_argument("--check", action="store_true", help="compare our layers with the peers, now")
    parser.add_argument("--seed", type=int, default=0, help="of the sizes and numbers of --check")
    parser.add_argument("--cases", type=int, default=12, help="comparisons with each peer in --check")
    told = parser.parse_args(arguments)
    if told.seed < 0 or told.cases < 1:
        parser.error(f"expected a seed from 0 and a case at least, found --seed {told.seed} --cases {told.cases}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # fla warns that there is no GPU here
    names = told.only or list(SOURCES)
    if told.check:
        from peer_parity.checking import check  # wants statecheck, which writing does without

        return check(names, told.seed, told.cases)
    told.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        write(name, told.out)
    return 0


def write(name: str, folder: Path) -> None:
    """Run one peer on its cases and write its file."""
    source = SOURCES[name]
    cases = [source.draw(seed) for seed in range(CASES)]
    arrays = {f"{n}.{key}": value for n, case in enumerate(cases) for key, value in checked(source.run, case).items()}
    origin = {
        "peer": f"{source.distribution} {version(source.distribution)}",
        "torch": torch.__version__,
        "made by": "scripts/make_peer_fixtures.py",
        "cases": cases,
    }
    path = folder / f"{name}.safetensors"
    save_file(arrays, path, {"origin": json.dumps(origin)})  # one key: the order of several is not kept
    print(f"{path.name}: {len(cases)} cases, {len(arrays)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
