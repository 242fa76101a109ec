"""Adapters of many kinds made by PEFT on tiny random models, with what they compute; and the way back.

    python make_adapters.py make OUT {first|second}    goldens: OUT/<base>/model, OUT/<base>/<kind>/{adapter_*, golden.safetensors}
    python make_adapters.py check OUT TRAINED          adapters that `cargo test --test adapters` trained, loaded by PEFT

golden.safetensors: input_ids, labels [B,T] i64 (-100 = ignored, not shifted), logits [B,T,V], loss, grad.<parameter>, and
params = [trained, all] as `print_trainable_parameters` counts. float32, eager attention; dropout
has the masks that luthier draws.
TRAINED/<base>/<kind> holds an adapter and logits.safetensors; LUTHIER_TRAINED=TRAINED makes the test write them.
"""
import json, os, sys
sys.path.pop(0)  # the goldens beside this file have a folder `bitsandbytes`, which is no module
import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

SECOND = "second" in sys.argv
torch.manual_seed(5 + SECOND)
g = torch.Generator().manual_seed(11 + SECOND)
SIZES = dict(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=False)
if SECOND:
    SIZES.update(vocab_size=51, hidden_size=18, intermediate_size=27, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1)

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASES = {
    # PEFT sorts the patterns when it saves them: these are in that order
    "llama": ("LlamaConfig", dict(attention_bias=True), {
        "patterns": dict(r=4, lora_alpha=8, target_modules=ALL, rank_pattern={r"layers\.1\..*down_proj": 6, r"mlp\.down_proj": 2, "q_proj": 1},
                         alpha_pattern={"v_proj": 32, r"0\.mlp.*": 3}),
        "rslora": dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 9}),
        "regex": dict(r=3, lora_alpha=6, target_modules=r"model\.layers\.(?!1)\d+\..*(q|v|up)_proj"),
        "layers": dict(r=2, lora_alpha=4, target_modules=["k_proj", "gate_proj"], layers_to_transform=[1], layers_pattern="layers"),
        "one_layer": dict(r=2, lora_alpha=4, target_modules=["o_proj"], layers_to_transform=0),
        "exclude": dict(r=2, lora_alpha=4, target_modules="all-linear", exclude_modules=["k_proj", "layers.0.mlp.up_proj"]),
        "dora": dict(r=4, lora_alpha=8, use_dora=True, target_modules="all-linear"),
        "dora_patterns": dict(r=4, lora_alpha=8, use_dora=True, use_rslora=True, target_modules=["q_proj", "down_proj", "v_proj"],
                              rank_pattern={"q_proj": 9}, alpha_pattern={"down_proj": 2}),
        "dora_save": dict(r=2, lora_alpha=8, use_dora=True, target_modules=["v_proj"], modules_to_save=["embed_tokens", "lm_head"]),
        "save_head": dict(r=2, lora_alpha=8, target_modules=["v_proj"], modules_to_save=["lm_head"]),
        "dropout": dict(r=3, lora_alpha=6, lora_dropout=0.3, target_modules="all-linear"),
        "dora_dropout": dict(r=3, lora_alpha=6, lora_dropout=0.3, use_dora=True, target_modules="all-linear"),
        "save_norms": dict(r=2, lora_alpha=8, target_modules=["v_proj"], modules_to_save=["norm"]),
        "save_linears": dict(r=2, lora_alpha=8, target_modules="all-linear", modules_to_save=["o_proj", "layers.1.mlp", "k_proj"]),
    }),
    "phi3": ("Phi3Config", {}, {
        "dora": dict(r=4, lora_alpha=8, use_dora=True, target_modules="all-linear"),
        "dora_dropout": dict(r=4, lora_alpha=8, lora_dropout=0.5, use_dora=True, target_modules="all-linear"),
        "regex": dict(r=4, lora_alpha=8, target_modules=r".*\.(qkv_proj|down_proj)"),
    }),
    "tied": ("LlamaConfig", dict(tie_word_embeddings=True), {
        "save_both": dict(r=2, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
        "save_embed": dict(r=2, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    }),
    # rows of tokens; RESIZED: after so many rows were added to the base
    "tokens": ("LlamaConfig", {}, {
        "embedding": dict(r=2, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices=[9, 5, 6]),
        "both": dict(r=2, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5, 6, 9], "lm_head": [9, 20]}),
        "resized": dict(r=2, lora_alpha=8, target_modules=["q_proj"],
                        trainable_token_indices={key: [SIZES["vocab_size"] + i for i in range(3)] for key in ("embed_tokens", "lm_head")}),
        "resized_save": dict(r=2, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    }),
    "tokens_tied": ("Gemma2Config", dict(tie_word_embeddings=True, head_dim=4, query_pre_attn_scalar=4, sliding_window=8), {
        "embedding": dict(r=2, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices=[7, 8, 30]),
        "resized": dict(r=2, lora_alpha=8, target_modules=["q_proj"], trainable_token_indices=[SIZES["vocab_size"] + i for i in range(3)]),
    }),
}
RESIZED = 3


M64 = (1 << 64) - 1
SEED = 1234  # of the masks, as in tests/adapters.rs


