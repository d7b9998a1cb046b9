"""A few words that the model writes by itself: what a loss does not show."""

import torch
from tokenizers import Tokenizer
from torch import Tensor

from statecheck_reference.models import LanguageModel


@torch.no_grad()
def sample(model: LanguageModel, prompt: Tensor, tokens: int, *, seed: int, temperature: float = 1.0) -> list[int]:
    """`tokens` ids drawn one by one after `prompt` (time), from a fresh state; seeded, on any device.

    The model's states and mode, and the global random numbers, are left as they were.

    >>> from statecheck_reference.models import MODELS
    >>> model = MODELS["lstm"].build({"vocabulary": 8, "width": 4, "layers": 1})
    >>> len(sample(model, torch.tensor([1, 2]), 5, seed=0))
    5
    """
    generator = torch.Generator().manual_seed(seed)
    kept, training = model.get_states(), model.training
    model.set_states(None)
    model.eval()
    drawn: list[int] = []
    inputs = prompt.view(1, -1)
    for _ in range(tokens):
        logits = model(inputs)[0, -1].float().cpu()  # (V)
        drawn.append(int(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator)))
        inputs = prompt.new_tensor([drawn[-1:]])
    model.set_states(kept or None)
    model.train(training)
    return drawn


def sample_text(model: LanguageModel, tokenizer: Tokenizer, prompt: Tensor, tokens: int, *, seed: int) -> str:
    """`prompt` and what the model writes after it, as text, "|" between them."""
    written = sample(model, prompt, tokens, seed=seed)
    return f"{tokenizer.decode(prompt.tolist())}|{tokenizer.decode(written)}"
