"""Golden values from Hugging Face transformers / PEFT / bitsandbytes for tiny random models.

    python make_golden.py OUT {first|second} [CASE ..]

One folder a case under OUT; `second` makes other sizes and more architectures than `first`. Models are float32 on the CPU unless said; every norm weight and bias is random too,
so that a skipped weight shows. golden.safetensors of a model case holds:
  input_ids [B,T] i64, labels [B,T] i64 (-100 = ignored; labels are NOT shifted: position t predicts labels[t+1]),
  logits [B,T,V] f32, loss [] f32 (mean over the labels that count), grad.<parameter name> f32.
"""
import sys, os, json, math
sys.path.pop(0)  # a folder here is called bitsandbytes, and PEFT would take it for the package
import torch
from safetensors.torch import save_file
import transformers
from transformers import AutoModelForCausalLM, AutoConfig

OUT, WHICH, ONLY = sys.argv[1], sys.argv[2], sys.argv[3:]
SECOND = WHICH == "second"
torch.manual_seed(20261121 + SECOND)
g = torch.Generator().manual_seed(7 + SECOND)

BASE = dict(vocab_size=128, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False,
            bos_token_id=0, eos_token_id=1, pad_token_id=2)
if SECOND:  # other sizes, odd head counts, tied where shared is not
    BASE.update(vocab_size=90, hidden_size=36, intermediate_size=52, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2)

