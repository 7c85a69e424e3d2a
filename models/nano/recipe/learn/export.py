"""Write a trained nano in the layout of PrismCaptioner checkpoints, ready for ``convert``.

``python -m edgeprism.models.nano.recipe.learn.export RUN/caption.pt OUT`` writes:

    captioner/             edgeprism.json: its default instruction and its notice
    captioner/projector/   config.json, model.safetensors (model.0.*, model.2.*)
    llm/                   InternLM2 names and packing, tokenizer.model, tokenizer_config.json
    vision/                SigLIP names, preprocessor_config.json

There is no ``llm_adapter``, because the language model itself was trained. As in the published
config, the vision config lists one layer more than runs (the feature is ``hidden_states[-2]``). The
export writes this layer and the last norm with their initial values; ``convert`` never reads them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from edgeprism.models.nano.recipe.learn.data import heldout_scenes
from edgeprism.models.nano.recipe.learn.model import Nano, NanoConfig
from edgeprism.models.nano.recipe.learn.tokenizer import (
    BOS,
    DEFAULT_INSTRUCTION,
    EOS,
    FOCUS,
    SPECIALS,
    UNK,
    VOCAB,
    tokenizer,
)
from edgeprism.models.nano.recipe.world.grammar import NOTHING, scene_to_long
from edgeprism.models.nano.recipe.world.scene import Sampling

Tensors = dict[str, Tensor]

README = """---
license: Apache-2.0
---
The {part} checkpoint of nano, EdgePrism's built-in captioner of drawn pictures; trained from
scratch by models/nano/recipe/train.py.
"""
MAX_TOKENS = 96
NOTICE = (
    "nano knows drawn pictures (icons, emoji, plain shapes, short printed words, simple charts), "
    "not photographs: pull a larger captioner for those."
)


def checkpoint_to_model(path: Path) -> Nano:
    """Return the averaged model of a training checkpoint, on the CPU, in eval mode."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = Nano(NanoConfig(**saved["config"]))
    model.load_state_dict(saved["model"])
    return model.eval()


def _layer_to_siglip(layer: Tensors, prefix: str) -> Tensors:
    """Return one ``VisionLayer``'s tensors under SigLIP's names, with separate q, k and v."""
    out: Tensors = {}
    for kind in ("weight", "bias"):
        parts = layer[f"qkv.{kind}"].chunk(3)
        for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
            out[f"{prefix}.self_attn.{name}.{kind}"] = part
        out[f"{prefix}.self_attn.out_proj.{kind}"] = layer[f"out.{kind}"]
        out[f"{prefix}.layer_norm1.{kind}"] = layer[f"norm1.{kind}"]
        out[f"{prefix}.layer_norm2.{kind}"] = layer[f"norm2.{kind}"]
        out[f"{prefix}.mlp.fc1.{kind}"] = layer[f"fc1.{kind}"]
        out[f"{prefix}.mlp.fc2.{kind}"] = layer[f"fc2.{kind}"]
    return out


def model_to_vision(model: Nano) -> tuple[dict[str, Any], Tensors]:
    """Return config and tensors of the ``vision`` folder."""
    c, root = model.config, "vision_model"
    tensors: Tensors = {
        f"{root}.embeddings.patch_embedding.weight": model.tower.embed.weight.view(
            c.vision_width, 3, c.patch, c.patch
        ),
        f"{root}.embeddings.patch_embedding.bias": model.tower.embed.bias,
        f"{root}.embeddings.position_embedding.weight": model.tower.position,
        f"{root}.post_layernorm.weight": torch.ones(c.vision_width),
        f"{root}.post_layernorm.bias": torch.zeros(c.vision_width),
    }
    layers = [dict(layer.state_dict()) for layer in model.tower.layers]
    unused = {
        name: torch.ones_like(t)
        if name in ("norm1.weight", "norm2.weight")
        else torch.zeros_like(t)
        for name, t in layers[0].items()
    }
    for i, layer in enumerate([*layers, unused]):
        tensors |= _layer_to_siglip(layer, f"{root}.encoder.layers.{i}")
    config = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": c.vision_width,
            "intermediate_size": c.vision_ffn,
            "num_hidden_layers": c.vision_layers + 1,
            "num_attention_heads": c.vision_heads,
            "num_channels": 3,
            "image_size": c.image_size,
            "patch_size": c.patch,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": c.layer_norm_eps,
            "attention_dropout": 0.0,
            "vision_use_head": False,
        },
    }
    return config, tensors


