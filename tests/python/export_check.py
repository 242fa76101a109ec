"""What other programs make of our exports (`pip install torch transformers peft llama-cpp-python`).

    python export_check.py LUTHIER BASE WORK    the binary, a model folder, an empty folder to work in
    python export_check.py archs LUTHIER GOLDEN WORK   golden models as GGUF in llama.cpp against transformers
    python export_check.py words LUTHIER GOLDEN WORK   what they say there in F16, against what luthier says

PEFT and transformers must agree with the adapter as PEFT runs it; llama.cpp must say the same words. Prints one line a check;
the first failure ends it.
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from llama_cpp import Llama
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

PROMPTS = [f"{start} {what}" for start in ("What is", "Explain", "Why does the compiler report", "How do I fix")
           for what in ("error E0382?", "a borrow of a moved value", "a missing lifetime", "E0117", "an unused variable?")]
NEW = 32
torch.manual_seed(3)


def ran(binary, *args):
    done = subprocess.run([binary, "export", *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"luthier export {' '.join(map(str, args))}: {done.returncode}\n{done.stderr}")
    print(done.stdout.strip())


def check(what, value, limit):
    print(f"{what}: {value:.2e} (at most {limit:.0e})")
    if not value <= limit:
        sys.exit(f"{what}: {value} is more than {limit}")


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def greedy(model, ids):
    ids = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW,
                             do_sample=False, pad_token_id=4)
    return out[0, ids.shape[1]:].tolist()


def llama(file, **more):
    return Llama(str(file), n_ctx=96, n_threads=1, verbose=False, logits_all=True, type_k=0, type_v=0, **more)


def llama_logits(model, ids):
    model.reset()
    model.eval(ids)
    return torch.tensor(np.array(model.scores[: len(ids)]))


def llama_greedy(model, ids):
    model.reset()
    model.eval(ids)
    out = []
    for _ in range(NEW):
        out.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(out[-1:])
    return out


def divergence(want, got):
    want, got = torch.log_softmax(want, -1), torch.log_softmax(got, -1)
    return float((want.exp() * (want - got)).sum(-1).mean())


def agree(want, got):
    return sum(a == b for a, b in zip(want, got)) / len(want)


def products(binary, base, work):
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [tokenizer(p)["input_ids"] for p in PROMPTS]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", use_rslora=True),
    )
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.normal_(0, 0.02)
    adapter = work / "adapter"
    model.save_pretrained(adapter)
    want = [logits(model, ids) for ids in texts]
    words = [greedy(model, ids) for ids in texts]

    def export(product, out, *more):
        ran(binary, "--model", base, "--adapter", adapter, "--format", product, "--out", work / out, *more)
        return work / out

    worst = lambda other: max(float((w - logits(other, ids)).abs().max()) for w, ids in zip(want, texts))
    merged = AutoModelForCausalLM.from_pretrained(export("merged-16bit", "merged", "--dtype", "float32"))
    check("merged, in transformers: logits", worst(merged), 1e-4)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    again = PeftModel.from_pretrained(plain, export("adapter", "copy"))
    check("adapter, in PEFT: logits", worst(again), 1e-4)
    file = llama(export("gguf", "f32.gguf", "--quant", "f32"))
    same = [file.tokenize(p.encode(), add_bos=True, special=True) == ids for p, ids in zip(PROMPTS, texts)]
    check("GGUF: prompts tokenized otherwise", 1 - sum(same) / len(same), 0)
    for quant, kl in [("f32", 1e-6), ("f16", 1e-5), ("bf16", 1e-3), ("q8_0", 1e-3), ("q6_k", 1e-2), ("q5_k_m", 2e-2),
                      ("q5_1", 5e-2), ("q4_k_m", 0.1), ("q4_0", 0.2)]:
        if quant != "f32":
            file = llama(export("gguf", f"{quant}.gguf", "--quant", quant))
        got = [divergence(w, llama_logits(file, ids)) for w, ids in zip(want, texts)]
        check(f"GGUF {quant}, in llama.cpp: KL divergence", sum(got) / len(got), kl)
        if quant == "f16":
            told = [agree(w, llama_greedy(file, ids)) for w, ids in zip(words, texts)]
            check(f"GGUF {quant}, in llama.cpp: other words", 1 - sum(told) / len(told), 0)
    ran(binary, "--model", base, "--format", "gguf", "--quant", "f32", "--out", work / "base.gguf")
    file = llama(work / "base.gguf", lora_path=str(export("gguf-lora", "lora.gguf")))
    got = [divergence(w, llama_logits(file, ids)) for w, ids in zip(want, texts)]
    check("GGUF adapter, in llama.cpp: KL divergence", sum(got) / len(got), 1e-6)


# what the goldens of these families have and llama.cpp has not, taken out; a key's name stands for that key's value
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 16, "mscale": 0.707,
        "mscale_all_dim": 0.707}
PLAINER = {
    "deepseek_v3_plain": {"attention_bias": False, "rope_interleave": True},
    "deepseek_v3_yarn": {"rope_parameters": YARN},
    "glm": {"head_dim": 12},
    # what is set as published: limit, and ends of YaRN's ramp that llama.cpp rounds
    "gpt_oss": {"swiglu_limit": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}},
    "ministral": {"layer_types": ["full_attention"] * 9},
    "cohere_qk_norm": {"use_qk_norm": False},
    "ernie4_5": {"use_bias": False},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 9},
    "gemma2": {"query_pre_attn_scalar": "head_dim"},
    "gemma3": {"query_pre_attn_scalar": "head_dim"},
    "olmoe": {"num_key_value_heads": "num_attention_heads"},
    "phi": {"qk_layernorm": False},
    "qwen2_moe": {"mlp_only_layers": []},
    "smollm3": {"use_sliding_window": False, "layer_types": ["full_attention"] * 9, "no_rope_layers": [1, 1, 1, 0] * 3,
                "no_rope_layer_interval": 4},
}
# llama.cpp rounds the ends of gpt-oss's ramp, and multiplies MXFP4 by activations in 8 bits
ROUNDED = {"gpt_oss_mxfp4"}
# the window is in the file, and llama.cpp's graph of the Llama family has none
WINDOWS = {"mistral"}


def plainer(folder, out):
    config = AutoConfig.from_pretrained(folder)
    for key, value in PLAINER[folder.name].items():
        value = getattr(config, value) if isinstance(value, str) else value
        setattr(config, key, value[: config.num_hidden_layers] if isinstance(value, list) else value)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.dim() > 1:
                param.normal_(0, 0.2)
    model.save_pretrained(out)
    return out


def archs(binary, golden, work):
    """llama.cpp's own version of each architecture; with a float32 cache."""
    seen = 0
    for folder in sorted(p for p in golden.iterdir() if (p / "config.json").exists() and (p / "model.safetensors").exists()):
        name, out = folder.name, work / f"{folder.name}.gguf"
        if name.startswith("bnb_") or name in WINDOWS:
            continue
        if name in PLAINER:
            folder = plainer(folder, work / name)
        args = ["--model", str(folder), "--format", "gguf", "--quant", "f32", "--no-verify", "--out", str(out)]
        done = subprocess.run([binary, "export", *args], capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: not written: {done.stderr.strip().splitlines()[-1][:150]}")
            continue
        ids = [(i * 7 + 3) % 100 for i in range(24)]
        try:
            config = AutoConfig.from_pretrained(folder)
        except ValueError:
            print(f"{name}: written, and not known to transformers")
            continue
        if name in ROUNDED:
            config.rope_parameters["truncate"] = True
        want = logits(AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32), ids)
        limit = 1e-2 if name in ROUNDED else 1e-5
        check(f"{name}, in llama.cpp: KL divergence", divergence(want, llama_logits(llama(out), ids)), limit)
        seen += 1
    print(f"{seen} models agree")
    if seen < 37:
        sys.exit("fewer models than are known to be written")


