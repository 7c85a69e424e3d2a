"""Tiny CogVLM and CogVLM2 checkpoints in their published layouts, with a reference in torch.

Sources: the published folders `cogvlm-chat-hf` (whose tokenizer is that of Vicuna, a repository
apart) and `cogvlm2-llama3-chat-19B`: configuration, code and tensor names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors.torch import save_file

from tests.helpers import tiny_captioners as tiny
from tests.helpers.cogvlm_reference import CogVlm, CogVlmReference, Sizes
from tests.helpers.tiny_lm import fill, write_any_tokenizer

SPARE = 3  # rows of the embedding that no token has
# how a question is asked, by config.json's `template_version`
PROMPTS = {"chat": "Question: {} Answer:", "vqa": "Question: {} Short answer:", "base": "{}"}


def write_cogvlm(
    folder: Path, *, second: bool = False, template: str = "chat", seed: int = 61, **sizes: Any
) -> tiny.Case:
    """Write CogVLM's folders under `folder`, or with `second` CogVLM2's.

    The settings are `captioner` and, of CogVLM, `tokenizer`. `template` is a key of PROMPTS;
    `sizes` replace fields of `Sizes`.
    """
    captioner = folder / "captioner"
    captioner.mkdir(parents=True)
    settings = {"captioner": captioner}
    if not second:
        settings["tokenizer"] = folder / "tokenizer"
        settings["tokenizer"].mkdir()
    words = settings.get("tokenizer", captioner)
    n_vocab = write_any_tokenizer(words, "llama3" if second else "sentencepiece") + SPARE
    of_second: dict[str, Any] = {
        "second": True, "kv_heads": 2, "base": 500000.0, "image_size": 84,
    }  # fmt: skip
    fields = {**(of_second if second else {}), **sizes}
    model = tiny_model(Sizes(n_vocab, **fields), seed)
    _save(captioner, model)
    tiny.write_json(captioner / "config.json", _config(model.sizes, template))
    reference = CogVlmReference(
        [lambda image: pixels(image, model.sizes.image_size)], [model.vision.patches],
        model.vision.connected, cast("Any", model), words, "", PROMPTS[template],
    )  # fmt: skip
    return tiny.Case("cogvlm", settings, reference)


def tiny_model(sizes: Sizes, seed: int) -> CogVlm:
    """Return a model whose weights bfloat16 holds, as published."""
    model = CogVlm(sizes)
    fill(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for mark in (model.vision.boi, model.vision.eoi):
            mark.copy_(torch.randn(mark.shape, generator=generator))
        for name, parameter in model.named_parameters():
            if "cls_embedding" in name or "position_embedding" in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
            elif "language_expert_query" in name or "vision_expert_query" in name:
                parameter.mul_(1.5)  # attention to few rows: no prompt drowns the picture
            parameter.copy_(parameter.bfloat16().float())
    return model.eval()


def pixels(image: Image.Image, size: int) -> torch.Tensor:
    """Stretch `image` with a bicubic filter and normalise it as CLIP does: [1, 3, size, size]."""
    stretched = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    values = torch.frombuffer(bytearray(stretched.tobytes()), dtype=torch.uint8)
    x = values.view(size, size, 3).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny.CLIP_MEAN, tiny.CLIP_STD))
    return ((x - mean) / std)[None]


def _save(folder: Path, model: CogVlm) -> None:
    """Write three shards of bfloat16, among them the frequencies that the code keeps as tensors."""
    tensors = {n: t.to(torch.bfloat16).contiguous() for n, t in model.state_dict().items()}
    half = model.sizes.width // model.sizes.heads // 2
    for i in range(model.sizes.layers if not model.sizes.second else 0):
        name = f"model.layers.{i}.self_attn.rotary_emb.inv_freq"
        tensors[name] = (model.sizes.base ** (-torch.arange(half) / half)).to(torch.bfloat16)
    weight_map: dict[str, str] = {}
    for i in range(3):
        file = f"model-0000{i + 1}-of-00003.safetensors"
        held = {name: tensors[name] for name in sorted(tensors)[i::3]}
        save_file(held, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(held, file)
    size = sum(tensor.numel() * 2 for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    tiny.write_json(folder / "model.safetensors.index.json", index)


def _config(sizes: Sizes, template: str) -> dict[str, Any]:
    """Return config.json with the published fields; neither has a `model_type`."""
    s = sizes
    of_second = {"num_multi_query_heads": s.kv_heads} if s.second else {}
    ids = (s.n_vocab - SPARE - 4, s.n_vocab - SPARE - 1) if s.second else (1, 2)
    pad = s.n_vocab - 1 if s.second else 0
    return {
        "architectures": ["CogVLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_cogvlm.CogVLMConfig",
                     "AutoModelForCausalLM": "modeling_cogvlm.CogVLMForCausalLM"},
        "bos_token_id": ids[0], "eos_token_id": ids[1], "pad_token_id": pad,
        "hidden_act": "silu", "hidden_size": s.width, "initializer_range": 0.02,
        "intermediate_size": s.ffn, "max_position_embeddings": 8192 if s.second else 2048,
        "num_attention_heads": s.heads, "num_hidden_layers": s.layers, **of_second,
        "rms_norm_eps": s.eps, "template_version": template, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.41.0" if s.second else "4.35.0",
        "use_cache": True, "vision_config": {
            "dropout_prob": 0.0, "hidden_act": "gelu", "hidden_size": s.tower_width,
            "image_size": s.image_size, "in_channels": 3, "intermediate_size": s.tower_ffn,
            "layer_norm_eps": s.tower_eps, "num_heads": s.tower_heads,
            "num_hidden_layers": s.tower_layers,
            "num_positions": (s.image_size // s.patch) ** 2 + 1, "patch_size": s.patch,
        },
        "vocab_size": s.n_vocab,
    }  # fmt: skip
