# RESET: A model that forgot equals one that never read
# transformers 5.23.0, torch 2.13.0+cpu
# case: 1x1@0: of(0) other(0:1) forget(1) feed(0:1) == of(0) feed(0:1)
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
x = torch.tensor([[44]])
y = torch.tensor([[51]])
model = make()
model = make()
cache1 = transformers.DynamicCache(config=model.config)
out1 = model(input_ids=x[:, 0:1], use_cache=True, past_key_values=cache1)
model = make()
cache2 = transformers.DynamicCache(config=model.config)
out2 = model(input_ids=y[:, 0:1], use_cache=True, past_key_values=cache2)
cache3 = transformers.DynamicCache(config=model.config)
out3 = model(input_ids=x[:, 0:1], use_cache=True, past_key_values=cache3)

expected = out1.logits
found = out3.logits
for row, (e, f) in enumerate(zip(expected, found)):
    error = (f - e).norm(dim=-1) / e.norm(dim=-1)
    print(f"row {row}: relative error of each position", [float(f"{value:.1e}") for value in error])
    wrong = int((error / error.max() >= 0.5).int().argmax())
    print(f"  position {wrong}: expected", e[wrong, :4].tolist(), "found", f[wrong, :4].tolist())
