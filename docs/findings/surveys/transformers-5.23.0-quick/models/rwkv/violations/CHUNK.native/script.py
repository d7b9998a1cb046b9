# CHUNK: Several elements on a warm state equal one call over all
# transformers 5.23.0, torch 2.13.0+cpu
# case: 2x3@0: feed(0:1) feed(1:3) == feed(0:3)
import torch
from transformers import RwkvConfig, RwkvForCausalLM


def make():
    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=4,
        attention_hidden_size=32,
        intermediate_size=64,
    )
    model = RwkvForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # random weights for which the state matters
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.15 * drawn if parameter.dim() > 1 else parameter + 0.1 * drawn)
    return model


torch.set_grad_enabled(False)
x = torch.tensor([[44, 47, 53], [0, 3, 59]])
model = make()
out1 = model(input_ids=x[:, 0:3], use_cache=True)
out2 = model(input_ids=x[:, 0:1], use_cache=True)

# the model's output has shape (2, 2, 64) for inputs (2, 1): expected (batch, time, vocabulary)
print("shape", tuple(out2.logits.shape))
