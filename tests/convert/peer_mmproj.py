"""mmproj files in libmtmd's layout, made from published tensors as llama.cpp's converters do.

Sources: llama.cpp's `tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py` (LLaVA),
`conversion/internvl.py`, and the names in `gguf-py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import bundles
import mmprojs
import torch

Tensors = Mapping[str, torch.Tensor]
_LAYER = r"^.*encoder\.layers\.(\d+)\."
# (pattern of a published name, llama.cpp's name); what fits none is left out, as there
_LLAVA = [
    (r"^vision_tower.*\.class_embedding$", "v.class_embd"),
    (r"^vision_tower.*\.patch_embedding\.weight$", "v.patch_embd.weight"),
    (r"^vision_tower.*\.position_embedding\.weight$", "v.position_embd.weight"),
    (r"^vision_tower.*\.pre_layrnorm\.", "v.pre_ln."),
    (_LAYER + r"self_attn\.([qkv])_proj\.", r"v.blk.\1.attn_\2."),
    (_LAYER + r"self_attn\.out_proj\.", r"v.blk.\1.attn_out."),
    (_LAYER + r"layer_norm([12])\.", r"v.blk.\1.ln\2."),
    (_LAYER + r"mlp\.fc1\.", r"v.blk.\1.ffn_up."),
    (_LAYER + r"mlp\.fc2\.", r"v.blk.\1.ffn_down."),
    (r"^multi_modal_projector\.linear_1\.", "mm.0."),
    (r"^multi_modal_projector\.linear_2\.", "mm.2."),
]
_INTERNVL = [
    (r"^vision_model.*\.class_embedding$", "v.class_embd"),
    (r"^vision_model.*\.patch_embedding\.", "v.patch_embd."),
    (r"^vision_model.*\.position_embedding$", "v.position_embd.weight"),
    (_LAYER + r"attn\.proj\.", r"v.blk.\1.attn_out."),
    (_LAYER + r"norm([12])\.", r"v.blk.\1.ln\2."),
    (_LAYER + r"mlp\.fc1\.", r"v.blk.\1.ffn_up."),
    (_LAYER + r"mlp\.fc2\.", r"v.blk.\1.ffn_down."),
    (_LAYER + r"ls([12])$", r"v.blk.\1.ls\2.weight"),
    (r"^mlp1\.", "mm.model.mlp."),
]


def llava_mmproj(tensors: Tensors, config: Mapping[str, Any], size: int) -> bundles.GgufParts:
    """Of a llava-hf checkpoint with a CLIP tower, `size` pixels an edge."""
    vision, n_layers = config["vision_config"], config["vision_config"]["num_hidden_layers"] - 1
    assert config["vision_feature_layer"] == -2
    parts = _parts("mlp", tensors, _LLAVA, vision, size, n_layers, _CLIP_COLOURS)
    parts.metadata["clip.vision.feature_layer"] = ("array", [n_layers])
    parts.metadata["clip.use_gelu"] = ("bool", False)  # CLIP's is the quick one
    return parts


def internvl_mmproj(tensors: Tensors, config: Mapping[str, Any]) -> bundles.GgufParts:
    """Of an InternVL checkpoint in its original layout, with the small tower."""
    vision = config["vision_config"]
    split = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name:
            layer, end = re.search(_LAYER, name)[1], name.rsplit(".", 1)[1]  # type: ignore[index]
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                split[f"v.blk.{layer}.attn_{part}.{end}"] = third
    parts = _parts(
        "internvl", tensors, _INTERNVL, vision, config["force_image_size"],
        vision["num_hidden_layers"], _IMAGENET_COLOURS,
    )  # fmt: skip
    parts.tensors |= {name: tensor.float().numpy() for name, tensor in split.items()}
    table = "v.position_embd.weight"
    parts.tensors[table] = parts.tensors[table][0]
    parts.tensors["v.class_embd"] = parts.tensors["v.class_embd"].reshape(-1)
    parts.metadata |= {
        "clip.use_gelu": ("bool", True),
        "clip.vision.projector.scale_factor": ("uint32", 2),
        "clip.vision.preproc_min_tiles": ("uint32", config["min_dynamic_patch"]),
        "clip.vision.preproc_max_tiles": ("uint32", config["max_dynamic_patch"]),
    }
    return parts


_CLIP_COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET_COLOURS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _parts(
    projector: str, tensors: Tensors, names: list[tuple[str, str]], vision: Mapping[str, Any],
    size: int, n_layers: int, colours: tuple[tuple[float, ...], tuple[float, ...]],
) -> bundles.GgufParts:  # fmt: skip
    parts = bundles.GgufParts(architecture="clip")
    for name, tensor in tensors.items():
        for pattern, ours in names:
            found = re.match(pattern, name)
            if found:
                renamed = found.expand(ours) + name[found.end() :]
                parts.tensors[renamed] = tensor.float().contiguous().numpy()
    last = max(k for k in parts.tensors if k.startswith("mm.") and k.endswith(".bias"))
    parts.metadata = mmprojs.header(
        projector, *colours, vision.get("layer_norm_eps", 1e-5), image_size=size,
        patch_size=vision["patch_size"], embedding_length=vision["hidden_size"],
        feed_forward_length=vision["intermediate_size"], block_count=n_layers,
        projection_dim=len(parts.tensors[last]),
        attention__head_count=vision["num_attention_heads"],
    )  # fmt: skip
    return parts