def model_to_llm(model: Nano) -> tuple[dict[str, Any], Tensors]:
    """Return config and tensors of the ``llm`` folder."""
    c, decoder = model.config, model.decoder
    tensors: Tensors = {
        "model.tok_embeddings.weight": decoder.tok_embeddings.weight,
        "model.norm.weight": decoder.norm.weight,
        "output.weight": decoder.output.weight,
    }
    for i, layer in enumerate(decoder.layers):
        for name, tensor in layer.state_dict().items():
            part = name.split(".")[0]
            group = {"wqkv": "attention.", "wo": "attention."}.get(
                part, "feed_forward." if part in ("w1", "w2", "w3") else ""
            )
            tensors[f"model.layers.{i}.{group}{name}"] = tensor
    config = {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        "hidden_act": "silu",
        "hidden_size": c.lm_width,
        "intermediate_size": c.lm_ffn,
        "max_position_embeddings": c.positions,
        "num_attention_heads": c.lm_heads,
        "num_hidden_layers": c.lm_layers,
        "num_key_value_heads": c.lm_kv_heads,
        "rms_norm_eps": c.rms_eps,
        "rope_scaling": None,
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": c.vocab,
    }
    return config, tensors


def tokenizer_config() -> dict[str, Any]:
    """Return the names of the special ids in the form of InternLM2's file."""
    names = {UNK: "<unk>", BOS: "<s>", EOS: "</s>"}
    names |= {VOCAB - len(SPECIALS) + i: name for i, name in enumerate(SPECIALS)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(number): {"content": name, **flags, "special": True}
            for number, name in names.items()
        },
        "additional_special_tokens": list(SPECIALS),
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "tokenizer_class": "InternLM2Tokenizer",
    }


def model_to_projector(model: Nano) -> tuple[dict[str, Any], Tensors]:
    """Return config and tensors of the ``captioner/projector`` folder."""
    tensors = {f"model.{name}": t for name, t in model.projector.state_dict().items()}
    config = {
        "model_type": "projector",
        "bias": True,
        "depth": 2,
        "hidden_act": "gelu",
        "llm_hidden_size": model.config.lm_width,
        "visual_hidden_size": model.config.vision_width,
    }
    return config, tensors


def card() -> dict[str, Any]:
    """Return the texts that the converter writes to the manifest in place of its defaults."""
    return {
        "name": "nano",
        "license": "Apache-2.0",
        "notice": NOTICE,
        "photographs": False,
        "unknown": [NOTHING],
        "default_instruction": DEFAULT_INSTRUCTION,
        "focus_instruction": FOCUS + "{focus}",
        "max_tokens": MAX_TOKENS,
        "parity_texts": [scene_to_long(s) for s in heldout_scenes(2, 8, Sampling(unseen=True))],
    }


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", config)
    plain = {name: t.detach().float().clone().contiguous() for name, t in tensors.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})


def export(model: Nano, folder: Path) -> None:
    """Write the three folders; replace an earlier export once everything is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    _write(fresh / "captioner" / "projector", *model_to_projector(model))
    _write(fresh / "llm", *model_to_llm(model))
    (fresh / "llm" / "tokenizer.model").write_bytes(tokenizer().serialized_model_proto())
    _write_json(fresh / "llm" / "tokenizer_config.json", tokenizer_config())
    _write(fresh / "vision", *model_to_vision(model))
    side = model.config.image_size
    preprocessor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    _write_json(fresh / "vision" / "preprocessor_config.json", preprocessor)
    _write_json(fresh / "captioner" / "edgeprism.json", card())
    for part in ("captioner", "llm", "vision"):
        (fresh / part / "README.md").write_text(README.format(part=part), encoding="utf-8")
    fresh.chmod(0o755)
    old = None
    if folder.exists():
        old = folder.rename(fresh.with_name(fresh.name + ".old"))
    fresh.rename(folder)
    if old is not None:
        shutil.rmtree(old)


def main(arguments: list[str] | None = None) -> int:
    """Export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path, help="caption.pt of a training run")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args(arguments)
    export(checkpoint_to_model(options.checkpoint), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
