"""Tiny random BLIP-2s in both published layouts; transformers' classes compute the same.

Sources: transformers' Blip2ForConditionalGeneration and Blip2Processor, the config.json of
Salesforce/blip2-opt-2.7b; LAVIS' `blip2_opt.py` and its configurations.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    OPTConfig,
)

from tests.helpers import tiny_eva
from tests.helpers.tiny_captioners import Case, Reference, make, processed, square, tensors_of
from tests.helpers.tiny_lm import split_tokenizer, write_any_tokenizer
from tests.helpers.tiny_t5 import END, TinyT5, fill_t5, t5_config, write_t5, write_t5_tokenizer

SIZE, COCO_SIZE, N_QUERIES, N_LAYERS = 56, 364, 6, 3
IMAGE = "<image>"
# of the norm behind the tower
EPS = {"transformers": 1e-6, "lavis": 1e-5}
_VISION = {"num_channels": 3, "projection_dim": 512, "dropout": 0.0, "initializer_factor": 1.0}


def write_blip2(
    folder: Path,
    *,
    layout: str = "transformers",
    newer: bool = True,
    shards: str = "safetensors",
    size: int = SIZE,
    seed: int = 71,
) -> Case:
    """Write `layout` and return its case; the whole model is its reference's `lm.captioner`.

    Args:
        folder: Where to write.
        layout: "transformers", "lavis" (of pretraining: the tower is published apart) or
            "lavis-coco" (the tower lies inside).
        newer: transformers' layout: with a token <image> and a vocabulary that is filled up.
        shards: transformers' layout: "safetensors" or "bin".
        size: The edge of a picture; at COCO_SIZE the model is one for captions alone.
        seed: Of all weights.
    """
    folder.mkdir(parents=True)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    n_vocab = write_any_tokenizer(tokenizer, "opt")
    if layout == "transformers" and newer:
        _add_image_token(tokenizer, n_vocab)
    model = _model(n_vocab, layout, newer, size, seed)
    processor = BlipImageProcessor(size=square(size))
    if layout == "transformers":
        model.save_pretrained(
            folder, max_shard_size="300KB", safe_serialization=shards == "safetensors"
        )
        _as_published(folder / "config.json", newer)
        processor.save_pretrained(folder)
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
        settings = {"captioner": folder}
    else:
        settings = _save_lavis(folder, model, tokenizer, layout, seed)
    shutil.move(tokenizer, folder.with_name(f"{folder.name}-tokenizer"))
    model.language_model.captioner = [model]  # in a list, so that it becomes no part of the model
    reference = Reference(
        [processed(processor)],
        [lambda pixels: model.vision_model(pixel_values=pixels).last_hidden_state],
        lambda rows: model.language_projection(
            tiny_eva.query_rows(model.qformer, model.query_tokens, rows)
        ),
        model.language_model,
        folder.with_name(f"{folder.name}-tokenizer"),
        "",
        "</s>{}",
        bos=False,
    )
    return Case("blip2", settings, reference)


@dataclass
class Blip2T5Case:
    """A BLIP-2 with FlanT5; `settings` are the options of its conversion."""

    settings: dict[str, Path]
    model: Any
    processor: Any
    t5: TinyT5

    @torch.inference_mode()
    def visual_tokens(self, image: Image.Image) -> np.ndarray:
        """[n_queries, n_embd]"""
        model = self.model
        pixels = self.processor(images=image, return_tensors="pt")["pixel_values"]
        features = model.vision_model(pixel_values=pixels).last_hidden_state
        rows = tiny_eva.query_rows(model.qformer, model.query_tokens, features)
        tokens: np.ndarray = model.language_projection(rows)[0].numpy()
        return tokens

    def greedy(
        self, image: Image.Image, instruction: str, n_tokens: int, said: Sequence[int]
    ) -> list[int]:
        """Return the likeliest tokens; `said` decides between what is tied (`TinyT5.greedy`)."""
        reference, ids = self.t5.as_ggml(), [*self.t5.tokenizer.encode(instruction), END]
        prompt = np.concatenate([self.visual_tokens(image), reference.embed(ids)])
        return reference.greedy(prompt, n_tokens, said=said)


def write_blip2_t5(folder: Path, *, layout: str = "transformers", seed: int = 76) -> Blip2T5Case:
    """Write `layout`, as of `write_blip2`, with a T5 whose GELU is BLIP-2's, the erf form."""
    folder.mkdir(parents=True)
    own = folder if layout == "transformers" else folder / "llm"
    lm = None if own == folder else write_t5(own, seed=seed)  # its file names the other form
    model = _filled(_config(t5_config(dense_act_fn="gelu"), SIZE, None), layout, SIZE, seed)
    fill_t5(model.language_model, seed)
    tokenizer = write_t5_tokenizer(folder) if lm is None else lm.tokenizer
    processor = BlipImageProcessor(size=square(SIZE))
    settings = {"captioner": folder}
    if layout == "transformers":
        model.save_pretrained(folder, max_shard_size="300KB")
        _as_published(folder / "config.json", newer=True)
        processor.save_pretrained(folder)
    else:
        settings = {"captioner": folder / "captioner", "llm": own}
        settings |= _save_trained(folder, model, layout, "t5_proj", "flant5xl", seed)
    return Blip2T5Case(settings, model, processor, TinyT5(model.language_model, tokenizer))


