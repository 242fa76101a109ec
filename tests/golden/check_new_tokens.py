"""Results with new tokens, as a user of transformers and PEFT loads them: the same tokens and the same logits.

    LUTHIER_TOKENS=DIR cargo test --release --test new_tokens && python check_new_tokens.py DIR
"""
import os, sys
sys.path.pop(0)  # the goldens beside this file have a folder `bitsandbytes`, which is no module
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

bad = 0
root = sys.argv[1]
for name in sorted(os.listdir(root)):
    folder = f"{root}/{name}/result"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if os.path.exists(f"{folder}/adapter_config.json"):
        import json
        config = json.load(open(f"{folder}/adapter_config.json"))
        config["base_model_name_or_path"] = os.path.abspath(f"{root}/{name}/model")
        json.dump(config, open(f"{folder}/adapter_config.json", "w"))
        model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = open(f"{root}/{name}/text.txt").read()
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    want = load_file(f"{root}/{name}/logits.safetensors")["logits"]
    with torch.no_grad(): logits = model.eval()(input_ids=ids).logits[0]
    columns = min(logits.shape[-1], want.shape[-1])
    error = (logits[:, :columns] - want[:, :columns]).abs().max().item()
    names = (tokenizer.eos_token, tokenizer.pad_token, tokenizer.decode(ids[0], skip_special_tokens=True))
    good = error <= 1e-4 and ids.shape[1] == want.shape[0] and names == ("<|end|>", "<|fill|>", "2 + 1?<call>3</call>")
    print(name, "ok" if good else "BAD", tuple(logits.shape), tuple(want.shape), f"{error:.1e}", names, flush=True)
    bad += not good
sys.exit(bad)
