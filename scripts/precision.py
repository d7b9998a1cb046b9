"""Do the laws cry wolf? The whole suite on correct models, many seeds each: no law may be broken.

    python scripts/precision.py run --out FOLDER [--only lstm,gru] [--seeds 20]    resumes where it was left
    python scripts/precision.py table FOLDER...                                     the table, as Markdown

A model whose library is not installed here is left out, and named: run it again where it is, with a folder of its own,
and give both folders to `table`. A seed is that of the weights and of what the laws draw.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from scipy.stats import beta
from torch import nn

import statecheck as sc
from statecheck.adapters.huggingface.transcript import scatter

WIDTH = 8


def lstm() -> nn.Module:
    return nn.LSTM(6, 12, num_layers=2, batch_first=True)


def gru() -> nn.Module:
    return nn.GRU(6, 12, num_layers=2, batch_first=True)


def hybrid() -> nn.Module:
    """The reference hybrid, RWKV-6 beside Mamba-2."""
    from statecheck_reference.hybrid import HybridLanguageModel
    from statecheck_reference.hybrid_config import HybridConfig

    config = HybridConfig(
        vocabulary=32,
        width=16,
        blocks=2,
        rwkv_heads=4,
        low_rank=4,
        mamba_inner=32,
        mamba_heads=4,
        mamba_groups=2,
        mamba_state=4,
        feed_forward=16,
    )
    return HybridLanguageModel(config)


def mambapy() -> nn.Module:
    """Its step beside its scan."""
    library: Any = import_module("mambapy.mamba")
    return library.Mamba(library.MambaConfig(d_model=WIDTH, n_layers=2, d_state=4))


def xlstm() -> nn.Module:
    """A block with an mLSTM and one with an sLSTM."""
    library: Any = import_module("xlstm")
    return library.xLSTMBlockStack(
        library.xLSTMBlockStackConfig(
            mlstm_block=library.mLSTMBlockConfig(mlstm=library.mLSTMLayerConfig(num_heads=2)),
            slstm_block=library.sLSTMBlockConfig(slstm=library.sLSTMLayerConfig(backend="vanilla", num_heads=2)),
            context_length=256,
            num_blocks=2,
            embedding_dim=WIDTH,
            slstm_at=[1],
        )
    )


def transformers(name: str) -> nn.Module:
    """A tiny one, of this model type."""
    from statecheck.surveys.causal import build, causal_models

    return build(*causal_models()[name])


MODELS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "lstm": ("torch", lstm),
    "gru": ("torch", gru),
    "llama": ("transformers", lambda: transformers("llama")),
    "gpt2": ("transformers", lambda: transformers("gpt2")),
    "mistral": ("transformers", lambda: transformers("mistral")),
    "mambapy": ("mambapy", mambapy),
    "xlstm": ("xlstm", xlstm),
    "hybrid": ("statecheck", hybrid),
}


def judged(name: str, seed: int) -> dict[str, Any]:
    """One run of the suite, as plain data. torch's layers keep their own first weights: theirs are never constant."""
    library, make = MODELS[name]
    torch.manual_seed(seed)
    module = make().eval()
    if library != "torch":
        scatter(module, seed)
    model = sc.wrap(module) if library != "xlstm" else sc.wrap(module, width=WIDTH)
    began = time.thread_time()
    report = sc.check_model(model, suite="conformance", seed=seed)
    numbers = [m for row in report for m in row.measurements if m.unit == "floors"]
    floors = [(m.value, m.name) for m in numbers if m.name != "HONEST.necessary"]  # there, more is better
    return {
        "model": name,
        "seed": seed,
        "release": f"{library} {version(library)}",
        "statuses": {row.id: str(row.status) for row in report},
        "broken": {row.id: row.reason for row in report if str(row.status) in ("FAIL", "ERROR")},
        "worst": max(floors, default=(0.0, "")),
        "seconds": time.thread_time() - began,
    }


def run(names: list[str], seeds: int, out: Path) -> None:
    """A file a run in `out`; what is there already is left."""
    out.mkdir(parents=True, exist_ok=True)
    absent = [name for name in names if not _installed(MODELS[name][0])]
    if absent:
        print(f"left out, their libraries are not installed here: {', '.join(absent)}", file=sys.stderr)
    for seed in range(seeds):
        for name in names:
            file = out / f"{name}-{seed}.json"
            if name not in absent and not file.exists():
                row = judged(name, seed)
                file.write_text(json.dumps(row, indent=1), encoding="utf-8")
                print(f"{name} {seed}: {row['seconds']:.0f} s, broken: {row['broken'] or 'none'}", flush=True)


def _installed(library: str) -> bool:
    try:
        version(library)
    except PackageNotFoundError:
        return False
    return True


def table(folders: list[Path]) -> str:
    """A row a model: seeds, laws that held, alarms with their exact 95 % interval, the largest reading."""
    rows = [
        json.loads(file.read_text(encoding="utf-8")) for folder in folders for file in sorted(folder.glob("*.json"))
    ]
    lines = [
        "| model | release | seeds | laws that held, fewest | seeds with an alarm (95 %) | largest reading | s a run |"
    ]
    lines.append("|---" * 7 + "|")
    for name in MODELS:
        mine = [row for row in rows if row["model"] == name]
        if not mine:
            continue
        alarms = sum(bool(row["broken"]) for row in mine)
        high = beta.ppf(0.975, alarms + 1, len(mine) - alarms) if alarms < len(mine) else 1.0
        low = beta.ppf(0.025, alarms, len(mine) - alarms + 1) if alarms else 0.0
        worst, where = max(row["worst"] for row in mine)
        held = min(sum(status == "PASS" for status in row["statuses"].values()) for row in mine)
        seconds = sorted(row["seconds"] for row in mine)[len(mine) // 2]
        of = len(mine[0]["statuses"])
        cells = (name, mine[0]["release"], len(mine), f"{held} of {of}", f"{alarms} ({low:.0%} to {high:.0%})")
        lines.append(f"| {' | '.join(map(str, cells))} | {worst:.2g} floors, {where} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=re.sub(r"\n\n.*", "", __doc__ or "", flags=re.S))
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--only", default=",".join(MODELS))
    running.add_argument("--seeds", type=int, default=20)
    commands.add_parser("table").add_argument("folders", type=Path, nargs="+")
    asked = parser.parse_args()
    if asked.command == "table":
        print(table(asked.folders))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run(asked.only.split(","), asked.seeds, asked.out)


if __name__ == "__main__":
    main()
