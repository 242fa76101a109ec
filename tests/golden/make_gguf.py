"""GGUF goldens by llama.cpp's own Python package (`pip install gguf safetensors torch`).

    python make_gguf.py blocks OUT            blocks of each format with the values they stand for: OUT/blocks.safetensors
"""

import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, quants
from safetensors.numpy import save_file

FORMATS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# where a block's f16 scales are
SCALES = {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def quantize(x, name):
    """x [O, C] as blocks [O, bytes]. The package has no quantizer for the K formats: theirs are random codes of the size of x."""
    if name not in SCALES:
        return quants.quantize(x.astype(np.float32), Type[name])
    length, size = GGML_QUANT_SIZES[Type[name]]
    rng = np.random.default_rng(abs(int(x.flat[0] * 1e6)) + 1)
    blocks = rng.integers(0, 256, (x.shape[0], x.shape[1] // length, size), dtype=np.uint8)
    spread = float(np.std(x))
    scale = {"Q4_K": spread / 220, "Q5_K": spread / 450, "Q6_K": spread / 1400}[name]
    for place in SCALES[name]:
        # a minimum a bit above half of the range keeps the mean near zero
        d = scale * (7.5 if name == "Q4_K" else 15.5) if place == 2 else scale
        d = (d * rng.uniform(0.8, 1.2, blocks.shape[:2])).astype(np.float16)
        blocks[..., place : place + 2] = d[..., None].view(np.uint8)
    return blocks.reshape(x.shape[0], -1)


def blocks(out):
    rng = np.random.default_rng(1)
    tensors = {}
    for name in FORMATS:
        packed = quantize(rng.normal(size=(3, 768)).astype(np.float32), name)
        tensors[f"{name.lower()}.blocks"] = packed.reshape(-1)
        tensors[f"{name.lower()}.values"] = quants.dequantize(packed, Type[name]).astype(np.float32).reshape(-1)
    save_file(tensors, out / "blocks.safetensors")


if __name__ == "__main__":
    what, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    {"blocks": blocks}[what](out, *sys.argv[3:])
