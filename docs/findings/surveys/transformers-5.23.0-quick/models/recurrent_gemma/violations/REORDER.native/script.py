# REORDER: Reordered rows of a state are those of reordered inputs
# transformers 5.23.0, torch 2.13.0+cpu
# case: 2x2@0: read(0:1) rows(0,0) feed(1:2) == of(0,0) read(0:1) feed(1:2)
import torch
import transformers
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM


def make():
    torch.manual_seed(0)
    config = RecurrentGemmaConfig(
        num_hidden_layers=4,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        lru_width=32,
        attention_window_size=16,
        eos_token_id=0,
        bos_token_id=0,
        num_key_value_heads=2,
        head_dim=8,
        final_w_init_variance_scale=0.5,
    )
    model = RecurrentGemmaForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # random weights for which the state matters
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.15 * drawn if parameter.dim() > 1 else parameter + 0.1 * drawn)
    return model


torch.set_grad_enabled(False)
x = torch.tensor([[44, 47], [53, 0]])
model = make()
model = make()
cache1 = transformers.DynamicCache(config=model.config)
out1 = model(input_ids=torch.tensor([[44], [44]]), use_cache=True, past_key_values=cache1)
out2 = model(input_ids=torch.tensor([[47], [47]]), use_cache=True, past_key_values=cache1, position_ids=torch.ones(2, 1, dtype=torch.long))
model = make()
cache2 = transformers.DynamicCache(config=model.config)
out3 = model(input_ids=x[:, 0:1], use_cache=True, past_key_values=cache2)
cache2.reorder_cache(torch.tensor([0, 0]))
out4 = model(input_ids=torch.tensor([[47], [47]]), use_cache=True, past_key_values=cache2, position_ids=torch.ones(2, 1, dtype=torch.long))

expected = out2.logits
found = out4.logits
for row, (e, f) in enumerate(zip(expected, found)):
    error = (f - e).norm(dim=-1) / e.norm(dim=-1)
    print(f"row {row}: relative error of each position", [float(f"{value:.1e}") for value in error])
    wrong = int((error / error.max() >= 0.5).int().argmax())
    print(f"  position {wrong}: expected", e[wrong, :4].tolist(), "found", f[wrong, :4].tolist())
