"""Convert published tensors to mmproj files in libmtmd's layout, as llama.cpp's converters do.

Sources: llama.cpp's `tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py` (LLaVA),
`conversion/internvl.py`, `conversion/smolvlm.py`, and the names in `gguf-py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import gguf
import numpy as np
import torch

from tests.helpers import bundles, mmprojs

Tensors = Mapping[str, torch.Tensor]
_LLAVA = [  # llava-hf's names and the original names
    *mmprojs.CLIP_NAMES,
    (r"^multi_modal_projector\.linear_1\.", "mm.0."),
    (r"^multi_modal_projector\.linear_2\.", "mm.2."),
    (r"^model\.mm_projector\.", "mm."),
]
_SMOLVLM = [
    *mmprojs.SIGLIP_NAMES,
    (r"^model\.connector\.modality_projection\.proj\.", "mm.model.fc."),
]
_INTERNVL = [
    (r"^vision_model.*\.class_embedding$", "v.class_embd"),
    (r"^vision_model.*\.patch_embedding\.", "v.patch_embd."),
    (r"^vision_model.*\.position_embedding$", "v.position_embd.weight"),
    (mmprojs.LAYER + r"attn\.proj\.", r"v.blk.\1.attn_out."),
    (mmprojs.LAYER + r"norm([12])\.", r"v.blk.\1.ln\2."),
    (mmprojs.LAYER + r"mlp\.fc1\.", r"v.blk.\1.ffn_up."),
    (mmprojs.LAYER + r"mlp\.fc2\.", r"v.blk.\1.ffn_down."),
    (mmprojs.LAYER + r"ls([12])$", r"v.blk.\1.ls\2.weight"),
    (r"^mlp1\.", "mm.model.mlp."),
]
_BLOCK = 32  # numbers of a row that share a scale in Q8_0
_TABLE = "v.position_embd.weight"
# the projector's matrices; the last one's outputs are the rows
_LAST = re.compile(r"^mm\..*\.weight$")


def llava_mmproj(tensors: Tensors, config: Mapping[str, Any], size: int) -> bundles.GgufParts:
    """Convert a LLaVA with a CLIP tower of `size` × `size` pixels; `config` as in llava-hf."""
    vision, n_layers = config["vision_config"], config["vision_config"]["num_hidden_layers"] - 1
    assert config["vision_feature_layer"] == -2
    parts = _parts("mlp", tensors, _LLAVA, vision, size, n_layers, _CLIP_COLOURS)
    parts.metadata["clip.vision.feature_layer"] = ("array", [n_layers])
    parts.metadata["clip.use_gelu"] = ("bool", False)  # CLIP uses quick GELU
    return parts


def siglip_mmproj(
    tower: Tensors, projector: Tensors, vision: Mapping[str, Any]
) -> bundles.GgufParts:
    """Convert a SigLIP whose last layer is left out, and a projector of two layers (xtuner's)."""
    names = [*mmprojs.SIGLIP_NAMES, (r"^model\.", "mm.")]
    n_layers = vision["num_hidden_layers"] - 1
    # the rows are taken before the norm, which libmtmd would apply if it found it
    tensors = {name: t for name, t in tower.items() if "post_layernorm" not in name} | {**projector}
    parts = _parts("mlp", tensors, names, vision, vision["image_size"], n_layers, _HALVES)
    parts.metadata["clip.vision.feature_layer"] = ("array", [n_layers])
    parts.metadata["clip.use_gelu"] = ("bool", True)
    return parts


def smolvlm_mmproj(
    tensors: Tensors, config: Mapping[str, Any], prepare: Mapping[str, Any]
) -> bundles.GgufParts:
    """Convert a SmolVLM or Idefics3; `prepare` is its preprocessor_config.json."""
    vision = config["vision_config"]
    parts = _parts(
        "idefics3", tensors, _SMOLVLM, vision, vision["image_size"], vision["num_hidden_layers"],
        (prepare["image_mean"], prepare["image_std"]),
    )  # fmt: skip
    parts.metadata |= {
        "clip.use_gelu": ("bool", True),
        "clip.vision.projector.scale_factor": ("uint32", config["scale_factor"]),
        "clip.vision.preproc_image_size": ("uint32", prepare["size"]["longest_edge"]),
    }
    return parts


def internvl_mmproj(tensors: Tensors, config: Mapping[str, Any]) -> bundles.GgufParts:
    """Convert an InternVL in its original layout, with the small tower."""
    vision = config["vision_config"]
    split = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name:
            layer, end = re.search(mmprojs.LAYER, name)[1], name.rsplit(".", 1)[1]  # type: ignore[index]
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                split[f"v.blk.{layer}.attn_{part}.{end}"] = third
    parts = _parts(
        "internvl", tensors, _INTERNVL, vision, config["force_image_size"],
        vision["num_hidden_layers"], _IMAGENET_COLOURS,
    )  # fmt: skip
    parts.tensors |= {name: tensor.float().numpy() for name, tensor in split.items()}
    parts.tensors[_TABLE] = parts.tensors[_TABLE][0]
    parts.tensors["v.class_embd"] = parts.tensors["v.class_embd"].reshape(-1)
    parts.metadata |= {
        "clip.use_gelu": ("bool", True),
        "clip.vision.projector.scale_factor": ("uint32", 2),
        "clip.vision.preproc_min_tiles": ("uint32", config.get("min_dynamic_patch", 1)),
        "clip.vision.preproc_max_tiles": ("uint32", config["max_dynamic_patch"]),
    }
    return parts


def with_positions_turned(parts: bundles.GgufParts) -> bundles.GgufParts:
    """Shift the positions of a tower with a class row so that libmtmd gives patches their own.

    libmtmd puts the class row after the patches, but its position is the table's first.
    """
    turned = {_TABLE: np.roll(parts.tensors[_TABLE], -1, axis=0)}
    return dataclasses.replace(parts, tensors={**parts.tensors, **turned})


def quantized(parts: bundles.GgufParts, kind: str) -> bundles.GgufParts:
    """Return float32 `parts` with matrices in "F16" or "Q8_0", the rest as llama.cpp stores it.

    A matrix whose rows are not whole blocks of Q8_0 stays F16. Source: `tensor_force_quant` and
    `prepare_tensors` of `conversion/base.py`.
    """
    quant = gguf.GGMLQuantizationType[kind]
    file_type = gguf.LlamaFileType[f"MOSTLY_{kind}"]
    metadata = {**parts.metadata, "general.file_type": ("uint32", int(file_type))}
    result = dataclasses.replace(parts, metadata=metadata, tensors={}, quants={})
    for name, values in parts.tensors.items():
        kept = kind != "F16" and name.startswith("v.patch_embd")
        if values.ndim < 2 or name == _TABLE or kept:
            result.tensors[name] = values
        elif kind == "F16" or values.shape[-1] % _BLOCK:
            result.tensors[name] = values.astype(np.float16)
        else:
            result.tensors[name], result.quants[name] = gguf.quants.quantize(values, quant), quant
    return result


_CLIP_COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET_COLOURS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _parts(
    projector: str, tensors: Tensors, names: mmprojs.Names, vision: Mapping[str, Any],
    size: int, n_layers: int, colours: tuple[Sequence[float], Sequence[float]],
) -> bundles.GgufParts:  # fmt: skip
    parts = bundles.GgufParts(architecture="clip")
    for name, theirs in mmprojs.renamed(tensors, names):
        parts.tensors[theirs] = tensors[name].float().contiguous().numpy()
    n_embd = max((k, len(t)) for k, t in parts.tensors.items() if _LAST.match(k))[1]
    parts.metadata = mmprojs.header(
        projector, *colours, vision.get("layer_norm_eps", 1e-5), image_size=size,
        patch_size=vision["patch_size"], embedding_length=vision["hidden_size"],
        feed_forward_length=vision["intermediate_size"], block_count=n_layers,
        projection_dim=n_embd,
        attention__head_count=vision["num_attention_heads"],
    )  # fmt: skip
    return parts