def stream(module):
    """The stream of a module's masks: `Rng::named(0, module)` of src/rng.rs, its low half."""
    h = 0xCBF29CE484222325
    for byte in module.encode(): h = (h ^ byte) * 0x100000001B3 & M64
    for _ in range(2):
        h = h + 0x9E3779B97F4A7C15 & M64
        z = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & M64
        z = (z ^ z >> 27) * 0x94D049BB133111EB & M64
        h = z ^ z >> 31
    return h & 0xFFFFFFFF


class Masked(torch.nn.Module):
    """Dropout with the masks of src/ops/dropout.rs."""
    def __init__(self, rate, module):
        super().__init__()
        self.rate, self.stream = rate, stream(module)

    def forward(self, x):
        if not self.training: return x
        v = np.stack([np.arange(x.numel(), dtype=np.uint32), np.full(x.numel(), SEED, np.uint32), np.full(x.numel(), self.stream, np.uint32)])
        v = v * np.uint32(1664525) + np.uint32(1013904223)
        for last in (False, True):
            v[0] += v[1] * v[2]; v[1] += v[2] * v[0]; v[2] += v[0] * v[1]
            if not last: v ^= v >> np.uint32(16)
        kept = torch.from_numpy(v[0] >= np.uint32(int(self.rate * 2**32))).reshape(x.shape)
        return x * kept / (1 - self.rate)


def base_model(kind, keys):
    config = getattr(transformers, kind)(**(SIZES | keys))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3 + (1.0 if "norm" in name else 0.0))
    return model.eval()


def load_base(folder, name):
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", attn_implementation="eager", dtype=torch.float32)
    if name.startswith("resized"): model.resize_token_embeddings(SIZES["vocab_size"] + RESIZED)
    return model


def run(model, ids, labels):
    out = model(input_ids=ids, labels=labels, use_cache=False)
    return out.logits, out.loss


def make(out):
    for base, (kind, keys, adapters) in BASES.items():
        folder = f"{out}/{base}"
        base_model(kind, keys).save_pretrained(f"{folder}/model")
        for name, lora in adapters.items():
            model = load_base(folder, name)
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora)).train()
            for n, module in model.named_modules():
                if hasattr(module, "lora_dropout") and lora.get("lora_dropout"):
                    module.lora_dropout["default"] = Masked(lora["lora_dropout"], n.removeprefix("base_model.model."))
            with torch.no_grad():
                for n, p in model.named_parameters():
                    if "lora_B" in n: p.copy_(torch.randn(p.shape, generator=g) * 0.2)
                    elif "magnitude" in n: p.mul_(1.0 + 0.3 * torch.rand(p.shape, generator=g))
                    elif "modules_to_save" in n or "trainable_tokens" in n: p.add_(torch.randn(p.shape, generator=g) * 0.1)
            model.save_pretrained(f"{folder}/{name}", save_embedding_layers=False)
            if os.path.exists(f"{folder}/{name}/README.md"): os.remove(f"{folder}/{name}/README.md")
            path = f"{folder}/{name}/adapter_config.json"
            config = json.load(open(path))
            config["base_model_name_or_path"] = "model"
            for key in ("target_modules", "exclude_modules"):  # sets
                if isinstance(config[key], list): config[key].sort()
            json.dump(config, open(path, "w"), indent=2, sort_keys=True)
            ids = torch.randint(3, SIZES["vocab_size"], (2, 12), generator=g)
            if base.startswith("tokens"):  # those that are trained come often
                known = lora.get("trainable_token_indices") or list(range(SIZES["vocab_size"], SIZES["vocab_size"] + RESIZED))
                known = sorted(set(sum(known.values(), []))) if isinstance(known, dict) else known
                ids[:, 1::3] = torch.tensor(known)[torch.randint(0, len(known), ids[:, 1::3].shape, generator=g)]
            labels = ids.clone(); labels[0, :4] = -100
            logits, loss = run(model, ids, labels)
            loss.backward()
            t = {"grad." + n: p.grad.contiguous() for n, p in model.named_parameters() if p.grad is not None}
            params = torch.tensor(model.get_nb_trainable_parameters())
            save_file(t | dict(input_ids=ids, labels=labels, logits=logits.detach().contiguous(), loss=loss.detach().reshape(1), params=params),
                      f"{folder}/{name}/golden.safetensors")
            print("ok", base, name, params.tolist(), float(loss), flush=True)


def check(out, trained):
    bad = 0
    for base, (_, _, adapters) in BASES.items():
        for name in adapters:
            model = load_base(f"{out}/{base}", name)
            model = PeftModel.from_pretrained(model, f"{trained}/{base}/{name}").eval()
            golden = load_file(f"{out}/{base}/{name}/golden.safetensors")
            with torch.no_grad(): logits, _ = run(model, golden["input_ids"], golden["labels"])
            want = load_file(f"{trained}/{base}/{name}/logits.safetensors")["logits"].reshape(logits.shape)
            error, moved = (logits - want).abs().max().item(), (logits - golden["logits"]).abs().max().item()
            bad += not (error <= 1e-4 and moved > 1e-3)
            print(base, name, f"PEFT and luthier differ by {error:.1e}; training moved the logits by {moved:.1e}", flush=True)
    sys.exit(bad)


if sys.argv[1] == "make": make(sys.argv[2])
else: check(sys.argv[2], sys.argv[3])
