# PADR: Padding behind a row changes nothing after it
# transformers 5.23.0, torch 2.13.0+cpu
# case: 1x3@0: feed(0:2, right 1) feed(2:3) == of(0) feed(0:1) feed(2:3)
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM


def make():
    torch.manual_seed(0)
    config = Mamba2Config(
        num_heads=8,
        head_dim=8,
        vocab_size=64,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=4,
        pad_token_id=0,
        eos_token_id=0,
        n_groups=2,
        time_step_rank=4,
        chunk_size=8,
    )
    model = Mamba2ForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # random weights for which the state matters
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.15 * drawn if parameter.dim() > 1 else parameter + 0.1 * drawn)
    return model


torch.set_grad_enabled(False)
x = torch.tensor([[44, 47, 53]])
model = make()
out1 = model(input_ids=x[:, 0:1], use_cache=True)
out2 = model(input_ids=x[:, 2:3], use_cache=True, cache_params=out1.cache_params)
out3 = model(input_ids=torch.tensor([[44, 8]]), use_cache=True, attention_mask=torch.tensor([[1, 0]]))
out4 = model(input_ids=x[:, 2:3], use_cache=True, cache_params=out3.cache_params)

expected = torch.cat([out1.logits, out2.logits], 1)
found = torch.cat([out3.logits[:, :1], out4.logits], 1)
for row, (e, f) in enumerate(zip(expected, found)):
    error = (f - e).norm(dim=-1) / e.norm(dim=-1)
    print(f"row {row}: relative error of each position", [float(f"{value:.1e}") for value in error])
    wrong = int((error / error.max() >= 0.5).int().argmax())
    print(f"  position {wrong}: expected", e[wrong, :4].tolist(), "found", f[wrong, :4].tolist())
