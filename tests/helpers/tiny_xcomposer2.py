"""Tiny InternLM-XComposer2 checkpoints in their published layout, with their torch reference.

Sources: issues of InternLM-XComposer (`img_size` 224 and 16 × 16 positions for -7b, 35 × 35 for
-vl-7b; [UNUSED_TOKEN_145] and _146 lie in the vocabulary), `build_mlp.py` and `modeling_*.py` of
the published folders, and the engines that load them: lmdeploy gives the norm after the tower
memory of its own and MindIE leaves it out of what it reads, so the shards do not hold it; lmdeploy
tells the model by `auto_map` because `architectures` differs between the folders. The folders'
own configurations were not seen.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from tests.helpers.checkpoints import write_tokenizer
from tests.helpers.tiny_captioners import (
    Case,
    clip_tower,
    feature,
    make,
    save_bin,
    tensors_of,
    write_json,
)
from tests.helpers.tiny_minicpm_v import save_shards
from tests.helpers.xcomposer2_reference import (
    END,
    HD_NUM,
    META,
    START,
    Dimensions,
    HdLayout,
    XComposer2,
    XComposer2Reference,
)

TILE = 56  # 4KHD's edge of a tile; 336 as published
LAYOUTS = Path(__file__).parents[1] / "convert" / "xcomposer2_layouts.txt"


@dataclasses.dataclass(frozen=True)
class _Kind:
    name: str  # of the published folder
    image_size: int  # the tower's, whose positions the shards hold
    max_length: int = 4096
    hd: bool = False
    safetensors: bool = False
    dtype: torch.dtype = torch.float16
    architecture: str = "InternLMXComposer2ForCausalLM"
    last_norm: bool = False  # the shards hold the norm after the tower, which no code uses
    renamed: bool = False  # the tokenizer calls the last two pieces <|im_end|> and <|im_start|>


KINDS = {
    "vl": _Kind("internlm-xcomposer2-vl-7b", 70),
    "vl-1.8b": _Kind("internlm-xcomposer2-vl-1_8b", 70, safetensors=True, last_norm=True),
    "7b": _Kind("internlm-xcomposer2-7b", 56),
    "4khd": _Kind(
        "internlm-xcomposer2-4khd-7b", TILE, 16384, hd=True, dtype=torch.bfloat16,
        architecture="InternLM2ForCausalLM", renamed=True,
    ),
}  # fmt: skip


def write_checkpoint(folder: Path, kind: str = "vl", seed: int = 0, *, rank: int = 256,
                     meta: bool = True, hd_num: int = HD_NUM) -> Case:  # fmt: skip
    """Write a folder of `kind` (of KINDS) and return it with its reference.

    Without `meta` the reference's prompt has no system message; `hd_num` is the most tiles that the
    reference makes of a picture (4KHD alone).
    """
    folder.mkdir(parents=True)
    spec = KINDS[kind]
    n_vocab = _write_tokenizer(folder, spec.renamed)
    # CLIP-L has 16 heads, which no published file says
    tower = clip_tower(seed, image_size=spec.image_size, hidden_size=64, num_attention_heads=16)
    dimensions = Dimensions(n_vocab, rank=rank)
    model = XComposer2(tower, dimensions, merged=spec.hd)
    _fill(model, seed, spec.dtype)
    tensors = {
        name: tensor.to(spec.dtype)
        for name, tensor in tensors_of(model).items()
        if spec.last_norm or "post_layernorm" not in name
    }
    if spec.safetensors:
        save_shards(folder, tensors, 2)
    else:
        save_bin(folder, tensors)
    write_json(folder / "config.json", _config(spec, dimensions))
    system = f"{START}system\n{META}{END}\n" if meta else ""
    lm: Any = model
    reference = XComposer2Reference(
        [], [feature(tower, -1, 1)], model.vision_proj, lm, folder, f"{system}{START}user\n",
        f"{{}}{END}\n{START}assistant\n", between="", hd_num=hd_num if spec.hd else 0,
    )  # fmt: skip
    reference.pixels = [reference.views]
    return Case("xcomposer2", {"captioner": folder}, reference)


def recorded_layouts() -> dict[tuple[int, int, int], tuple[HdLayout, int]]:
    """Return {(width, height, hd_num): (layout, rows)} of 500 pictures at tiles of 336 pixels."""
    lines = LAYOUTS.read_text(encoding="utf-8").splitlines()
    recorded = [tuple(map(int, line.split())) for line in lines if not line.startswith("#")]
    return {
        (width, height, most): (HdLayout((w, h), left, top, across, down), rows)
        for width, height, most, w, h, left, top, across, down, rows in recorded
    }


def _write_tokenizer(folder: Path, renamed: bool) -> int:
    """Write InternLM2's tokenizer, whose last pieces match anywhere; return their number."""
    n_pieces = write_tokenizer(folder, add_dummy_prefix=False, user_defined_reserved=True)
    path = folder / "tokenizer_config.json"
    decoder = json.loads(path.read_text())["added_tokens_decoder"]
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    chat = [token["content"] for i, token in decoder.items() if int(i) > 2]
    write_json(folder / "special_tokens_map.json", {
        **names, **({"additional_special_tokens": chat} if renamed else {}),
    })  # fmt: skip
    write_json(path, {
        **names, "tokenizer_class": "InternLMXComposer2Tokenizer", "model_max_length": 10**30,
        "clean_up_tokenization_spaces": False,
        "auto_map": {
            "AutoTokenizer": [
                "tokenization_internlm_xcomposer2.InternLMXComposer2Tokenizer", None,
            ],
        },
        **({"added_tokens_decoder": decoder} if renamed else {}),
    })  # fmt: skip
    return n_pieces


def _fill(model: XComposer2, seed: int, dtype: torch.dtype) -> None:
    """Fill `model` so that texts depend on the picture and on which rows the LoRA changes."""
    make(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "tok_embeddings" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif name.endswith("_GN"):
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
            elif "Plora_B" in name:
                parameter.mul_(0.5)
            parameter.copy_(parameter.to(dtype).float())


def _config(spec: _Kind, d: Dimensions) -> dict[str, Any]:
    code = "modeling_internlm_xcomposer2.InternLMXComposer2ForCausalLM"
    return {
        "_name_or_path": f"internlm/{spec.name}", "architectures": [spec.architecture],
        "auto_map": {
            "AutoConfig": "configuration_internlm_xcomposer2.InternLMXcomposer2Config",
            "AutoModel": code, "AutoModelForCausalLM": code,
        },
        "bias": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": d.width, "initializer_range": 0.02, "intermediate_size": d.inner,
        "max_length": spec.max_length, "max_position_embeddings": 32768,
        "model_type": "internlmxcomposer2", "num_attention_heads": d.heads,
        "num_hidden_layers": d.layers, "num_key_value_heads": d.groups, "pad_token_id": 2,
        "rms_norm_eps": 1e-5, "rope_scaling": {"factor": 1.0, "type": "dynamic"},
        "rope_theta": 1000000, "tie_word_embeddings": False,
        "torch_dtype": str(spec.dtype).removeprefix("torch."), "transformers_version": "4.33.1",
        "use_cache": False, "vocab_size": d.n_vocab,
        # 4KHD's code reads no size from here: that of a tile stands in the code
        "img_size": 490 if spec.hd else spec.image_size,
    }  # fmt: skip
