"""Convert names and layouts of Google's vision transformers (augreg and others, .npz) to timm's."""

from __future__ import annotations

import re

import torch

from occluded_reid.checkpoint.conversion import Conversion

_BLOCK = r"Transformer/encoderblock_(\d+)/"
_ATTENTION = _BLOCK + r"MultiHeadDotProductAttention_\d/"
_NAMES = {  # "kernel" and "scale" read "weight"; module numbers differ between two code bases
    r"cls": "cls_token",
    r"(?:Transformer/posembed_input/)?pos_embedding": "pos_embed",
    r"embedding/(weight|bias)": r"patch_embed.proj.\1",
    r"Transformer/encoder_norm/(weight|bias)": r"norm.\1",
    _BLOCK + r"LayerNorm_0/(weight|bias)": r"blocks.\1.norm1.\2",
    _BLOCK + r"LayerNorm_[12]/(weight|bias)": r"blocks.\1.norm2.\2",
    _ATTENTION + r"(query|key|value)/(weight|bias)": r"blocks.\1.\2.\3",
    _ATTENTION + r"out/(weight|bias)": r"blocks.\1.attn.proj.\2",
    _BLOCK + r"MlpBlock_\d/Dense_0/(weight|bias)": r"blocks.\1.mlp.fc1.\2",
    _BLOCK + r"MlpBlock_\d/Dense_1/(weight|bias)": r"blocks.\1.mlp.fc2.\2",
}
_PREFIX = re.compile(r"^(opt/target/|params/img/|params/)")


def convert_to_timm(conversion: Conversion) -> None:
    """Convert Google's weights to timm's names and layouts; unknown ones keep their names.

    Google's kernels have the input axis first, timm's the output axis. Google's attention has one
    tensor each for query, key and value, with an axis of heads; timm's has one for all three.
    """
    conversion.leave_out(r"opt/(?!target/).*", "of the optimizer")
    conversion.rename(_translate_name)
    for name, tensor in list(conversion.weights.items()):
        if re.fullmatch(r"blocks\.\d+\.(query|key|value)\.weight", name):
            made, how = tensor.flatten(1).T, "heads joined and transposed"
        elif re.fullmatch(r"blocks\.\d+\.(query|key|value)\.bias", name):
            made, how = tensor.flatten(), "heads joined"
        elif name.endswith("attn.proj.weight"):
            made, how = tensor.flatten(0, 1).T, "heads joined and transposed"
        elif name == "patch_embed.proj.weight":
            made, how = tensor.permute(3, 2, 0, 1), "transposed"
        elif re.fullmatch(r"blocks\.\d+\.mlp\.fc[12]\.weight", name):
            made, how = tensor.T, "transposed"
        else:
            continue
        conversion.replace([name], {name: made.contiguous()}, how)
    _join_queries_keys_values(conversion)


def _translate_name(key: str) -> str | None:
    bare = re.sub(r"/(kernel|scale)$", "/weight", _PREFIX.sub("", key))
    for pattern, name in _NAMES.items():
        if match := re.fullmatch(pattern, bare):
            return match.expand(name)
    return None


def _join_queries_keys_values(conversion: Conversion) -> None:
    for name in list(conversion.weights):
        if match := re.fullmatch(r"(blocks\.\d+)\.query\.(weight|bias)", name):
            block, kind = match.groups()
            three = [f"{block}.{part}.{kind}" for part in ("query", "key", "value")]
            if all(part in conversion.weights for part in three):
                joined = torch.cat([conversion.weights[part] for part in three])
                conversion.replace(three, {f"{block}.attn.qkv.{kind}": joined}, "joined to one")
