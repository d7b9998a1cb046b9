# PADR: Padding behind a row changes nothing after it
# transformers 5.23.0, torch 2.13.0+cpu
# case: 1x3@0: feed(0:2, right 1) feed(2:3) == of(0) feed(0:1) feed(2:3)
import torch
from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig


def make():
    torch.manual_seed(0)
    config = Qwen3_5MoeTextConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=4096,
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        num_experts_per_tok=2,
        num_experts=4,
        layer_types=['linear_attention', 'full_attention', 'linear_attention', 'full_attention'],
    )
    model = Qwen3_5MoeForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # random weights for which the state matters
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.15 * drawn if parameter.dim() > 1 else parameter + 0.1 * drawn)
    return model


torch.set_grad_enabled(False)
x = torch.tensor([[44, 47, 53]])
model = make()
out1 = model(input_ids=x[:, 0:1], use_cache=True)
out2 = model(input_ids=x[:, 2:3], use_cache=True, past_key_values=out1.past_key_values, position_ids=torch.ones(1, 1, dtype=torch.long))
out3 = model(input_ids=torch.tensor([[44, 8]]), use_cache=True, attention_mask=torch.tensor([[1, 0]]), position_ids=torch.tensor([[0, 0]]))
out4 = model(input_ids=x[:, 2:3], use_cache=True, past_key_values=out3.past_key_values, position_ids=torch.ones(1, 1, dtype=torch.long), attention_mask=torch.tensor([[1, 0, 1]]))

expected = torch.cat([out1.logits, out2.logits], 1)
found = torch.cat([out3.logits[:, :1], out4.logits], 1)
for row, (e, f) in enumerate(zip(expected, found)):
    error = (f - e).norm(dim=-1) / e.norm(dim=-1)
    print(f"row {row}: relative error of each position", [float(f"{value:.1e}") for value in error])
    wrong = int((error / error.max() >= 0.5).int().argmax())
    print(f"  position {wrong}: expected", e[wrong, :4].tolist(), "found", f[wrong, :4].tolist())
