"""The routers' balance loss of the goldens with mixtures of experts, as transformers has it.

    python make_balance.py [CASE ..]

Adds balance.safetensors to each case's folder: mask [B,T] i64 (0 = padding, at the end of rows), aux_loss [] f32 under it,
aux_loss_all [] f32 without a mask, and grad.<name> f32 of aux_loss alone, for the routers and the embedding.
"""
import sys, os
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.pop(0)  # a folder here is called bitsandbytes
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

for case in sys.argv[1:] or ["mixtral", "qwen2_moe", "qwen3_moe", "qwen3_moe_mixed", "olmoe", "gpt_oss"]:
    folder = os.path.join(HERE, case)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = load_file(os.path.join(folder, "golden.safetensors"))["input_ids"]
    mask = torch.ones_like(ids)
    mask[-1, -9:] = 0
    whole = model(ids, output_router_logits=True).aux_loss
    out = model(ids, attention_mask=mask, output_router_logits=True)
    out.aux_loss.backward()
    wanted = lambda name: name.endswith(("gate.weight", "router.weight", "router.bias", "embed_tokens.weight"))
    stored = load_file(os.path.join(folder, "model.safetensors")).keys()
    filed = lambda n: n if n in stored else n.replace(".mlp.", ".block_sparse_moe.")
    grads = {f"grad.{filed(n)}": p.grad for n, p in model.named_parameters() if wanted(n) and p.grad is not None}
    values = dict(mask=mask, aux_loss=out.aux_loss.detach(), aux_loss_all=whole.detach(), **grads)
    save_file({k: v.contiguous() for k, v in values.items()}, os.path.join(folder, "balance.safetensors"))
    print(case, whole.item(), out.aux_loss.item(), list(grads))