def letters(folder):
    """A tokenizer of 128 tokens: ASCII, and pairs of letters."""
    singles = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    pairs = [c + c for c in singles[-46:-14]]
    tokenizer = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(singles + pairs)},
                  "merges": [[p[0], p[1]] for p in pairs], "byte_fallback": False, "fuse_unk": False,
                  "ignore_merges": False, "unk_token": None, "dropout": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text("{}")


def words(binary, golden, work):
    """Greedy. With weights in F16 llama.cpp rounds activations to F16, too, which changes a word now and then."""
    texts = [text[:24] for text in PROMPTS]
    (work / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    for name in ["deepseek_v3", "deepseek_v3_plain", "deepseek_v3_yarn", "glm", "glm4", "gpt_oss", "ministral"]:
        folder = work / name
        if name in PLAINER:
            plainer(golden / name, folder)
        else:
            shutil.copytree(golden / name, folder)
        letters(folder)
        for quant, most in [("f32", 0), ("f16", 4)]:
            file = work / f"{name}-{quant}.gguf"
            ran(binary, "--model", folder, "--format", "gguf", "--quant", quant, "--no-verify", "--out", file)
            check(f"{name} in {quant}, in llama.cpp: other answers of {len(texts)}", others(binary, file, texts, work), most)


def others(binary, out, texts, work):
    """How many texts llama.cpp goes on with otherwise than luthier."""
    file = llama(out)
    asked = ["--model", out, "--prompts", work / "prompts.jsonl", "--json", "--raw", "--max-new-tokens", NEW,
             "--dtype", "float32", "--backend", "cpu"]
    done = subprocess.run([binary, "generate", *map(str, asked)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    lines = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda line: line["prompt"])
    other = 0
    for text, line in zip(texts, lines, strict=True):
        told = file.detokenize(llama_greedy(file, file.tokenize(text.encode(), add_bos=False, special=True))).decode()
        other += told != line["text"]
    return other


if sys.argv[1] == "archs":
    archs(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
elif sys.argv[1] == "words":
    words(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
else:
    products(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