def rp(**k): return dict(rope_theta=k.pop("theta", 10000.0), **({"rope_type": "default"} | k))
CASES = {
  "llama":   ("LlamaConfig", dict(rope_parameters=rp(theta=500000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64))),
  "llama_tied_bias": ("LlamaConfig", dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=16, rope_parameters=rp(rope_type="linear", factor=2.0))),
  "mistral": ("MistralConfig", dict(sliding_window=8, head_dim=12 if not SECOND else 6)),
  "qwen2":   ("Qwen2Config", dict(rope_parameters=rp(theta=1e6))),
  "qwen3":   ("Qwen3Config", dict(head_dim=16, tie_word_embeddings=True, rope_parameters=rp(theta=1e6))),
  "phi3":    ("Phi3Config", dict(rope_parameters=rp())),
  "phi3_longrope": ("Phi3Config", dict(original_max_position_embeddings=16, max_position_embeddings=128, rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=1.0, original_max_position_embeddings=16))),
  "gemma":   ("GemmaConfig", dict(head_dim=16, tie_word_embeddings=True)),
  "gemma2":  ("Gemma2Config", dict(head_dim=16, sliding_window=8, query_pre_attn_scalar=24, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, tie_word_embeddings=True)),
  "gemma3":  ("Gemma3TextConfig", dict(head_dim=16, sliding_window=8, query_pre_attn_scalar=24, num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"], tie_word_embeddings=True)),
  "mixtral": ("MixtralConfig", dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
  "qwen3_moe": ("Qwen3MoeConfig", dict(head_dim=12 if not SECOND else 6, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=48, norm_topk_prob=True, decoder_sparse_step=1)),
}
DEEPSEEK = dict(num_key_value_heads=None, q_lora_rank=24, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=20, n_routed_experts=8, num_experts_per_tok=2,
                n_group=4, topk_group=2, first_k_dense_replace=1, moe_intermediate_size=32, n_shared_experts=1)
if SECOND: DEEPSEEK.update(q_lora_rank=15, kv_lora_rank=13, qk_rope_head_dim=6, qk_nope_head_dim=5, v_head_dim=7, n_routed_experts=9, num_experts_per_tok=3, n_group=3, moe_intermediate_size=20, first_k_dense_replace=2)
CASES |= {  # of Llama's family
  "olmo2": ("Olmo2Config", {}), "granite": ("GraniteConfig", dict(embedding_multiplier=3.0, residual_multiplier=0.7, attention_multiplier=0.3, logits_scaling=2.0, attention_bias=True, mlp_bias=True)),
  "olmo3": ("Olmo3Config", dict(sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"][:2 + SECOND], rope_parameters=dict(sliding_attention=rp(theta=20000.0), full_attention=rp(theta=20000.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=32)))),
  "smollm3": ("SmolLM3Config", dict(no_rope_layer_interval=2, use_sliding_window=True, sliding_window=8, rope_parameters=rp(theta=2e6))),
  "exaone4": ("Exaone4Config", dict(sliding_window=8, sliding_window_pattern=2)), "ernie4_5": ("Ernie4_5Config", dict(head_dim=12 if not SECOND else 6, use_bias=True)),
  "seed_oss": ("SeedOssConfig", dict(head_dim=16 if not SECOND else 10, attention_bias=True, residual_dropout=0.0, attention_dropout=0.0)), "ministral": ("MinistralConfig", dict(sliding_window=8, head_dim=16, layer_types=["full_attention", "sliding_attention", "sliding_attention"][:2 + SECOND])),
  "olmoe": ("OlmoeConfig", dict(num_experts=6, num_experts_per_tok=2, intermediate_size=32)),
  "glm": ("GlmConfig", dict(head_dim=16 if not SECOND else 8)), "glm4": ("Glm4Config", dict(head_dim=16 if not SECOND else 12, attention_bias=False)),
}
EXTRA = {  # only with `second`, or by name
  "starcoder2": ("Starcoder2Config", dict(norm_epsilon=1e-5)), "cohere": ("CohereConfig", dict(logit_scale=0.5)),
  "stablelm": ("StableLmConfig", dict(hidden_size=48)), "gpt_oss": ("GptOssConfig", dict(head_dim=16 if not SECOND else 6, num_local_experts=4, num_experts_per_tok=2, sliding_window=8, swiglu_limit=1.5 if not SECOND else 7.0)),
  # in `second` odd heads and values; narrow rows that are no multiples; groups of two
  "deepseek_v3": ("DeepseekV3Config", DEEPSEEK),
  # q at once, halves turn together, biases, one group, weights as they are
  "deepseek_v3_plain": ("DeepseekV3Config", DEEPSEEK | dict(q_lora_rank=None, rope_interleave=False, attention_bias=True, n_group=1, topk_group=1, norm_topk_prob=False, routed_scaling_factor=0.7)),
  "deepseek_v3_yarn": ("DeepseekV3Config", DEEPSEEK | dict(first_k_dense_replace=0, n_shared_experts=2, rope_parameters=rp(rope_type="yarn", factor=8.0, beta_fast=32, beta_slow=1, mscale=0.9, mscale_all_dim=1.3, original_max_position_embeddings=16))),
  "qwen2_moe": ("Qwen2MoeConfig", dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=40, norm_topk_prob=False, num_hidden_layers=3, mlp_only_layers=[0] if not SECOND else [])),
  "qwen3_moe_mixed": ("Qwen3MoeConfig", dict(head_dim=12, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=False, num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[3] if not SECOND else [])),
  "gpt2": ("GPT2Config", None), "gpt_neox": ("GPTNeoXConfig", dict(hidden_size=48, num_key_value_heads=6)),
}

def build(cls, kw):
    if cls == "GPT2Config":
        cfg = transformers.GPT2Config(vocab_size=BASE["vocab_size"], n_embd=48, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1)
    else:
        k = dict(BASE); k.update(kw)
        if k.get("num_key_value_heads") is None: k["num_key_value_heads"] = k["num_attention_heads"]
        if cls == "Phi3Config" and kw.get("rope_parameters", {}).get("rope_type") == "longrope":
            half = k["hidden_size"] // k["num_attention_heads"] // 2
            k["rope_parameters"] = dict(kw["rope_parameters"], short_factor=[1.0 + 0.05 * i for i in range(half)], long_factor=[1.0 + 0.4 * i for i in range(half)])
        cfg = getattr(transformers, cls)(**k)
    cfg._attn_implementation = "eager"
    m = AutoModelForCausalLM.from_config(cfg, attn_implementation="eager").float()
    with torch.no_grad():
        for n, p in m.named_parameters():
            if p.ndim == 1: p.copy_(torch.randn(p.shape, generator=g) * 0.2 + (0.0 if "bias" in n or cls.startswith("Gemma") else 1.0))
            else: p.copy_(torch.randn(p.shape, generator=g) * (1.5 / math.sqrt(p.shape[-1])) if p.shape[0] != cfg.vocab_size else torch.randn(p.shape, generator=g) * 0.5)
        for n, b in m.named_buffers():
            if n.endswith("e_score_correction_bias"): b.copy_(torch.randn(b.shape, generator=g) * 0.3)
    return m.eval()

def batch(V, B=2, T=24):
    ids = torch.randint(3, V, (B, T), generator=g); labels = ids.clone(); labels[0, :5] = -100; labels[1, 11:14] = -100
    return ids, labels

def older_deepseek(d, d2):
    import shutil; shutil.copytree(d, d2, dirs_exist_ok=True); c = json.load(open(d2 + "/config.json")); r = c.pop("rope_parameters")
    c["rope_theta"] = r.pop("rope_theta"); r["type"] = r.pop("rope_type"); c["rope_scaling"] = r; c["torch_dtype"] = c.pop("dtype"); c["transformers_version"] = "4.48.3"
    for k in ("head_dim", "qk_head_dim", "rope_interleave"): c.pop(k, None)
    c.update(model_type="kimi_k2", architectures=["DeepseekV3ForCausalLM"], scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1, ep_size=1, aux_loss_alpha=0.001, seq_aux=True)
    json.dump(c, open(d2 + "/config.json", "w"), indent=2)

def model_case(name, cls, kw):
    d = f"{OUT}/{name}"; os.makedirs(d, exist_ok=True)
    m = build(cls, kw)
    ids, labels = batch(m.config.vocab_size)
    out = m(input_ids=ids, labels=labels, use_cache=False)
    out.loss.backward()
    t = dict(input_ids=ids, labels=labels, logits=out.logits.detach().contiguous(), loss=out.loss.detach().reshape(1))
    for n, p in m.named_parameters():
        if p.grad is not None: t["grad." + n] = p.grad.contiguous()
    m.save_pretrained(d)
    save_file(t, f"{d}/golden.safetensors")
    if name == "llama":  # the same model under the older config keys
        import shutil; d2 = f"{OUT}/llama_old_config"; shutil.copytree(d, d2, dirs_exist_ok=True); c = json.load(open(d2 + "/config.json")); r = c.pop("rope_parameters")
        c["rope_theta"] = r.pop("rope_theta"); c["rope_scaling"] = r; c["torch_dtype"] = c.pop("dtype"); c["transformers_version"] = "4.44.0"; c.pop("head_dim", None); json.dump(c, open(d2 + "/config.json", "w"), indent=2)
    if name == "deepseek_v3_yarn":  # the same model as Kimi K2's config says it, which is DeepSeek V3's code under older keys
        older_deepseek(d, f"{OUT}/kimi_k2")
    print("ok", name, m.config.model_type, sum(p.numel() for p in m.parameters()), float(out.loss), flush=True)
    return m

def train_case(name, base_cls, base_kw, peft_kw, steps=20, lr=1e-2, wd=0.01, emb=False):
    """PEFT + torch.AdamW on two alternating fixed batches, gradient norm clipped at 1.0, linear warm-up 4 then cosine to 0."""
    from peft import LoraConfig, get_peft_model
    d = f"{OUT}/{name}"; os.makedirs(d, exist_ok=True)
    m = build(base_cls, base_kw); m.save_pretrained(d + "/base")
    if peft_kw is not None:
        m = get_peft_model(m, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **peft_kw))
        with torch.no_grad():
            for n, p in m.named_parameters():
                if "lora_B" in n: p.copy_(torch.randn(p.shape, generator=g) * 0.02)
        m.save_pretrained(d + "/adapter_start")
    m.train()
    ps = [p for p in m.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(ps, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=wd)
    sched = transformers.get_scheduler("cosine", opt, num_warmup_steps=4, num_training_steps=steps)
    V = (m.config.vocab_size); bs = [batch(V), batch(V)]
    losses, norms, lrs = [], [], []
    for s in range(steps):
        ids, labels = bs[s % 2]
        loss = m(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward(); norms.append(float(torch.nn.utils.clip_grad_norm_(ps, 1.0))); lrs.append(sched.get_last_lr()[0])
        if s == 0 and peft_kw is not None: save_file({"grad." + n: p.grad.contiguous() for n, p in m.named_parameters() if p.grad is not None}, f"{d}/clipped_grads_step0.safetensors")
        opt.step(); sched.step(); opt.zero_grad(); losses.append(float(loss))
    if peft_kw is not None:
        m.save_pretrained(d + "/adapter_end")
        ids, labels = bs[0]; m.eval()
        with torch.no_grad(): lg = m(input_ids=ids).logits
        mm = m.merge_and_unload(); save_file({n: p.detach().contiguous() for n, p in mm.named_parameters() if "embed" not in n and "lm_head" not in n}, f"{d}/merged.safetensors")
    else:
        m.save_pretrained(d + "/end"); ids = bs[0][0]
        with torch.no_grad(): lg = m(input_ids=ids).logits
    save_file(dict(ids0=bs[0][0], labels0=bs[0][1], ids1=bs[1][0], labels1=bs[1][1], end_logits=lg.contiguous()), f"{d}/batches.safetensors")
    json.dump(dict(steps=steps, lr=lr, weight_decay=wd, betas=[0.9, 0.999], eps=1e-8, clip=1.0, schedule="cosine", warmup=4, losses=losses, grad_norms=norms, lrs=lrs, trainable=sum(p.numel() for p in ps)), open(f"{d}/trajectory.json", "w"), indent=1)
    print("ok", name, losses[0], losses[-1], sum(p.numel() for p in ps), flush=True)

def dequant_8bit(d):
    """Adds logits_dequant, loss_dequant: the 8-bit checkpoint's weights as q * SCB / 127 per row, everything in float32 (no activation quantization)."""
    from safetensors.torch import load_file
    w = load_file(f"{d}/model.safetensors"); g_ = load_file(f"{d}/golden.safetensors")
    full = {k: (v.float() * w[k[:-len("weight")] + "SCB"].float()[:, None] / 127 if v.dtype == torch.int8 else v.float()) for k, v in w.items() if k.endswith("weight")}
    cfg = AutoConfig.from_pretrained(d)
    if hasattr(cfg, "quantization_config"): del cfg.quantization_config
    m = AutoModelForCausalLM.from_config(cfg, attn_implementation="eager").float(); print(m.load_state_dict(full, strict=False)); m.eval()
    o = m(input_ids=g_["input_ids"], labels=g_["labels"], use_cache=False); o.loss.backward()
    g_.update(logits_dequant=o.logits.detach().contiguous(), loss_dequant=o.loss.detach().reshape(1)); g_.update({"grad." + n: p.grad.contiguous() for n, p in m.named_parameters() if p.ndim == 1 or "embed" in n})
    save_file(g_, f"{d}/golden.safetensors"); print("ok dequant", float(g_["loss"]), float(g_["loss_dequant"]))

def mxfp4_case(name):
    """gpt-oss with experts as they are published, in MXFP4: golden values are those of the same model with the experts dequantized by transformers. Gradients of the experts' weights are left out."""
    from transformers.integrations.mxfp4 import FP4_VALUES, convert_moe_packed_tensors
    d = f"{OUT}/{name}"; os.makedirs(d, exist_ok=True)
    m = build("GptOssConfig", dict(hidden_size=64, intermediate_size=32 if not SECOND else 96, num_attention_heads=4, head_dim=16, num_local_experts=4 if not SECOND else 5, num_experts_per_tok=2, sliding_window=8))
    packed, levels = {}, torch.tensor(FP4_VALUES[:8])
    for n, p in m.named_parameters():
        if not n.endswith(("gate_up_proj", "down_proj")): continue
        w = p.detach().transpose(1, 2).reshape(p.shape[0], p.shape[2], p.shape[1] // 32, 32)
        e = (w.abs().amax(-1, keepdim=True).log2().floor() - 2).clamp(-127, 127)
        codes = ((w.abs() * 2.0 ** -e)[..., None] - levels).abs().argmin(-1) + 8 * (w < 0)
        packed[n + "_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8).contiguous()
        packed[n + "_scales"] = (e[..., 0] + 127).to(torch.uint8).contiguous()
        with torch.no_grad(): p.copy_(convert_moe_packed_tensors(packed[n + "_blocks"], packed[n + "_scales"], dtype=torch.float32))
    ids, labels = batch(m.config.vocab_size)
    out = m(input_ids=ids, labels=labels, use_cache=False); out.loss.backward()
    t = dict(input_ids=ids, labels=labels, logits=out.logits.detach().contiguous(), loss=out.loss.detach().reshape(1))
    whole = {n: p for n, p in m.named_parameters() if n + "_blocks" not in packed}
    t.update({"grad." + n: p.grad.contiguous() for n, p in whole.items()})
    t.update({"dequant." + n: p.detach().contiguous() for n, p in m.named_parameters() if n not in whole and "layers.0" in n})
    m.save_pretrained(d)
    save_file(packed | {n: p.detach().contiguous() for n, p in whole.items()}, f"{d}/model.safetensors", metadata={"format": "pt"}); save_file(t, f"{d}/golden.safetensors")
    c = json.load(open(d + "/config.json")); c["quantization_config"] = {"modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"], "quant_method": "mxfp4"}
    json.dump(c, open(d + "/config.json", "w"), indent=2); print("ok", name, float(out.loss.detach()), flush=True)

def bnb_cases():
    import bitsandbytes as bnb, bitsandbytes.functional as F
    from transformers import BitsAndBytesConfig
    assert torch.cuda.is_available()
    t = {}
    for nm, dq in (("nf4", False), ("nf4_dq", True)):
        for shape in ((96, 128), (320, 192)):
            w = torch.randn(shape, generator=g) * 0.05; w[3, 7] = 1.7
            q, st = F.quantize_4bit(w.cuda(), blocksize=64, compress_statistics=dq, quant_type="nf4")
            k = f"{nm}.{shape[0]}x{shape[1]}"
            t[k + ".weight"] = w; t[k + ".packed"] = q.cpu().reshape(-1); t[k + ".dequant"] = F.dequantize_4bit(q, st).cpu()
            if dq: t[k + ".absmax_u8"] = st.absmax.cpu(); t[k + ".nested_absmax"] = st.state2.absmax.cpu(); t[k + ".offset"] = st.offset.cpu().reshape(1); t[k + ".nested_map"] = st.state2.code.cpu()
            else: t[k + ".absmax"] = st.absmax.cpu()
    t["nf4_map"] = st.code.cpu()
    for n in (4096, 5000):  # 8-bit block-wise quantisation of optimizer state, signed and unsigned dynamic maps
        x = torch.randn(n, generator=g); u = torch.rand(n, generator=g) ** 4
        ms, mu = F.create_dynamic_map(signed=True).cuda(), F.create_dynamic_map(signed=False).cuda()
        for nm, v, mp in (("signed", x, ms), ("unsigned", u, mu)):
            q, st = F.quantize_blockwise(v.cuda(), code=mp, blocksize=256)
            t[f"dyn8.{nm}.{n}.x"] = v; t[f"dyn8.{nm}.{n}.q"] = q.cpu(); t[f"dyn8.{nm}.{n}.absmax"] = st.absmax.cpu(); t[f"dyn8.{nm}.{n}.dequant"] = F.dequantize_blockwise(q, st).cpu()
        t["dyn8.signed.map"], t["dyn8.unsigned.map"] = ms.cpu(), mu.cpu()
    p = torch.nn.Parameter((torch.randn(8192, generator=g)).cuda()); opt = bnb.optim.AdamW8bit([p], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    t["adamw8.p0"] = p.detach().cpu().clone()
    for s in range(6):
        gr = torch.randn(8192, generator=g); p.grad = gr.cuda(); opt.step(); t[f"adamw8.g{s}"] = gr; t[f"adamw8.p{s+1}"] = p.detach().cpu().clone()
    st = opt.state[p]; t["adamw8.state1"] = st["state1"].cpu(); t["adamw8.state2"] = st["state2"].cpu(); t["adamw8.absmax1"] = st["absmax1"].cpu(); t["adamw8.absmax2"] = st["absmax2"].cpu()
    os.makedirs(f"{OUT}/bitsandbytes", exist_ok=True)
    save_file({k: v.contiguous() for k, v in t.items()}, f"{OUT}/bitsandbytes/golden.safetensors"); print("ok bitsandbytes tensors", len(t), flush=True)
    for nm, kw in (("bnb_4bit", dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)),
                   ("bnb_4bit_skip", dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["lm_head", "model.layers.0.self_attn", "model.layers.1.mlp.down_proj"])),
                   ("bnb_8bit", dict(load_in_8bit=True))):
        d = f"{OUT}/{nm}"; src = f"{OUT}/_src"; m = build("LlamaConfig", dict(hidden_size=128, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2)); m.save_pretrained(src)
        q = AutoModelForCausalLM.from_pretrained(src, quantization_config=BitsAndBytesConfig(**kw), dtype=torch.float32, device_map={"": 0}, attn_implementation="eager").eval()
        q.save_pretrained(d); ids, labels = batch(q.config.vocab_size)
        with torch.no_grad(): o = q(input_ids=ids.cuda(), labels=labels.cuda(), use_cache=False)
        deq = {}
        for n, mod in q.named_modules():
            if isinstance(mod, bnb.nn.Linear4bit): deq["dequant." + n + ".weight"] = F.dequantize_4bit(mod.weight.data, mod.weight.quant_state).float().cpu().contiguous()
        save_file(dict(input_ids=ids, labels=labels, logits=o.logits.float().cpu().contiguous(), loss=o.loss.float().cpu().reshape(1), **deq), f"{d}/golden.safetensors")
        if nm == "bnb_8bit": dequant_8bit(d)
        print("ok", nm, float(o.loss), os.listdir(d), flush=True)
    import shutil; shutil.rmtree(f"{OUT}/_src", ignore_errors=True)

def schedule_case():
    r = {}
    for kind in ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"):
        p = torch.nn.Parameter(torch.zeros(1)); o = torch.optim.SGD([p], lr=2e-4); s = transformers.get_scheduler(kind, o, num_warmup_steps=10, num_training_steps=100); v = []
        for _ in range(100): v.append(s.get_last_lr()[0]); o.step(); s.step()
        r[kind] = v
    os.makedirs(f"{OUT}/schedules", exist_ok=True); json.dump(dict(lr=2e-4, warmup=10, total=100, values=r), open(f"{OUT}/schedules/golden.json", "w")); print("ok schedules", flush=True)

def attempt(f, *a, **k):
    try: return f(*a, **k)
    except Exception as e:
        import traceback; traceback.print_exc(); print("FAILED", a[:1], repr(e)[:300], flush=True)

if ONLY:  # just the named model cases
    for n in ONLY:
        if n == "gpt_oss_mxfp4": attempt(mxfp4_case, n)
        elif n == "bnb_8bit_dequant": attempt(dequant_8bit, f"{OUT}/bnb_8bit")
        else: attempt(model_case, n, *(CASES | EXTRA)[n])
    sys.exit()
for n, (c, k) in CASES.items(): attempt(model_case, n, c, k)
LL = ("LlamaConfig", dict(rope_parameters=rp(theta=500000.0)))
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
attempt(train_case, "train_full", *LL, None, lr=1e-3)
attempt(train_case, "train_lora", *LL, dict(r=8 if not SECOND else 5, lora_alpha=16, target_modules=ALL))
attempt(train_case, "train_lora_embed", *LL, dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"], modules_to_save=["embed_tokens", "lm_head"]), lr=2e-3)
attempt(train_case, "train_dora", *LL, dict(r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "o_proj", "down_proj"]))
attempt(schedule_case)
attempt(bnb_cases)
if SECOND:
    for n, (c, k) in EXTRA.items(): attempt(model_case, n, c, k)
print("versions", transformers.__version__, torch.__version__)
