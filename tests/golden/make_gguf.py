"""GGUF goldens by llama.cpp's own Python package (`pip install gguf safetensors sentencepiece torch transformers`).

    python make_gguf.py blocks OUT              blocks of each format with the values they stand for: OUT/blocks.safetensors
    python make_gguf.py twins ROOT OUT CASE ..  OUT/CASE.gguf from the Hugging Face folder ROOT/CASE, in F32
    python make_gguf.py packed OUT              a llama with a tensor in every format, and a mixtral: OUT/NAME.gguf, and
                                                OUT/NAME.safetensors with what transformers makes of the dequantized values
    python make_gguf.py chat BASE OUT           a small llama in Q8_0 with the tokenizer of the folder BASE: OUT/chat.gguf
    python make_gguf.py spm TEXT OUT            a SentencePiece tokenizer: OUT/spm.gguf, and texts with its ids: OUT/spm.json

Tensors are changed as llama.cpp's convert_hf_to_gguf.py changes them; their names come from the package's own table.
"""

import json
import math
import re
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, GGUFWriter, MODEL_ARCH, quants
from safetensors.numpy import load_file, save_file

FORMATS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# where a block's f16 scales are
SCALES = {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
ARCHS = {
    "llama": MODEL_ARCH.LLAMA, "mistral": MODEL_ARCH.LLAMA, "mixtral": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3, "qwen3_moe": MODEL_ARCH.QWEN3MOE, "phi3": MODEL_ARCH.PHI3, "gemma": MODEL_ARCH.GEMMA,
    "gemma2": MODEL_ARCH.GEMMA2, "gemma3_text": MODEL_ARCH.GEMMA3,
}


def quantize(x, name):
    """x [.., C] as blocks [.., bytes]. The package has no quantizer for the K formats: theirs are random codes of the size of x."""
    if name not in SCALES:
        return quants.quantize(x.astype(np.float32), Type[name])
    length, size = GGML_QUANT_SIZES[Type[name]]
    rng = np.random.default_rng(abs(int(x.flat[0] * 1e6)) + 1)
    blocks = rng.integers(0, 256, (*x.shape[:-1], x.shape[-1] // length, size), dtype=np.uint8)
    spread = float(np.std(x))
    scale = {"Q4_K": spread / 220, "Q5_K": spread / 450, "Q6_K": spread / 1400}[name]
    for place in SCALES[name]:
        # a minimum a bit above half of the range keeps the mean near zero
        d = scale * (7.5 if name == "Q4_K" else 15.5) if place == 2 else scale
        d = (d * rng.uniform(0.8, 1.2, blocks.shape[:-1])).astype(np.float16)
        blocks[..., place : place + 2] = d[..., None].view(np.uint8)
    return blocks.reshape(*x.shape[:-1], -1)


def permute(x, heads):
    """Halves of a head, as RoPE turns them in Hugging Face models, become neighbours."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def rope(writer, cfg, head_dim):
    p = cfg.get("rope_parameters") or cfg.get("rope_scaling") or {}
    p = p.get("full_attention", p)
    theta = p.get("rope_theta", cfg.get("rope_theta", 10000.0))
    writer.add_rope_freq_base(theta)
    kind = p.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(p["factor"])
    elif kind == "llama3":
        old, low, high = p["original_max_position_embeddings"], p["low_freq_factor"], p["high_freq_factor"]
        factors = []
        for i in range(0, head_dim, 2):
            wavelen = 2 * math.pi * theta ** (i / head_dim)
            if wavelen < old / high:
                factors.append(1.0)
            elif wavelen > old / low:
                factors.append(p["factor"])
            else:
                smooth = (old / wavelen - low) / (high - low)
                factors.append(1 / ((1 - smooth) / p["factor"] + smooth))
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
    elif kind == "longrope":
        old = cfg.get("original_max_position_embeddings") or p["original_max_position_embeddings"]
        scale = cfg["max_position_embeddings"] / old
        writer.add_rope_scaling_orig_ctx_len(old)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(old)))
        writer.add_tensor("rope_factors_long.weight", np.array(p["long_factor"], dtype=np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(p["short_factor"], dtype=np.float32))


def hparams(writer, cfg):
    heads = cfg["num_attention_heads"]
    kv, head_dim = cfg.get("num_key_value_heads", heads), cfg.get("head_dim") or cfg["hidden_size"] // heads
    writer.add_context_length(cfg["max_position_embeddings"])
    writer.add_embedding_length(cfg["hidden_size"])
    writer.add_block_count(cfg["num_hidden_layers"])
    writer.add_feed_forward_length(cfg["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(cfg["rms_norm_eps"])
    writer.add_vocab_size(cfg["vocab_size"])
    if head_dim != cfg["hidden_size"] // heads or cfg["model_type"].startswith(("gemma", "qwen3")):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    experts = cfg.get("num_local_experts") or cfg.get("num_experts")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(cfg["num_experts_per_tok"])
        if "moe_intermediate_size" in cfg:
            writer.add_expert_feed_forward_length(cfg["moe_intermediate_size"])
    if cfg["model_type"] in ("gemma2", "gemma3_text", "phi3", "mistral"):
        writer.add_sliding_window(cfg.get("sliding_window") or 0)
    for key, add in [("attn_logit_softcapping", writer.add_attn_logit_softcapping), ("final_logit_softcapping", writer.add_final_logit_softcapping)]:
        if cfg.get(key):
            add(cfg[key])
    if cfg["model_type"] in ("gemma2", "gemma3_text") and cfg["query_pre_attn_scalar"] != head_dim:
        writer.add_attention_scale(cfg["query_pre_attn_scalar"] ** -0.5)
    if cfg["model_type"] == "gemma3_text":
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in cfg["layer_types"]])
    rope(writer, cfg, head_dim)
    return heads, kv


def merged_experts(tensors):
    """Experts' matrices become one [E, O, C] under the name that the package's table knows."""
    out, experts = {}, {}
    for name, x in tensors.items():
        if m := re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name):
            experts.setdefault((m[1], m[3]), {})[int(m[2])] = x
        else:
            out[name] = x
    for (module, part), each in experts.items():
        layer = re.search(r"layers\.(\d+)", module)[1]
        merged = f"layers.{layer}.feed_forward.experts.{part}" if part.startswith("w") else f"{module}.{part}"
        out[f"{merged}.weight"] = np.stack([each[i] for i in sorted(each)])
    return out


def convert(cfg, tensors, file, formats=lambda name: None, vocabulary=None):
    """Writes the model; `formats` gives each GGUF name its format (None: F32). Returns what the file's values are, in
    Hugging Face's names and layout."""
    arch = ARCHS[cfg["model_type"]]
    writer = GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name("golden")
    heads, kv = hparams(writer, cfg)
    table = gguf.get_tensor_name_map(arch, cfg["num_hidden_layers"])
    stands_for = {}
    if cfg.get("tie_word_embeddings"):
        tensors = {name: x for name, x in tensors.items() if name != "lm_head.weight"}
    for name, x in merged_experts(tensors).items():
        x = x.astype(np.float32)
        new = table.get_name(name, try_suffixes=(".weight", ".bias"))
        rows = {"q_proj": heads, "k_proj": kv}.get(name.split(".")[-2])
        swapped = rows if arch == MODEL_ARCH.LLAMA else None
        if swapped:
            x = permute(x, swapped)
        if cfg["model_type"].startswith("gemma") and name.endswith("norm.weight"):
            x = x + 1
        kind = formats(new)
        if kind and x.ndim > 1:
            blocks = quantize(x, kind)
            writer.add_tensor(new, blocks, raw_dtype=Type[kind])
            x = quants.dequantize(blocks, Type[kind]).astype(np.float32)
        else:
            writer.add_tensor(new, x)
        if swapped:
            x = x.reshape(swapped, x.shape[0] // swapped // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        stands_for[name] = x
    if vocabulary:
        vocabulary(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stands_for


def blocks(out):
    rng = np.random.default_rng(1)
    tensors = {}
    for name in FORMATS:
        packed = quantize(rng.normal(size=(3, 768)).astype(np.float32), name)
        tensors[f"{name.lower()}.blocks"] = packed.reshape(-1)
        tensors[f"{name.lower()}.values"] = quants.dequantize(packed, Type[name]).astype(np.float32).reshape(-1)
    save_file(tensors, out / "blocks.safetensors")


def twins(root, out, *cases):
    for case in cases:
        folder = Path(root) / case
        convert(json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"), out / f"{case}.gguf")


def golden(cfg_class, kw, out, name, formats):
    """A random model, its GGUF file, and the logits, loss and gradients of the values in that file."""
    import torch, transformers

    cfg = getattr(transformers, cfg_class)(**kw)
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(cfg, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * (0.2 if p.ndim == 1 else 1.5 / math.sqrt(p.shape[-1])) + (p.ndim == 1))
    state = {n: p.detach().numpy() for n, p in model.named_parameters()}
    split = {}
    for n, x in state.items():  # transformers 5 holds experts in one tensor
        module = n.replace("mlp.experts", "block_sparse_moe.experts").replace("mlp.gate", "block_sparse_moe.gate")
        if n.endswith("experts.gate_up_proj"):
            for e, both in enumerate(x):
                split[module.replace("gate_up_proj", f"{e}.w1.weight")], split[module.replace("gate_up_proj", f"{e}.w3.weight")] = np.split(both, 2)
        elif n.endswith("experts.down_proj"):
            for e, w in enumerate(x):
                split[module.replace("down_proj", f"{e}.w2.weight")] = w
        else:
            split[module if "experts" in state or "mixtral" == cfg.model_type else n] = x
    values = convert(cfg.to_dict(), split, out / f"{name}.gguf", formats)
    with torch.no_grad():
        for n, p in model.named_parameters():
            module = n.replace("mlp.gate.", "block_sparse_moe.gate.") if cfg.model_type == "mixtral" else n
            if n.endswith("experts.gate_up_proj"):
                layer = n.split(".")[2]
                parts = [values[f"layers.{layer}.feed_forward.experts.{w}.weight"] for w in ("w1", "w3")]
                p.copy_(torch.from_numpy(np.concatenate(parts, axis=1)))
            elif n.endswith("experts.down_proj"):
                p.copy_(torch.from_numpy(values[f"layers.{n.split('.')[2]}.feed_forward.experts.w2.weight"]))
            else:
                p.copy_(torch.from_numpy(values[module].copy()))
    ids = torch.randint(3, cfg.vocab_size, (2, 20))
    labels = ids.clone()
    labels[0, :5] = -100
    result = model(input_ids=ids, labels=labels, use_cache=False)
    result.loss.backward()
    keep = dict(input_ids=ids, labels=labels, logits=result.logits.detach(), loss=result.loss.detach().reshape(1))
    keep["grad.model.norm.weight"] = model.model.norm.weight.grad
    keep["grad.model.layers.0.input_layernorm.weight"] = model.model.layers[0].input_layernorm.weight.grad
    save_file({n: x.contiguous().numpy() for n, x in keep.items()}, out / f"{name}.safetensors")


def packed(out):
    every = {"attn_q": "Q4_0", "attn_k": "Q8_0", "attn_v": "Q5_0", "attn_output": "Q4_K", "ffn_gate": "Q5_K", "ffn_up": "Q6_K",
             "ffn_down": "Q4_1", "token_embd": "Q5_1", "output": "Q6_K"}
    kind = lambda name: next((f for module, f in every.items() if module in name.split(".")), None)
    shape = dict(vocab_size=72, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5)
    golden("LlamaConfig", shape, out, "packed", kind)
    experts = {"ffn_gate_exps": "Q4_0", "ffn_up_exps": "Q8_0", "ffn_down_exps": "Q5_0", "attn_q": "Q8_0"}
    kind = lambda name: next((f for module, f in experts.items() if module in name.split(".")), None)
    shape = dict(vocab_size=72, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, num_local_experts=3, num_experts_per_tok=2,
                 sliding_window=None)
    golden("MixtralConfig", shape, out, "packed_mixtral", kind)


def byte_level(folder, pre):
    """Adds the tokenizer.json of a folder."""
    tok = json.loads((Path(folder) / "tokenizer.json").read_text())
    cfg = json.loads((Path(folder) / "tokenizer_config.json").read_text())
    ids = dict(tok["model"]["vocab"]) | {t["content"]: t["id"] for t in tok["added_tokens"]}
    kinds = {t["content"]: gguf.TokenType.CONTROL if t["special"] else gguf.TokenType.USER_DEFINED for t in tok["added_tokens"]}
    tokens = sorted(ids, key=ids.get)

    def add(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([kinds.get(t, gguf.TokenType.NORMAL) for t in tokens])
        writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in tok["model"]["merges"]])
        writer.add_bos_token_id(ids[cfg["bos_token"]])
        writer.add_eos_token_id(ids[cfg["eos_token"]])
        writer.add_pad_token_id(ids[cfg["pad_token"]])
        writer.add_add_bos_token(True)
        writer.add_chat_template(cfg["chat_template"])

    return add


def chat(base, out):
    rng = np.random.default_rng(3)
    cfg = dict(model_type="llama", vocab_size=4096, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
               num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True)
    linear = dict(self_attn=dict(q_proj=(64, 64), k_proj=(32, 64), v_proj=(32, 64), o_proj=(64, 64)),
                  mlp=dict(gate_proj=(96, 64), up_proj=(96, 64), down_proj=(64, 96)))
    tensors = {f"model.layers.0.{part}.{name}.weight": rng.normal(size=shape) / 8 for part, all in linear.items() for name, shape in all.items()}
    tensors |= {f"model.layers.0.{name}.weight": np.ones(64) for name in ("input_layernorm", "post_attention_layernorm")}
    tensors |= {"model.norm.weight": np.ones(64), "model.embed_tokens.weight": rng.normal(size=(4096, 64)) / 8}
    convert(cfg, tensors, out / "chat.gguf", lambda name: "Q8_0", byte_level(base, "dbrx"))


def spm(text, out):
    import io, sentencepiece

    lines = Path(text).read_text().splitlines()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=700, model_type="bpe", byte_fallback=True,
        character_coverage=0.995, normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=["<|turn|>"], num_threads=1, minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    writer = GGUFWriter(out / "spm.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    n = range(sp.vocab_size())
    kind = lambda i: (gguf.TokenType.UNKNOWN if sp.is_unknown(i) else gguf.TokenType.CONTROL if sp.is_control(i)
                      else gguf.TokenType.BYTE if sp.is_byte(i) else gguf.TokenType.USER_DEFINED if sp.id_to_piece(i) == "<|turn|>"
                      else gguf.TokenType.NORMAL)
    writer.add_token_list([sp.id_to_piece(i) for i in n])
    writer.add_token_scores([sp.get_score(i) for i in n])
    writer.add_token_types([kind(i) for i in n])
    writer.add_bos_token_id(sp.bos_id())
    writer.add_eos_token_id(sp.eos_id())
    writer.add_unk_token_id(sp.unk_id())
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    texts = ["The quick brown fox, 1234 jumps", "  two  spaces   and\ttabs\n\nlines ", "ünïcödé 汉字 🙂 ∀x∈ℝ", "a", "fn main() { println!(\"{}\", x); }",
             "borrowed value does not live long enough", "mismatched mutability in the the the trait object"] + lines[:20]
    cases = [json.dumps([t, [sp.bos_id()] + sp.encode(t)], ensure_ascii=False) for t in texts]
    (out / "spm.json").write_text("[\n" + ",\n".join(cases) + "\n]\n")


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    at = 0 if what in ("blocks", "packed") else 1
    out = Path(rest.pop(at))
    out.mkdir(parents=True, exist_ok=True)
    {"blocks": blocks, "twins": twins, "packed": packed, "chat": chat, "spm": spm}[what](*rest[:1], out, *rest[1:]) if at else globals()[what](out)
