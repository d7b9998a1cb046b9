#!/usr/bin/env python3
"""Our kernels beside the peers that are installed here: agreement first, then ratios of one run, beside their bars.

    python kernels/bench.py                                  all of it, one thread: about twelve minutes
    python kernels/bench.py --only wkv6 --kinds forward      one part
    python kernels/bench.py --quick                          tiny sizes: shows that it runs, judges no bar
    python kernels/bench.py --device cuda                    float32 and bfloat16 on a GPU, against fla and mamba-ssm

Kinds: forward; backward (forward and backward together); threads (two beside one); packed (`cu_seqlens`); statistics
(of the state, over a bare pass); memory (peak beyond inputs and outputs); hybrid (the reference model's states);
training (whole steps of hybrid-8m and of a Mamba-1 model).

Every variant computes the same thing on the same inputs, in the layout that it is fastest in, prepared beforehand, with
the same number of threads. Errors are relative to the recurrence in float64; a variant that disagrees is not timed. The
variants take turns, round by round, warm; a ratio is the median over the rounds, with the smallest and the largest.
With one thread ratios are of process CPU time, which other processes disturb less, else of wall time.

Ends with 0 if all bars that were measured hold, 1 if one is short, 2 if it can't run as asked, 3 if anything disagrees.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from benchmarks import gpu, hybrid, memory, own, speed, training
from benchmarks.inputs import FULL, KERNELS, QUICK
from benchmarks.machine import machine
from benchmarks.rows import Row, exit_code, summary, table
from benchmarks.settings import KINDS, Settings

Measure = Callable[[str, Settings], list[Row]]
MEASURES: dict[str, Measure] = {
    "forward": lambda kernel, settings: speed.speed(kernel, "forward", settings),
    "backward": lambda kernel, settings: speed.speed(kernel, "backward", settings),
    "threads": own.threads,
    "packed": own.packed,
    "statistics": own.statistics,
    "memory": memory.memory,
}
MODELS: dict[str, Callable[[Settings], list[Row]]] = {"hybrid": hybrid.hybrid, "training": training.training}


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KERNELS, default=KERNELS, metavar="NAME", help=", ".join(KERNELS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--form", choices=("chunked", "cpu", "triton"), help="default: the form that callers get")
    parser.add_argument("--repeats", type=int, default=9, help="rounds; slow peers have fewer (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="for ours and for every peer (default: %(default)s)")
    parser.add_argument("--long", action="store_true", help="262,144 tokens; peers whose backward pass takes minutes")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, no bar judged")
    parser.add_argument("--keep-memory", action="store_true", help="malloc keeps what is freed: peers at their fastest")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write machine and rows there as well")
    return parser


def main(given: Sequence[str] | None = None) -> int:
    """Measure what is asked for, print the table; the exit code is the verdict."""
    options = arguments().parse_args(given)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: expected a CUDA device, torch finds none; leave the option out", file=sys.stderr)
        return 2
    settings = Settings(
        sizes=QUICK if options.quick else FULL,
        kernels=tuple(options.only),
        kinds=tuple(options.kinds),
        form=options.form,
        repeats=2 if options.quick else options.repeats,
        threads=options.threads,
        long=options.long,
        quick=options.quick,
        keep_memory=options.keep_memory,
    )
    settings.use_threads()
    settings.use_memory()
    warnings.filterwarnings("ignore")  # the peers' own, as they are imported
    facts = machine(settings, options.device)
    print("\n".join(f"{name:<15} {value}" for name, value in facts.items()), flush=True)
    rows = measured(settings, options.device)
    rows = [row.without_bar() for row in rows] if settings.quick else rows
    print("\n" + table(rows))
    print("\n" + ("Tiny sizes: no bar is judged." if settings.quick else summary(rows)))
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "rows": [row.to_dict() for row in rows]}, indent=1))
    return exit_code(rows)


def measured(settings: Settings, device: str) -> list[Row]:
    """All rows, kernel by kernel; whole models last."""
    rows: list[Row] = []
    for kernel in settings.kernels:
        for kind in (kind for kind in settings.kinds if kind not in MODELS):
            print(f"... {kernel} {kind}", file=sys.stderr, flush=True)
            if device == "cpu":
                rows += MEASURES[kind](kernel, settings)
            elif kind in ("forward", "backward"):
                rows += gpu.on_gpu(kernel, kind, settings)
    for kind in (kind for kind in settings.kinds if kind in MODELS and device == "cpu"):
        print(f"... {kind}", file=sys.stderr, flush=True)
        rows += MODELS[kind](settings)
    return rows


if __name__ == "__main__":
    sys.exit(main())