def whole_model(case: Case) -> Any:
    """Return transformers' model of a case."""
    lm: Any = case.reference.lm
    return lm.captioner[0]


def published_processor(case: Case) -> Any:
    """Return transformers' processor of a case in its newer layout."""
    tokenizer = AutoTokenizer.from_pretrained(case.reference.tokenizer)
    return Blip2Processor(BlipImageProcessor(size=square(SIZE)), tokenizer, N_QUERIES)


def _model(n_vocab: int, layout: str, newer: bool, size: int, seed: int) -> Any:
    text = OPTConfig(
        hidden_size=64, ffn_dim=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1024, word_embed_proj_dim=64,
        vocab_size=-(-(n_vocab + 1) // 64) * 64 if newer else n_vocab + 7,
    )  # fmt: skip
    image_token = n_vocab if newer else None
    model = _filled(_config(text, size, image_token), layout, size, seed)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.2)
    return model


def _config(text: Any, size: int, image_token: int | None) -> Blip2Config:
    return Blip2Config(
        vision_config={
            "hidden_size": tiny_eva.WIDTH, "intermediate_size": int(tiny_eva.WIDTH * 4.3637),
            "num_hidden_layers": N_LAYERS, "num_attention_heads": 16, "image_size": size,
            "patch_size": 14,
        },
        qformer_config={
            "hidden_size": tiny_eva.QUERY_WIDTH, "num_hidden_layers": 4, "num_attention_heads": 12,
            "intermediate_size": 96, "encoder_hidden_size": tiny_eva.WIDTH,
        },
        text_config=text.to_dict(), num_query_tokens=N_QUERIES,
        image_token_index=image_token,
    )  # fmt: skip


def _filled(config: Blip2Config, layout: str, size: int, seed: int) -> Any:
    model = make(Blip2ForConditionalGeneration(config), seed)
    tower = tiny_eva.eva_tower(seed, image_size=size, n_layers=N_LAYERS)
    model.vision_model.load_state_dict(tower.state_dict())
    model.vision_model.post_layernorm.eps = EPS[layout.partition("-")[0]]
    former, queries = tiny_eva.qformer(seed + 1, N_QUERIES)
    model.qformer.load_state_dict(former.state_dict())
    with torch.no_grad():
        model.query_tokens.copy_(queries)
    return model


def _add_image_token(tokenizer: Path, number: int) -> None:
    path = tokenizer / "tokenizer.json"
    data = json.loads(path.read_text())
    data["added_tokens"].append({**data["added_tokens"][-1], "id": number, "content": IMAGE})
    path.write_text(json.dumps(data))


def _as_published(path: Path, newer: bool) -> None:
    """Give config.json the fields of the time of publication; the older one has all defaults."""
    config = json.loads(path.read_text())
    config |= {"initializer_factor": 1.0, "initializer_range": 0.02}
    config |= {"use_decoder_only_language_model": config["text_config"]["model_type"] == "opt"}
    config["vision_config"] |= _VISION
    if config["text_config"]["model_type"] == "opt":
        config["text_config"] |= {"prefix": "</s>", "activation_dropout": 0.0, "eos_token_id": 199}
    if not newer:
        config.pop("image_token_index")
    path.write_text(json.dumps(config))


def _save_lavis(
    folder: Path, model: Any, tokenizer: Path, layout: str, seed: int
) -> dict[str, Path]:
    """Write what was trained, OPT as it is published, and EVA-CLIP's file if it is needed."""
    settings = {"captioner": folder / "captioner", "llm": folder / "llm"}
    settings |= _save_trained(folder, model, layout, "opt_proj", "opt2.7b", seed)
    model.language_model.save_pretrained(
        settings["llm"], max_shard_size="300KB", safe_serialization=False
    )
    shutil.copytree(tokenizer, settings["llm"], dirs_exist_ok=True)
    split_tokenizer(settings["llm"])
    return settings


def _save_trained(
    folder: Path, model: Any, layout: str, projection: str, named: str, seed: int
) -> dict[str, Path]:
    """Write what was trained, and EVA-CLIP's file if it is needed; return its folder then."""
    settings = {}
    trained = {
        **tiny_eva.published_norm(model.vision_model),
        **tiny_eva.published_qformer(model.qformer, model.query_tokens),
        **tensors_of(model.language_projection, f"{projection}."),
        "Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
    }  # fmt: skip
    name = f"blip2_caption_{named}.pth"
    if layout == "lavis-coco":
        trained |= tiny_eva.published_tower(model.vision_model)
    else:
        name = f"blip2_pretrained_{named}.pth"
        settings["vision"] = folder / "vision"
        settings["vision"].mkdir()
        torch.save(_eva_file(model, seed), settings["vision"] / "eva_vit_g.pth")
    (folder / "captioner").mkdir()
    torch.save({"model": trained, "epoch": 3}, folder / "captioner" / name)
    return settings


def _eva_file(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """Return EVA-CLIP's own tensors: with a block and a head that never run."""
    size = model.config.vision_config.image_size
    larger = tiny_eva.eva_tower(seed, image_size=size, n_layers=N_LAYERS + 1)
    larger.load_state_dict(model.vision_model.state_dict(), strict=False)
    head = make(nn.Linear(tiny_eva.WIDTH, 8), seed)
    return {**tiny_eva.published_tower(larger, ""), **tensors_of(head, "head.")}
