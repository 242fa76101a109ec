"""Counts of parameters and tensors, by transformers, of the configs in published.json: those of published models, as their folders had
them (keys that say nothing about the decoder left out).

    python published.py
"""
import json, os
import torch
from transformers import AutoConfig, AutoModelForCausalLM

file = os.path.join(os.path.dirname(os.path.abspath(__file__)), "published.json")
models = json.load(open(file))
for name, model in models.items():
    config = dict(model["config"])
    with torch.device("meta"):
        parameters = list(AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).parameters())
    model["parameters"], model["tensors"] = sum(p.numel() for p in parameters), len(parameters)
    print(name, config["model_type"], model["parameters"], model["tensors"], flush=True)
json.dump(models, open(file, "w"), indent=1)
