"""One measurement of the reference hybrid, in a process of its own; :mod:`benchmarks.hybrid` starts these.

    statistics   4,096 tokens: bare, with the statistics of every state after every token, and with their entropy
    long         so many pieces of 4,096 tokens with statistics, the states carried on; peak memory, and the time of
                 one more piece over that of one read alone, in turns

The kernels' forms that ran are counted, so that a hybrid that does not use them is found out.
"""

import json
import sys
import time
from functools import partial
from typing import Any

import torch
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.hybrid_config import HybridConfig
from torch import Tensor

from benchmarks.bars import WITH_ENTROPY, WITHOUT_ENTROPY
from benchmarks.clock import Call, interleaved
from benchmarks.forms_used import count_forms, used
from benchmarks.memory import peak, reset_peak
from benchmarks.ours import relative_error

PIECE = 4096
SINGLE = 7  # pairs of readings: a piece at the end, a piece alone
METHOD = "forward_with_statistics"  # of the model: what the cost of statistics is measured on


def main(told: dict[str, Any]) -> dict[str, Any]:
    """The figures that `told` asks for, as JSON can hold them."""
    torch.set_num_threads(told["threads"])
    torch.manual_seed(0)
    count_forms()
    runs = {"statistics": _statistics, "long": _long}
    found = runs[told["what"]](told)
    return {**found, "forms": sorted(used)}


def _read(model: HybridLanguageModel, tokens: Tensor, entropy: bool | None) -> Any:
    """One call from states of zero; `entropy` None for a bare one."""
    model.set_states(None)
    return _read_on(model, tokens, entropy)


def _read_on(model: HybridLanguageModel, tokens: Tensor, entropy: bool | None) -> Any:
    with torch.no_grad():
        if entropy is None:
            return model(tokens)
        return getattr(model, METHOD)(tokens, every=1, entropy=entropy, running=None)


def _statistics(told: dict[str, Any]) -> dict[str, Any]:
    model = HybridLanguageModel(HybridConfig()).eval()
    if not hasattr(model, METHOD):
        return {"missing": f"HybridLanguageModel has no {METHOD}"}
    length = 64 if told["quick"] else PIECE
    tokens = torch.randint(model.config.vocabulary, (1, length))
    calls: dict[str, Call] = {
        name: partial(_read, model, tokens, entropy)
        for name, entropy in (("bare", None), (WITHOUT_ENTROPY, False), (WITH_ENTROPY, True))
    }
    error, states = _error(model, tokens)
    times = interleaved(calls, told["repeats"])
    return {
        "missing": "",
        "error": error,
        "states": states,
        "tokens": length,
        "times": {name: measured.to_json() for name, measured in times.items()},
    }


def _error(model: HybridLanguageModel, tokens: Tensor) -> tuple[float, int]:
    """Outputs beside those of a bare call, and the last energies beside those of the states that it left."""
    bare = _read(model, tokens, None)
    outputs, statistics = _read(model, tokens, True)
    errors = [relative_error(outputs, bare)]
    for name, state in model.get_states().items():
        told = statistics[name]["square_sum"][:, -1].sum(-1)  # (B): over all heads
        errors.append(relative_error(told, state.double().flatten(1).square().sum(1)))
    return max(errors), len(errors) - 1


def _long(told: dict[str, Any]) -> dict[str, Any]:
    model = HybridLanguageModel(HybridConfig()).eval()
    if not hasattr(model, METHOD):
        return {"missing": f"HybridLanguageModel has no {METHOD}"}
    piece = torch.randint(model.config.vocabulary, (1, 64 if told["quick"] else PIECE))
    _read(model, piece, True)  # warms up
    model.set_states(None)
    before = reset_peak()
    seconds = [_seconds(partial(_read_on, model, piece, True)) for _ in range(told["pieces"])]
    extra = peak() - before
    return {
        "missing": "",
        "extra": extra,
        "seconds": sum(seconds),
        "late": [_late(model, piece) for _ in range(SINGLE)],
        "tokens": told["pieces"] * piece.shape[1],
    }


def _late(model: HybridLanguageModel, piece: Tensor) -> float:
    """Time of a piece after all that was read over that of the same piece alone, one after the other."""
    late = _seconds(partial(_read_on, model, piece, True))
    states = model.get_states()
    alone = _seconds(partial(_read, model, piece, True))
    model.set_states(states)
    return late / alone


def _seconds(call: Call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
