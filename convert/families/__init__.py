"""Checkpoint layouts by name: one module a family, imported when asked for.

A family module has `convert(out, options, progress, **folders_and_switches) -> Manifest`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A layout that `convert` reads, and how a folder of it is known."""

    module: str
    summary: str
    model_types: tuple[str, ...] = ()  # of its config.json
    signs: tuple[str, ...] = ()  # fields of its config.json, or names in the folder


FAMILIES = {
    "prismcaptioner": Family(
        "edgeprism.convert.families.prismcaptioner",
        "PrismCaptioner: SigLIP, projector, InternLM2 with a LoRA adapter",
        signs=("projector", "llm_adapter"),
    ),
    "llava": Family(
        "edgeprism.convert.families.llava",
        "LLaVA v1 and 1.5, ShareGPT4V, LLaVA-NeXT-Interleave: original and llava-hf layouts",
        ("llava", "llava_llama", "llava_mistral", "llava_qwen", "share4v"),
        ("mm_hidden_size", "mm_vision_tower", "text_config", "vision_config"),
    ),
    "llava-next": Family(
        "edgeprism.convert.families.llava_next",
        "LLaVA-NeXT (1.6): as LLaVA, with tiles; original and llava-hf layouts",
        ("llava_next", "llava_llama", "llava_mistral", "llava_qwen"),
        ("image_grid_pinpoints", "mm_patch_merge_type", "text_config", "vision_config"),
    ),
    "vila": Family(
        "edgeprism.convert.families.vila",
        "VILA-1.5: SigLIP or CLIP, downsampling projector, a Llama; VILA 1.0: as LLaVA-1.5",
        ("llava_llama",),
        ("llm", "mm_projector", "vision_tower", "mm_projector_cfg"),
    ),
    "prismatic": Family(
        "edgeprism.convert.families.prismatic",
        "Prismatic VLMs: one or two of DINOv2, SigLIP and CLIP (timm), MLP, a Llama or Mistral",
        signs=("checkpoints", "vision_backbone_id", "llm_backbone_id", "model"),
    ),
    "internvl": Family(
        "edgeprism.convert.families.internvl",
        "InternVL: InternViT on tiles, pixel shuffle, MLP; 1.5 with InternLM2, -hf with Qwen2",
        ("internvl_chat", "internvl"),
        ("llm_config", "vision_config", "force_image_size", "downsample_ratio"),
    ),
    "smolvlm": Family(
        "edgeprism.convert.families.smolvlm",
        "SmolVLM, SmolVLM2, Idefics3: SigLIP on tiles, pixel shuffle, SmolLM2 or Llama 3",
        ("idefics3", "smolvlm"),
        ("text_config", "vision_config", "scale_factor"),
    ),
}
