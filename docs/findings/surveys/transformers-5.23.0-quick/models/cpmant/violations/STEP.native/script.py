# STEP: Prefill, then one element at a time, equals one whole call
# transformers 5.23.0, torch 2.13.0+cpu
# case: 1x2@0: feed(0:1) feed(1:2) == whole(0:2)
import torch
from transformers import CpmAntConfig, CpmAntForCausalLM


def make():
    torch.manual_seed(0)
    config = CpmAntConfig(
        vocab_size=64,
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=4,
    )
    model = CpmAntForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # random weights for which the state matters
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.15 * drawn if parameter.dim() > 1 else parameter + 0.1 * drawn)
    return model


torch.set_grad_enabled(False)
x = torch.tensor([[44, 47]])
model = make()
out1 = model(input_ids=x[:, 0:2], use_cache=False)
out2 = model(input_ids=x[:, 0:1], use_cache=True)
out3 = model(input_ids=x[:, 1:2], use_cache=True, past_key_values=out2.past_key_values)

# the model's output has shape (1, 0, 64) for inputs (1, 1): expected (batch, time, vocabulary)
print("shape", tuple(out3.logits.shape))
