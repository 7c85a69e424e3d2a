"""Write tiling captioners in their published layouts and dimensions, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from benchmarks.checkpoints.one_tile import Shapes, internlm2_layer, write_config, write_shards
from tests.helpers.checkpoints import write_tokenizer
from tests.helpers.tiny_lm import write_any_tokenizer


def write_smolvlm(above: Path, n_layers: int, *, hidden: int, ffn: int, heads: int) -> None:
    """Write a SmolVLM-*-Instruct: SigLIP-base on tiles of 512 pixels, pictures up to 2048."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
    )

    folder = above / "captioner"
    folder.mkdir(parents=True)
    write_any_tokenizer(folder, "smollm")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    names = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_special_tokens([*names, *places])
    tokenizer.save(str(folder / "tokenizer.json"))
    text = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": n_layers, "num_attention_heads": heads,
        "num_key_value_heads": heads // 3, "max_position_embeddings": 8192, "vocab_size": 49280,
        "rope_theta": 100000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 512, "patch_size": 16,
    }  # fmt: skip
    config = Idefics3Config(text_config=text, vision_config=vision, scale_factor=4)
    with torch.device("meta"):
        model = Idefics3ForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    config.save_pretrained(folder)
    size, tile = {"longest_edge": 2048}, {"longest_edge": 512}
    Idefics3ImageProcessor(size=size, max_image_size=tile).save_pretrained(folder)
    write_shards(folder, [shapes], torch.bfloat16, torch.Generator().manual_seed(0))


def write_internvl(above: Path, n_layers: int) -> None:
    """Write a Mini-InternVL-Chat-2B-V1-5: InternViT-300M on tiles of 448, InternLM2-1.8B."""
    folder = above / "captioner"
    folder.mkdir(parents=True)
    n_pieces = write_tokenizer(folder, add_dummy_prefix=False)
    path = folder / "tokenizer_config.json"
    tokens = json.loads(path.read_text())
    for i, name in enumerate(("<img>", "</img>", "<IMG_CONTEXT>")):
        tokens["added_tokens_decoder"][str(n_pieces + i)] = {"content": name, "special": True}
    path.write_text(json.dumps(tokens))
    e, f, patch, size, n_vocab, hidden, ffn = 1024, 4096, 14, 448, 92553, 2048, 8192
    tower, body = "vision_model.", "language_model.model."
    ends: Shapes = {
        f"{tower}embeddings.class_embedding": (1, 1, e),
        f"{tower}embeddings.position_embedding": (1, 1 + (size // patch) ** 2, e),
        f"{tower}embeddings.patch_embedding.weight": (e, 3, patch, patch),
        f"{tower}embeddings.patch_embedding.bias": (e,),
        "mlp1.0.weight": (4 * e,), "mlp1.0.bias": (4 * e,),
        "mlp1.1.weight": (hidden, 4 * e), "mlp1.1.bias": (hidden,),
        "mlp1.3.weight": (hidden, hidden), "mlp1.3.bias": (hidden,),
        f"{body}tok_embeddings.weight": (n_vocab, hidden), f"{body}norm.weight": (hidden,),
        "language_model.output.weight": (n_vocab, hidden),
    }  # fmt: skip
    tower_layers, shards = 24, [ends]
    for i in range(tower_layers):
        layer = f"{tower}encoder.layers.{i}."
        linears = {"attn.qkv": (3 * e, e), "attn.proj": (e, e), "mlp.fc1": (f, e),
                   "mlp.fc2": (e, f)}  # fmt: skip
        shapes: Shapes = {f"{layer}{name}": (e,) for name in ("ls1", "ls2")}
        for name, shape in linears.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{layer}{name}.{kind}": (e,) for kind in ("weight", "bias")}
        ends |= shapes
    shards += [internlm2_layer(f"{body}layers.{i}.", hidden, 16, ffn) for i in range(n_layers)]
    write_shards(folder, shards, torch.bfloat16, torch.Generator().manual_seed(0))
    vision: dict[str, Any] = {
        "hidden_size": e, "intermediate_size": f, "num_hidden_layers": tower_layers,
        "num_attention_heads": 16, "image_size": size, "patch_size": patch,
        "norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True,
    }  # fmt: skip
    text = {
        "model_type": "internlm2", "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": n_layers, "num_attention_heads": 16, "num_key_value_heads": 8,
        "vocab_size": n_vocab, "max_position_embeddings": 32768, "rope_theta": 1000000,
        "rms_norm_eps": 1e-5, "bias": False,
    }  # fmt: skip
    write_config(
        folder, model_type="internvl_chat", force_image_size=size, downsample_ratio=0.5,
        dynamic_image_size=True, use_thumbnail=True, max_dynamic_patch=12, ps_version="v2",
        template="internlm2-chat", vision_config=vision, llm_config=text,
    )  # fmt: skip
