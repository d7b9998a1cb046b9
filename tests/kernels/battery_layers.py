"""What the layers around the recurrences must do: read on token by token, be saved and loaded, forget when told to.

Cases as in `battery`; they name no form, a layer takes what it gets.
"""

import io
from collections.abc import Callable

import torch
from battery import Case
from drawing import assert_close
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.hybrid_config import HybridConfig
from statecheck_reference.mamba2 import CONVOLUTION, Mamba2Mixer
from torch import Tensor, nn

SHAPE = HybridConfig(
    vocabulary=13,
    width=8,
    blocks=2,
    rwkv_heads=2,
    low_rank=2,
    mamba_inner=12,
    mamba_heads=4,
    mamba_groups=2,
    mamba_state=3,
    feed_forward=10,
)
TOKENS = 11


def _randomised(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """In float64, with normal numbers added to every parameter: none is a one or a zero that hides something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make().double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def _model(seed: int) -> HybridLanguageModel:
    model = _randomised(lambda: HybridLanguageModel(SHAPE), seed)
    assert isinstance(model, HybridLanguageModel)
    return model


def _tokens(seed: int = 3) -> Tensor:
    return torch.randint(0, SHAPE.vocabulary, (2, TOKENS), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def mixer_reads_on(form: str) -> None:
    """Mamba-2's layer, whole and token by token: the same, also at a step so large that its exp is infinite."""
    mixer = _randomised(lambda: Mamba2Mixer(6, 12, 4, 2, state_size=3), 0)
    assert isinstance(mixer, Mamba2Mixer)
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, TOKENS, 6, generator=draw, dtype=torch.float64)
    conv = torch.randn(2, mixer.conv1d.in_channels, CONVOLUTION - 1, generator=draw, dtype=torch.float64)
    ssm = torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64)
    for bias in (0.0, 1000.0):
        mixer.dt_bias[0] = bias
        whole = dict(zip(("outputs", "conv", "ssm"), mixer(inputs, conv, ssm), strict=True))
        outputs, states = [], (conv, ssm)
        for token in inputs.split(1, 1):
            output, *states = mixer(token, *states)
            outputs.append(output)
        by_token = {"outputs": torch.cat(outputs, 1), "conv": states[0], "ssm": states[1]}
        assert_close(by_token, whole, 1e-12, "token by token")


@torch.no_grad()
def hybrid_reads_on(form: str) -> None:
    """The hybrid, whole and token by token: the same logits and states."""
    model, tokens = _model(0), _tokens()
    whole = {"logits": model(tokens), **model.get_states()}
    model.set_states(None)
    logits = torch.cat([model(token) for token in tokens.split(1, 1)], 1)
    assert_close({"logits": logits, **model.get_states()}, whole, 1e-12, "token by token")


@torch.no_grad()
def hybrid_is_loaded(form: str) -> None:
    """Saved and loaded into another hybrid: the same parameters and outputs, to the last bit."""
    model, other, file = _model(0), _model(1), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for name, x in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], x), f"{name} is another after loading"
    assert torch.equal(other(_tokens()), model(_tokens()))


@torch.no_grad()
def hybrid_forgets(form: str) -> None:
    """After set_states(None) the hybrid answers as one that has read nothing."""
    model = _model(0)
    fresh = model(_tokens())
    model.set_states(None)
    model(_tokens(4))
    model.set_states(None)
    assert torch.equal(model(_tokens()), fresh), "what was read before is still there"


CASES = [Case(check.__name__, check) for check in (mixer_reads_on, hybrid_reads_on, hybrid_is_loaded, hybrid_forgets)]
