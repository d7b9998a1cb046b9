# CHUNK: Several elements on a warm state equal one call over all
# transformers 5.23.0, torch 2.13.0+cpu
# case: 1x3@0: feed(0:1) feed(1:3) == feed(0:3)
import torch
from transformers import MambaConfig, MambaForCausalLM


def make():
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=64,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=4,
        time_step_rank=4,
        intermediate_size=64,
    )
    model = MambaForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # random weights for which the state matters
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.15 * drawn if parameter.dim() > 1 else parameter + 0.1 * drawn)
    return model


torch.set_grad_enabled(False)
x = torch.tensor([[44, 47, 53]])
model = make()
out1 = model(input_ids=x[:, 0:3], use_cache=True)
out2 = model(input_ids=x[:, 0:1], use_cache=True)
out3 = model(input_ids=x[:, 1:3], use_cache=True, cache_params=out2.cache_params)

expected = out1.logits
found = torch.cat([out2.logits, out3.logits], 1)
for row, (e, f) in enumerate(zip(expected, found)):
    error = (f - e).norm(dim=-1) / e.norm(dim=-1)
    print(f"row {row}: relative error of each position", [float(f"{value:.1e}") for value in error])
    wrong = int((error / error.max() >= 0.5).int().argmax())
    print(f"  position {wrong}: expected", e[wrong, :4].tolist(), "found", f[wrong, :4].tolist())
