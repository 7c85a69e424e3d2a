"""Rewrite a tiny checkpoint as transformers 5 would have saved it.

The differences were read off checkpoints that transformers 5.24.0 saved of tiny LLaVA, LLaVA-NeXT,
InternVL, Idefics3, SmolVLM, CLIP, SigLIP, Llama, Mistral and Qwen2 models and their processors.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

VERSION = "5.24.0"


def rewrite(folder: Path, *, moved: bool = False) -> None:
    """Rewrite the checkpoint in `folder`; `moved` also gives the tensors the names of the classes.

    transformers 5 saves older names where it loaded older files, and its classes' own names
    (`model.language_model.…`) where other tools save a state dict.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    inner = config.get("text_config") if "text_config" in config else config
    if isinstance(inner, dict) and "num_key_value_heads" in inner:
        _merge_rope(inner)
    if "text_config" in config:
        tied = (config.get("text_config") or {}).get("tie_word_embeddings", False)
        config["tie_word_embeddings"] = bool(tied or config.get("tie_word_embeddings"))
    config.pop("torch_dtype", None)
    path.write_text(json.dumps({**config, "dtype": "float32", "transformers_version": VERSION}))
    _nest_processor(folder, whole=any(name in config for name in ("text_config", "mm_hidden_size")))
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        renamed = {_newer_name(name, moved): tensor for name, tensor in tensors.items()}
        save_file({name: tensor.clone() for name, tensor in renamed.items()}, file)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        names = content["weight_map"].items()
        content["weight_map"] = {_newer_name(name, moved): shard for name, shard in names}
        index.write_text(json.dumps(content))


def _merge_rope(fields: dict[str, Any]) -> None:
    scaling = fields.pop("rope_scaling", None) or {"rope_type": "default"}
    scaling = {**scaling, "rope_type": scaling.get("rope_type", scaling.get("type"))}
    scaling.pop("type", None)
    theta = fields.pop("rope_theta", 10000.0)
    fields["rope_parameters"] = {**scaling, "rope_theta": theta}


def _nest_processor(folder: Path, *, whole: bool) -> None:
    """A whole captioner's processor is one file; a vision model alone keeps the older one."""
    older = folder / "preprocessor_config.json"
    if whole and older.is_file():
        settings = json.loads(older.read_text())
        newer = {"image_processor": settings, "processor_class": "Processor", "patch_size": 14}
        (folder / "processor_config.json").write_text(json.dumps(newer))
        older.unlink()


def _newer_name(name: str, moved: bool) -> str:
    name = name.replace("vision_tower.vision_model.", "vision_tower.")
    if moved:
        name = re.sub(r"^language_model\.model\.", "model.language_model.", name)
        name = re.sub(r"^language_model\.lm_head", "lm_head", name)
        name = re.sub(r"^(vision_tower|multi_modal_projector|image_newline)", r"model.\1", name)
    return name
