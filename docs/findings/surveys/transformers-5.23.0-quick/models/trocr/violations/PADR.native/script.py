# PADR: Padding behind a row changes nothing after it
# transformers 5.23.0, torch 2.13.0+cpu
# case: 1x3@0: feed(0:2, right 1) feed(2:3) == of(0) feed(0:1) feed(2:3)
import torch
from transformers import TrOCRConfig, TrOCRForCausalLM


def make():
    torch.manual_seed(0)
    config = TrOCRConfig(
        vocab_size=64,
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        max_position_embeddings=4096,
        dropout=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=0,
        is_decoder=True,
    )
    model = TrOCRForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # random weights for which the state matters
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.15 * drawn if parameter.dim() > 1 else parameter + 0.1 * drawn)
    return model


torch.set_grad_enabled(False)
x = torch.tensor([[44, 47, 53]])
model = make()
out1 = model(input_ids=x[:, 0:1], use_cache=True)
out2 = model(input_ids=x[:, 2:3], use_cache=True, past_key_values=out1.past_key_values)
out3 = model(input_ids=torch.tensor([[44, 8]]), use_cache=True, attention_mask=torch.tensor([[1, 0]]))
out4 = model(input_ids=x[:, 2:3], use_cache=True, past_key_values=out3.past_key_values, attention_mask=torch.tensor([[1, 0, 1]]))

expected = torch.cat([out1.logits, out2.logits], 1)
found = torch.cat([out3.logits[:, :1], out4.logits], 1)
for row, (e, f) in enumerate(zip(expected, found)):
    error = (f - e).norm(dim=-1) / e.norm(dim=-1)
    print(f"row {row}: relative error of each position", [float(f"{value:.1e}") for value in error])
    wrong = int((error / error.max() >= 0.5).int().argmax())
    print(f"  position {wrong}: expected", e[wrong, :4].tolist(), "found", f[wrong, :4].tolist())
