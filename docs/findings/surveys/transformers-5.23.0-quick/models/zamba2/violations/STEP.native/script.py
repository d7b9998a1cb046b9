# STEP: Prefill, then one element at a time, equals one whole call
# transformers 5.23.0, torch 2.13.0+cpu
# case: 2x43@3: feed(0:38) feed(38:39) feed(39:40) feed(40:41) feed(41:42) feed(42:43) == whole(0:43)
import torch
from transformers import Zamba2Config, Zamba2ForCausalLM


def make():
    torch.manual_seed(0)
    config = Zamba2Config(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=5,
        layers_block_type=['linear_attention', 'hybrid', 'linear_attention', 'hybrid', 'linear_attention'],
        mamba_d_state=8,
        mamba_ngroups=2,
        use_mamba_kernels=False,
        chunk_size=8,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
        attention_hidden_size=64,
        attention_head_dim=4,
        mamba_headdim=8,
        kv_channels=8,
        num_query_groups=4,
        hybrid_layer_ids=[1, 3],
    )
    model = Zamba2ForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # random weights for which the state matters
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.15 * drawn if parameter.dim() > 1 else parameter + 0.1 * drawn)
    return model


torch.set_grad_enabled(False)
x = torch.tensor([[42, 24, 57, 3, 56, 8, 0, 21, 61, 19, 10, 43, 57, 41, 10, 21, 55, 38, 32, 20, 44, 29, 39, 14, 56, 26, 17, 26, 22, 2, 2, 63, 60, 1, 51, 26, 5, 40, 46, 33, 29, 42, 24], [59, 62, 7, 56, 43, 33, 59, 15, 48, 37, 20, 30, 49, 21, 63, 14, 52, 28, 55, 54, 0, 0, 41, 18, 52, 63, 37, 56, 56, 7, 37, 61, 46, 33, 49, 1, 21, 53, 55, 10, 43, 60, 36]])
model = make()
out1 = model(input_ids=x[:, 0:43], use_cache=False)
out2 = model(input_ids=x[:, 0:38], use_cache=True)
out3 = model(input_ids=x[:, 38:39], use_cache=True, past_key_values=out2.past_key_values, position_ids=torch.tensor([[38], [38]]))
out4 = model(input_ids=x[:, 39:40], use_cache=True, past_key_values=out3.past_key_values, position_ids=torch.tensor([[39], [39]]))
out5 = model(input_ids=x[:, 40:41], use_cache=True, past_key_values=out4.past_key_values, position_ids=torch.tensor([[40], [40]]))
out6 = model(input_ids=x[:, 41:42], use_cache=True, past_key_values=out5.past_key_values, position_ids=torch.tensor([[41], [41]]))
out7 = model(input_ids=x[:, 42:43], use_cache=True, past_key_values=out6.past_key_values, position_ids=torch.tensor([[42], [42]]))

expected = out1.logits
found = torch.cat([out2.logits, out3.logits, out4.logits, out5.logits, out6.logits, out7.logits], 1)
for row, (e, f) in enumerate(zip(expected, found)):
    error = (f - e).norm(dim=-1) / e.norm(dim=-1)
    print(f"row {row}: relative error of each position", [float(f"{value:.1e}") for value in error])
    wrong = int((error / error.max() >= 0.5).int().argmax())
    print(f"  position {wrong}: expected", e[wrong, :4].tolist(), "found", f[wrong, :4].tolist())
