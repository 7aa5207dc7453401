"""A small vision transformer, and its weights in the formats of other code bases."""

from __future__ import annotations

import numpy as np
import torch

from occluded_reid.modeling.vit import TokenViT

SIZES = dict(img_size=(32, 16), patch_size=(8, 8), embed_dim=12, depth=2, num_heads=3)


def build_vit(kind=TokenViT, stride=(8, 8), **changes):
    """Build a small transformer with random weights in every parameter, in evaluation mode."""
    model = kind(stride=stride, **{**SIZES, **changes})
    for parameter in model.parameters():  # biases and the class token start at 0
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def add_prefix(weights, prefix):
    """Put ``prefix`` before every key."""
    return {prefix + key: value for key, value in weights.items()}


def to_google_format(weights):
    """Give a transformer of 12 channels and 3 heads the names and layouts of Google's files."""
    ours = {key: value.double().numpy() for key, value in weights.items()}
    prefix, arrays = "Transformer/", {"cls": ours["cls_token"]}
    arrays[prefix + "posembed_input/pos_embedding"] = ours["pos_embed"]
    arrays["embedding/kernel"] = ours["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    arrays["embedding/bias"] = ours["patch_embed.proj.bias"]
    norms = {"norm": "encoder_norm"}
    for i in range(2):
        block, target = f"blocks.{i}.", f"{prefix}encoderblock_{i}/"
        norms |= {f"{block}norm1": f"encoderblock_{i}/LayerNorm_0"}
        norms |= {f"{block}norm2": f"encoderblock_{i}/LayerNorm_2"}
        attention = target + "MultiHeadDotProductAttention_1/"
        kernels = np.split(ours[block + "attn.qkv.weight"], 3)
        biases = np.split(ours[block + "attn.qkv.bias"], 3)
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            arrays[f"{attention}{name}/kernel"] = kernel.T.reshape(12, 3, 4)
            arrays[f"{attention}{name}/bias"] = bias.reshape(3, 4)
        arrays[attention + "out/kernel"] = ours[block + "attn.proj.weight"].T.reshape(3, 4, 12)
        arrays[attention + "out/bias"] = ours[block + "attn.proj.bias"]
        for layer in (0, 1):
            linear = f"{block}mlp.fc{layer + 1}"
            arrays[f"{target}MlpBlock_3/Dense_{layer}/kernel"] = ours[linear + ".weight"].T
            arrays[f"{target}MlpBlock_3/Dense_{layer}/bias"] = ours[linear + ".bias"]
    for name, theirs in norms.items():
        arrays[f"{prefix}{theirs}/scale"] = ours[name + ".weight"]
        arrays[f"{prefix}{theirs}/bias"] = ours[name + ".bias"]
    return {key: value.astype(np.float32) for key, value in arrays.items()}
