"""transformers with PyTorch: a whole SmolVLM, or the tower of a PrismCaptioner."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import has_bfloat16
from benchmarks.peers.engine import DECODED, INSTRUCTION, Engine, Seconds, Setting
from benchmarks.peers.weights import Weights

_CLASSES = ("smolvlm", "prismcaptioner")


class Transformers(Engine):
    """The published checkpoint in float32 or bfloat16."""

    @classmethod
    def settings(cls, cores: int) -> Mapping[str, Sequence[object]]:
        return {"attention": ["sdpa", "eager"], "threads": [cores, 1]}

    @classmethod
    def obstacle(cls, weights: Weights, quant: str) -> str:
        if weights.family not in _CLASSES:
            return f"it has no class that reads {weights.family}'s original layout"
        if quant == "bfloat16" and not has_bfloat16():
            return "this processor multiplies no bfloat16"
        return ""

    def __init__(self, weights: Weights, quant: str, setting: Setting) -> None:
        import torch

        torch.set_num_threads(int(str(setting["threads"])))
        options = {"dtype": getattr(torch, quant), "attn_implementation": setting["attention"]}
        open_model = _SmolVlm if weights.family == "smolvlm" else _Siglip
        self._model = open_model(weights, options)

    def look(self, pixels: np.ndarray) -> tuple[Seconds, np.ndarray]:
        import torch

        with torch.inference_mode():
            return self._model.look(pixels)


class _SmolVlm:
    def __init__(self, weights: Weights, options: dict[str, Any]) -> None:
        from transformers import (
            Idefics3ForConditionalGeneration,
            Idefics3ImageProcessor,
            Idefics3Processor,
            PreTrainedTokenizerFast,
        )

        folder = weights.checkpoint()["captioner"]
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        images = Idefics3ImageProcessor.from_pretrained(folder)
        config = _json_of(folder)
        length = (config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]
                  // config["scale_factor"]) ** 2  # fmt: skip
        self._processor = Idefics3Processor(images, tokenizer, image_seq_len=length)
        self._model = Idefics3ForConditionalGeneration.from_pretrained(folder, **options).eval()
        self._model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
        self._model.model.image_token_id = self._model.config.image_token_id
        prompts = weights.manifest().prompts
        after = prompts.after_image + INSTRUCTION + prompts.after_instruction
        self._prompt = f"{prompts.before_image}<image>{after}{prompts.before_caption}"

    def look(self, pixels: np.ndarray) -> tuple[Seconds, np.ndarray]:
        from PIL import Image

        model, start = self._model, time.perf_counter()
        inputs = self._processor(
            text=self._prompt, images=[Image.fromarray(pixels)], return_tensors="pt"
        )
        values = inputs["pixel_values"].to(model.dtype)
        rows = model.model.get_image_features(values, inputs["pixel_attention_mask"])
        encoded = time.perf_counter()
        embeddings = model.model.get_input_embeddings()(inputs["input_ids"])
        embeddings = model.model.inputs_merger(inputs["input_ids"], embeddings, rows)
        output = model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        first = time.perf_counter()
        for _ in range(DECODED):
            output = model(
                input_ids=token, past_key_values=output.past_key_values, use_cache=True
            )  # fmt: skip
            token = output.logits[:, -1].argmax(-1, keepdim=True)
        end = time.perf_counter()
        seconds = Seconds(encoded - start, first - start, (end - first) / DECODED)
        return seconds, rows.float().reshape(-1, rows.shape[-1]).numpy()


class _Siglip:
    """PrismCaptioner's tower; its language model, InternLM2, has no class in transformers."""

    def __init__(self, weights: Weights, options: dict[str, Any]) -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

        folders, dtype = weights.checkpoint(), options["dtype"]
        config = SiglipVisionConfig(**_json_of(folders["vision"])["vision_config"])
        config.num_hidden_layers -= 1
        config.vision_use_head = False
        config._attn_implementation = options["attn_implementation"]
        self._tower = SiglipVisionModel(config).eval()
        tensors = load_file(folders["vision"] / "model.safetensors")
        missing = self._tower.load_state_dict(tensors, strict=False).missing_keys
        if any("post_layernorm" not in name for name in missing):
            raise SystemExit(f"the checkpoint has no {missing}")
        self._tower.vision_model.post_layernorm = torch.nn.Identity()
        self._tower.to(dtype)
        projector = load_file(folders["captioner"] / "projector" / "model.safetensors")
        self._weights = {name: tensor.to(dtype) for name, tensor in projector.items()}
        self._images = SiglipImageProcessor(size={"height": config.image_size,
                                                  "width": config.image_size})  # fmt: skip
        self._policy = weights.manifest().image

    def look(self, pixels: np.ndarray) -> tuple[Seconds, np.ndarray]:
        from PIL import Image
        from torch.nn.functional import gelu, linear

        start = time.perf_counter()
        edge = max(pixels.shape[:2])
        square = Image.new("RGB", (edge, edge), tuple(self._policy.fill))
        height, width = pixels.shape[:2]
        square.paste(Image.fromarray(pixels), ((edge - width) // 2, (edge - height) // 2))
        values = self._images(images=[square], return_tensors="pt")["pixel_values"]
        hidden = self._tower(values.to(self._weights["model.0.weight"].dtype)).last_hidden_state
        w = self._weights
        hidden = gelu(linear(hidden, w["model.0.weight"], w["model.0.bias"]))
        rows = linear(hidden, w["model.2.weight"], w["model.2.bias"])
        return Seconds(time.perf_counter() - start), rows[0].float().numpy()


def _json_of(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return data
