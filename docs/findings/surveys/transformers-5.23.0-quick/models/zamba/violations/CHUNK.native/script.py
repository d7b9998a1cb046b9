# CHUNK: Several elements on a warm state equal one call over all
# transformers 5.23.0, torch 2.13.0+cpu
# case: 1x3@0: feed(0:1) feed(1:3) == feed(0:3)
import torch
from transformers import ZambaConfig, ZambaForCausalLM


def make():
    torch.manual_seed(0)
    config = ZambaConfig(
        vocab_size=64,
        hidden_size=32,
        attention_hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        attention_head_dim=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
        mamba_d_state=8,
        mamba_dt_rank=4,
        layers_block_type=['linear_attention', 'linear_attention', 'hybrid', 'linear_attention', 'hybrid', 'linear_attention'],
    )
    model = ZambaForCausalLM(config).float().eval()
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
out3 = model(input_ids=x[:, 1:3], use_cache=True, past_key_values=out2.past_key_values, position_ids=torch.tensor([[1, 2]]))

expected = out1.logits
found = torch.cat([out2.logits, out3.logits], 1)
for row, (e, f) in enumerate(zip(expected, found)):
    error = (f - e).norm(dim=-1) / e.norm(dim=-1)
    print(f"row {row}: relative error of each position", [float(f"{value:.1e}") for value in error])
    wrong = int((error / error.max() >= 0.5).int().argmax())
    print(f"  position {wrong}: expected", e[wrong, :4].tolist(), "found", f[wrong, :4].tolist())
