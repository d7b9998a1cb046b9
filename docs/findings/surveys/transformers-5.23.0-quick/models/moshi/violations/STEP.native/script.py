# STEP: Prefill, then one element at a time, equals one whole call
# transformers 5.23.0, torch 2.13.0+cpu
# case: 1x17@0: feed(0:15) feed(15:16) feed(16:17) == whole(0:17)
import torch
from transformers import MoshiConfig, MoshiForCausalLM


def make():
    torch.manual_seed(0)
    config = MoshiConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        head_dim=8,
        sliding_window=16,
        ffn_dim=64,
    )
    model = MoshiForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # random weights for which the state matters
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.15 * drawn if parameter.dim() > 1 else parameter + 0.1 * drawn)
    return model


torch.set_grad_enabled(False)
x = torch.tensor([[44, 47, 53, 0, 3, 59, 3, 39, 9, 19, 21, 50, 36, 23, 6, 24, 24]])
model = make()
out1 = model(input_ids=x[:, 0:17], use_cache=False)
out2 = model(input_ids=x[:, 0:15], use_cache=True)
out3 = model(input_ids=x[:, 15:16], use_cache=True, past_key_values=out2.past_key_values, position_ids=torch.tensor([[15]]))
out4 = model(input_ids=x[:, 15:16], use_cache=True, past_key_values=out3.past_key_values, position_ids=torch.tensor([[16]]))

expected = out1.logits
found = torch.cat([out2.logits, out3.logits, out4.logits], 1)
for row, (e, f) in enumerate(zip(expected, found)):
    error = (f - e).norm(dim=-1) / e.norm(dim=-1)
    print(f"row {row}: relative error of each position", [float(f"{value:.1e}") for value in error])
    wrong = int((error / error.max() >= 0.5).int().argmax())
    print(f"  position {wrong}: expected", e[wrong, :4].tolist(), "found", f[wrong, :4].tolist())
