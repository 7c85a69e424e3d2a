"""A reference for PrismCaptioner's published layout, independent of `convert`.

transformers' SiglipVisionModel, SiglipImageProcessor and LlamaForCausalLM do the computation. This
module unpacks InternLM2's matrices, head by head, and merges the adapter. `Mistakes` plants errors
that a converter could make, to show that the comparison would notice them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.helpers.checkpoints import Folders

INSTRUCTION = "Which things are there, and where?"


@dataclass(frozen=True)
class Mistakes:
    """Deviations from the published layout, one per field."""

    drop_first: bool = True
    pad: int = 127
    lora_scale: float | None = None
    skip_head_adapter: bool = False
    gelu: str = "gelu"  # of the projector


class Reference:
    """The captioner of `folders` in float32: greedy ids, and teacher-forced logits."""

    def __init__(self, folders: Folders, mistakes: Mistakes | None = None) -> None:
        self.mistakes = mistakes or Mistakes()
        self.folders = folders
        self.tokenizer = sentencepiece.SentencePieceProcessor(
            model_file=str(folders.llm / "tokenizer.model")
        )
        self.tower = _tower(folders.vision)
        self.projector = _tensors(folders.captioner / "projector")
        self.lm = _llama(folders, self.mistakes)
        self.n_published = json_of(folders.llm / "config.json")["vocab_size"]

    @torch.inference_mode()
    def visual_tokens(self, image: Image.Image) -> torch.Tensor:
        """[1, n_tokens, n_embd]"""
        m = self.mistakes
        edge = max(image.size)
        square = Image.new("RGB", (edge, edge), (m.pad,) * 3)
        square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
        prepare = json_of(self.folders.vision / "preprocessor_config.json")
        processor = SiglipImageProcessor(
            size=prepare["size"],
            resample=prepare["resample"],
            rescale_factor=prepare["rescale_factor"],
            image_mean=prepare["image_mean"],
            image_std=prepare["image_std"],
        )
        pixels = processor(square, return_tensors="pt")["pixel_values"]
        x = self.tower(pixels, output_hidden_states=True).hidden_states[-2]
        x = x[:, 1:] if m.drop_first else x
        w = self.projector
        x = torch.nn.functional.linear(x, w["model.0.weight"], w["model.0.bias"])
        approximate = "none" if m.gelu == "gelu" else "tanh"
        x = torch.nn.functional.gelu(x, approximate=approximate)
        return torch.nn.functional.linear(x, w["model.2.weight"], w["model.2.bias"])

    def text_ids(self, instruction: str) -> tuple[list[int], list[int]]:
        """Return the ids before and after the picture."""
        special = self._special_ids()
        before = [1, special["<|im_start|>"], *self.tokenizer.encode("user\n")]
        after = [
            *self.tokenizer.encode("\n" + instruction),
            special["<|im_end|>"],
            *self.tokenizer.encode("\n"),
            special["<|im_start|>"],
            *self.tokenizer.encode("assistant\n"),
        ]
        return before, after

    @torch.inference_mode()
    def greedy(self, image: Image.Image, n_tokens: int) -> list[int]:
        """Return `n_tokens` greedy ids, past end tokens too."""
        before, after = self.text_ids(INSTRUCTION)
        rows = torch.cat(
            [self._embed(before), self.visual_tokens(image), self._embed(after)], dim=1
        )
        step = self.lm(inputs_embeds=rows, use_cache=True)
        ids = [int(step.logits[0, -1].argmax())]
        while len(ids) < n_tokens:
            step = self.lm(
                input_ids=torch.tensor([ids[-1:]]),
                past_key_values=step.past_key_values,
                use_cache=True,
            )
            ids.append(int(step.logits[0, -1].argmax()))
        return ids

    @torch.inference_mode()
    def forced_logits(self, image: Image.Image, ids: list[int]) -> np.ndarray:
        """Return logits [len(ids), n_vocab] that predict each of `ids` after the prompt."""
        before, after = self.text_ids(INSTRUCTION)
        rows = [self._embed(before), self.visual_tokens(image), self._embed(after + ids[:-1])]
        logits: torch.Tensor = self.lm(inputs_embeds=torch.cat(rows, dim=1)).logits[0]
        return logits[-len(ids) :].numpy()

    def _embed(self, ids: list[int]) -> torch.Tensor:
        embedded: torch.Tensor = self.lm.get_input_embeddings()(torch.tensor([ids]))
        return embedded

    def _special_ids(self) -> dict[str, int]:
        decoder = json_of(self.folders.llm / "tokenizer_config.json")["added_tokens_decoder"]
        return {entry["content"]: int(i) for i, entry in decoder.items()}


def json_of(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif path.suffix == ".bin":
            tensors |= torch.load(path, weights_only=True)
    return {name: tensor.float() for name, tensor in tensors.items()}


def _tower(folder: Path) -> SiglipVisionModel:
    config = json_of(folder / "config.json")
    model = SiglipVisionModel(SiglipVisionConfig(**config.get("vision_config", config)))
    tensors = {n: t for n, t in _tensors(folder).items() if n.startswith("vision_model.")}
    missing = model.load_state_dict(tensors, strict=False)
    # the pooling head and the post-norm follow the layer of the feature
    used = [n for n in missing.missing_keys if "head" not in n and "post_layernorm" not in n]
    if used:
        raise ValueError(f"not in the checkpoint: {used}")
    model.eval()
    return model


def _llama(folders: Folders, mistakes: Mistakes) -> LlamaForCausalLM:
    config = json_of(folders.llm / "config.json")
    weights = _merged(folders, mistakes)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim, per_kv = config["hidden_size"] // heads, heads // kv_heads
    state = {
        "model.embed_tokens.weight": weights["model.tok_embeddings.weight"],
        "model.norm.weight": weights["model.norm.weight"],
        "lm_head.weight": weights["output.weight"],
    }
    for i in range(config["num_hidden_layers"]):
        source, target = f"model.layers.{i}.", f"model.layers.{i}."
        blocks = weights[source + "attention.wqkv.weight"].split(head_dim)
        rows: dict[str, list[torch.Tensor]] = {"q": [], "k": [], "v": []}
        for kv in range(kv_heads):
            group = blocks[kv * (per_kv + 2) : (kv + 1) * (per_kv + 2)]
            rows["q"] += group[:per_kv]
            rows["k"].append(group[per_kv])
            rows["v"].append(group[per_kv + 1])
        for part, blocks_of_part in rows.items():
            state[f"{target}self_attn.{part}_proj.weight"] = torch.cat(blocks_of_part)
        for ours, published in {
            "self_attn.o_proj": "attention.wo",
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.up_proj": "feed_forward.w3",
            "mlp.down_proj": "feed_forward.w2",
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "ffn_norm",
        }.items():
            state[f"{target}{ours}.weight"] = weights[f"{source}{published}.weight"]
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            vocab_size=config["vocab_size"],
            rope_theta=config["rope_theta"],
            rms_norm_eps=config["rms_norm_eps"],
            max_position_embeddings=config["max_position_embeddings"],
        )
    )
    model.load_state_dict(state)
    model.eval()
    return model


def _merged(folders: Folders, mistakes: Mistakes) -> dict[str, torch.Tensor]:
    """Return the base model's tensors plus alpha / r · B · A for each pair of the adapter."""
    weights = _tensors(folders.llm)
    adapter = folders.captioner / "llm_adapter"
    if not adapter.is_dir():
        return weights
    config, pairs = json_of(adapter / "adapter_config.json"), _tensors(adapter)
    scale = config["lora_alpha"] / config["r"]
    if mistakes.lora_scale is not None:
        scale = mistakes.lora_scale
    for name, a in pairs.items():
        if ".lora_A." not in name or (mistakes.skip_head_adapter and ".output." in name):
            continue
        target = name.split("base_model.model.")[1].split(".lora_A.")[0] + ".weight"
        weights[target] = weights[target] + scale * (pairs[name.replace("lora_A", "lora_B")] @ a)
    return weights


def pictures() -> list[Image.Image]:
    """Return three different pictures, none of them square."""
    x, y = np.meshgrid(np.linspace(0, 1, 90), np.linspace(0, 1, 60))
    gradient = np.stack([x, y, 1 - x], axis=-1)
    rng = np.random.default_rng(3)
    noise = rng.random((40, 70, 3)).repeat(2, axis=0).repeat(2, axis=1)
    boxes = np.full((120, 50, 3), 0.9)
    boxes[10:60, 5:30] = [0.8, 0.1, 0.1]
    boxes[70:110, 20:45] = [0.1, 0.2, 0.7]
    return [Image.fromarray((p * 255).astype(np.uint8)) for p in (gradient, noise, boxes)]
