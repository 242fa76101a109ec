"""Blocks of every format that we write, by ggml's own quantizers (`pip install llama-cpp-python numpy safetensors`).

    python make_ggml_blocks.py OUT      OUT/ggml_blocks.safetensors: `values` f32 [N, 256] and each format's bytes

The library must be built without fused multiply-adds (GGML_NATIVE=OFF), as its releases are: a fused sum has other last bits.
"""

import ctypes
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from safetensors.numpy import save_file

FORMATS = {"Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
           "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210)}


def values():
    rng = np.random.default_rng(7)
    rows = [rng.normal(0, 10.0 ** rng.uniform(-4, 1), 256) for _ in range(40)]
    rows += [rng.standard_t(2, 256) * 0.02 for _ in range(8)]  # outliers
    rows += [np.abs(rng.normal(0, 1, 256)) + 1, -np.abs(rng.normal(0, 1, 256)) - 1]  # one sign
    rows += [np.zeros(256), np.full(256, 0.25), np.full(256, -3.0), np.full(256, 1e-20)]
    rows += [np.where(np.arange(256) < 32, rng.normal(0, 1, 256), 0), np.where(np.arange(256) % 16 == 3, 5.0, 0)]
    rows += [np.arange(256) - 128.0, np.tile([1.0, -1.0], 128), rng.normal(0, 1e-7, 256), rng.uniform(-1, 1, 256) * 1e3]
    rows += [np.where(np.arange(256) < 32, 100.0 * rng.normal(0, 1, 256), 1e-3 * rng.normal(0, 1, 256)) for _ in range(4)]
    return np.stack(rows).astype(np.float32)


def main(out):
    lib = next(Path(llama_cpp.__file__).parent.glob("lib/*ggml-base*"))
    ggml = ctypes.CDLL(str(lib))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                                         ctypes.c_int64, ctypes.c_void_p]
    x = values()
    tensors = {"values": x}
    for name, (kind, length, size) in FORMATS.items():
        blocks = np.zeros((x.shape[0], 256 // length * size), np.uint8)
        done = ggml.ggml_quantize_chunk(kind, x.ctypes.data, blocks.ctypes.data, 0, x.shape[0], 256, None)
        assert done == blocks.nbytes
        tensors[name] = blocks
    save_file(tensors, Path(out) / "ggml_blocks.safetensors")


main(sys.argv[1])
