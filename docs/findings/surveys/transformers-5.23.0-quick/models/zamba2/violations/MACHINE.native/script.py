# MACHINE: Whatever is done with a state, it holds what was read
# transformers 5.23.0, torch 2.13.0+cpu
# case: 1x13@0: read(6:7) read(7:8) read(8:9) feed(12:13) == recorded
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
x = torch.tensor([[44, 47, 53, 0, 3, 59, 3, 39, 9, 19, 21, 50, 36]])
y = torch.tensor([[51, 23, 7, 0, 59, 30, 28, 1, 61, 0, 25, 45, 40]])
model = make()
out1 = model(input_ids=torch.tensor([[3, 39, 9, 36]]), use_cache=False)
out2 = model(input_ids=x[:, 4:5], use_cache=True)
out3 = model(input_ids=x[:, 7:8], use_cache=True, past_key_values=out2.past_key_values, position_ids=y[:, 7:8])
out4 = model(input_ids=x[:, 8:9], use_cache=True, past_key_values=out3.past_key_values, position_ids=torch.tensor([[2]]))
out5 = model(input_ids=x[:, 12:13], use_cache=True, past_key_values=out4.past_key_values, position_ids=x[:, 4:5])

expected = out1.logits[:, -1:]
found = out5.logits
for row, (e, f) in enumerate(zip(expected, found)):
    error = (f - e).norm(dim=-1) / e.norm(dim=-1)
    print(f"row {row}: relative error of each position", [float(f"{value:.1e}") for value in error])
    wrong = int((error / error.max() >= 0.5).int().argmax())
    print(f"  position {wrong}: expected", e[wrong, :4].tolist(), "found", f[wrong, :4].tolist())
