"""Write Mini-Gemini-2B in its published layout and dimensions, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.checkpoints.one_tile import (
    C_FFN,
    C_HEADS,
    C_HIDDEN,
    C_LAYERS,
    C_SIZE,
    PATCH,
    Shapes,
    vision_shapes,
    write_config,
    write_file,
    write_shards,
)
from tests.helpers.tiny_lm import write_any_tokenizer

_DEPTHS, _WIDTHS = (3, 3, 27, 3), (192, 384, 768, 1536)  # ConvNeXt-L


def write_mini_gemini(folder: Path, n_layers: int) -> None:
    """Write Gemma-2B with the mining, and beside it CLIP-L/14-336 and ConvNeXt-L."""
    generator = torch.Generator().manual_seed(0)
    captioner, vision, aux = (folder / name for name in ("captioner", "vision", "vision_aux"))
    for path in (captioner, vision, aux):
        path.mkdir(parents=True)
    write_any_tokenizer(captioner, "gemma")
    hidden, ffn, n_vocab, n_cells = 2048, 16384, 256000, sum(_WIDTHS)
    ends: Shapes = {
        "model.embed_tokens.weight": (n_vocab, hidden), "model.norm.weight": (hidden,),
        "model.mm_projector.0.weight": (hidden, C_HIDDEN),
        "model.mm_projector.2.weight": (hidden, hidden),
        "model.mm_projector.0.bias": (hidden,), "model.mm_projector.2.bias": (hidden,),
    }  # fmt: skip
    for part, width in (("query", C_HIDDEN), ("aux", n_cells), ("val", n_cells)):
        lead = f"model.vlm_uni_{part}_projector."
        ends |= {f"{lead}0.weight": (width,), f"{lead}0.bias": (width,)}
        ends |= {f"{lead}1.weight": (C_HIDDEN, width), f"{lead}1.bias": (C_HIDDEN,)}
    layers = [_gemma_layer(f"model.layers.{i}.", hidden, ffn) for i in range(n_layers)]
    write_shards(captioner, [*layers, ends], torch.bfloat16, generator)
    write_config(
        captioner, model_type="mgm_gemma", hidden_size=hidden, intermediate_size=ffn,
        num_hidden_layers=n_layers, num_attention_heads=8, num_key_value_heads=1, head_dim=256,
        vocab_size=n_vocab, max_position_embeddings=8192, rms_norm_eps=1e-6, hidden_act="gelu",
        mm_hidden_size=C_HIDDEN, mm_hidden_size_aux=n_cells, mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2, mm_vision_select_feature="patch", image_aspect_ratio="pad",
        image_size_aux=768, image_grid=1, image_global=False,
        mm_vision_tower="openai/clip-vit-large-patch14-336",
        mm_vision_tower_aux="laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
    )  # fmt: skip
    _write_clip(vision, generator)
    file = aux / "open_clip_model.safetensors"
    write_file(file, _convnext(), torch.float32, generator)


def _gemma_layer(layer: str, e: int, f: int) -> Shapes:
    shapes: Shapes = {f"{layer}self_attn.{part}_proj.weight": (e, e) for part in "qo"}
    shapes |= {f"{layer}self_attn.{part}_proj.weight": (256, e) for part in "kv"}
    shapes |= {f"{layer}mlp.{part}_proj.weight": (f, e) for part in ("gate", "up")}
    norms = (f"{layer}{name}_layernorm.weight" for name in ("input", "post_attention"))
    return {**shapes, f"{layer}mlp.down_proj.weight": (e, f), **dict.fromkeys(norms, (e,))}


def _write_clip(folder: Path, generator: torch.Generator) -> None:
    ahead: Shapes = {"vision_model.embeddings.class_embedding": (C_HIDDEN,)}
    ahead |= {f"vision_model.pre_layrnorm.{kind}": (C_HIDDEN,) for kind in ("weight", "bias")}
    shapes = vision_shapes(C_LAYERS, C_HIDDEN, C_FFN, 1 + (C_SIZE // PATCH) ** 2)
    del shapes["vision_model.embeddings.patch_embedding.bias"]
    write_file(folder / "model.safetensors", {**shapes, **ahead}, torch.float32, generator)
    write_config(
        folder, model_type="clip_vision_model", hidden_size=C_HIDDEN, intermediate_size=C_FFN,
        num_hidden_layers=C_LAYERS, num_attention_heads=C_HEADS, image_size=C_SIZE,
        patch_size=PATCH,
    )  # fmt: skip


def _convnext() -> Shapes:
    lead, first = "visual.trunk.", _WIDTHS[0]
    shapes: Shapes = {f"{lead}stem.0.weight": (first, 3, 4, 4), f"{lead}stem.0.bias": (first,)}
    shapes |= _norm(f"{lead}stem.1", first)
    for i, (depth, e) in enumerate(zip(_DEPTHS, _WIDTHS, strict=True)):
        stage = f"{lead}stages.{i}."
        if i:
            before = _WIDTHS[i - 1]
            shapes |= _norm(f"{stage}downsample.0", before)
            shapes |= {f"{stage}downsample.1.weight": (e, before, 2, 2),
                       f"{stage}downsample.1.bias": (e,)}  # fmt: skip
        for b in range(depth):
            block = f"{stage}blocks.{b}."
            shapes |= {f"{block}conv_dw.weight": (e, 1, 7, 7), f"{block}conv_dw.bias": (e,)}
            shapes |= {f"{block}mlp.fc1.weight": (4 * e, e), f"{block}mlp.fc1.bias": (4 * e,)}
            shapes |= {f"{block}mlp.fc2.weight": (e, 4 * e), f"{block}mlp.fc2.bias": (e,)}
            shapes |= {f"{block}gamma": (e,), **_norm(f"{block}norm", e)}
    return shapes


def _norm(name: str, e: int) -> Shapes:
    return {f"{name}.weight": (e,), f"{name}.bias": (e,)}
