"""Tiny random InstructBLIPs in both published layouts; transformers' classes compute the same.

Sources: transformers' InstructBlipForConditionalGeneration and InstructBlipProcessor; LAVIS'
`blip2_vicuna_instruct.py`, whose `generate` counts repetitions among new tokens alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    BertTokenizer,
    BlipImageProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    LlamaTokenizer,
    RepetitionPenaltyLogitsProcessor,
)

from tests.helpers import tiny_eva
from tests.helpers.checkpoints import write_tokenizer
from tests.helpers.instructed import VOCABULARY, write_vocabulary
from tests.helpers.tiny_captioners import make, square, tensors_of
from tests.helpers.tiny_lm import write_lm

SIZE, N_QUERIES, N_LAYERS, HEADS = 56, 6, 4, 12
PENALTY = 1.5
LAVIS_IDS, N_POSITIONS = 128, 160
EPS = {"transformers": 1e-6, "lavis": 1e-5}  # of the norm behind the tower


@dataclass
class InstructBlipCase:
    """A checkpoint's settings for `convert`, and its model and processor."""

    layout: str
    settings: dict[str, Any]
    model: Any
    processor: Any

    def inputs(self, image: Image.Image, instruction: str) -> dict[str, torch.Tensor]:
        """Pixels, the Q-Former's ids, and the language model's, which begin after the picture."""
        made = self.processor(images=image, text=instruction, return_tensors="pt")
        ids = made["qformer_input_ids"]
        if self.layout == "lavis":
            tokenizer = self.processor.qformer_tokenizer
            cut = tokenizer(instruction, truncation=True, max_length=LAVIS_IDS, return_tensors="pt")
            ids = cut["input_ids"]
        return {
            "pixels": made["pixel_values"],
            "text": ids,
            "prompt": made["input_ids"][:, N_QUERIES:],
        }

    @torch.inference_mode()
    def visual_tokens(self, image: Image.Image, instruction: str) -> torch.Tensor:
        """[n_queries, n_embd]"""
        inputs, model = self.inputs(image, instruction), self.model
        features = model.vision_model(pixel_values=inputs["pixels"]).last_hidden_state
        seen = torch.ones(1, N_QUERIES + inputs["text"].shape[1], dtype=torch.long)
        rows = model.qformer(
            input_ids=inputs["text"], attention_mask=seen, query_embeds=model.query_tokens,
            encoder_hidden_states=features,
        ).last_hidden_state  # fmt: skip
        tokens: torch.Tensor = model.language_projection(rows[:, :N_QUERIES])[0]
        return tokens

    @torch.inference_mode()
    def greedy(self, image: Image.Image, instruction: str, n_tokens: int) -> list[int]:
        """Return the likeliest tokens, each less likely once it stands in the text."""
        lm, prompt = self.model.language_model, self.inputs(image, instruction)["prompt"]
        penalize: Any = RepetitionPenaltyLogitsProcessor(PENALTY)
        rows = [self.visual_tokens(image, instruction)[None], lm.get_input_embeddings()(prompt)]
        step = lm(inputs_embeds=torch.cat(rows, dim=1), use_cache=True)
        ids: list[int] = []
        while True:
            scores = penalize(torch.tensor([ids], dtype=torch.long), step.logits[:, -1])
            ids.append(int(scores.argmax()))
            if len(ids) == n_tokens:
                return ids
            step = lm(
                input_ids=torch.tensor([ids[-1:]]), past_key_values=step.past_key_values,
                use_cache=True,
            )  # fmt: skip


def write_instructblip(
    folder: Path, *, layout: str = "transformers", shards: str = "safetensors", seed: int = 61
) -> InstructBlipCase:
    """Write `layout` ("transformers" or "lavis"); `shards`: "safetensors" or "bin", for the former.

    transformers' vocabulary has rows for [PAD] and <image>, and more to fill it up.
    """
    folder.mkdir(parents=True)
    model = _model(folder, layout, seed)
    processor = _processor(folder, layout)
    if layout == "transformers":
        model.save_pretrained(
            folder, max_shard_size="300KB", safe_serialization=shards == "safetensors"
        )
        _as_published(folder / "config.json")
        processor.image_processor.save_pretrained(folder)
        processor.qformer_tokenizer.save_pretrained(folder / "qformer_tokenizer")
        return InstructBlipCase(layout, {"captioner": folder}, model, processor)
    settings = {
        "captioner": folder / "captioner", "vision": folder / "vision", "llm": folder / "llm",
        "qformer_tokenizer": folder / "bert",
    }  # fmt: skip
    processor.qformer_tokenizer.truncation_side = "left"
    _save_lavis(settings, model, seed)
    return InstructBlipCase(layout, settings, model, processor)


def _model(folder: Path, layout: str, seed: int) -> Any:
    """Return the whole model; in LAVIS' layout its language model lies in a folder of its own."""
    if layout == "lavis":
        lm: Any = write_lm(folder / "llm", "vicuna", seed=seed)
        text = lm.config
    else:
        n_vocab = write_tokenizer(folder, add_dummy_prefix=True)
        text = LlamaConfig(
            hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=2048, rms_norm_eps=1e-6, vocab_size=-(-(n_vocab + 2) // 8) * 8,
            bos_token_id=1, eos_token_id=2, pad_token_id=n_vocab,
        )  # fmt: skip
        added = {"[PAD]": n_vocab, "<image>": n_vocab + 1}
        (folder / "added_tokens.json").write_text(json.dumps(added))
    config = InstructBlipConfig(
        vision_config={
            "hidden_size": tiny_eva.WIDTH, "intermediate_size": int(tiny_eva.WIDTH * 4.3637),
            "num_hidden_layers": 3, "num_attention_heads": 16, "image_size": SIZE,
            "patch_size": 14,
        },
        qformer_config={
            "vocab_size": len(VOCABULARY) + 1,  # [DEC]
            "hidden_size": 48, "num_hidden_layers": N_LAYERS, "num_attention_heads": HEADS,
            "intermediate_size": 96, "encoder_hidden_size": tiny_eva.WIDTH,
            "max_position_embeddings": N_POSITIONS,
        },
        text_config=text.to_dict(), num_query_tokens=N_QUERIES, image_token_index=5,
    )  # fmt: skip
    model = make(InstructBlipForConditionalGeneration(config), seed)
    if layout == "lavis":
        model.language_model.load_state_dict(lm.state_dict())
    model.vision_model.load_state_dict(tiny_eva.eva_tower(seed, image_size=SIZE).state_dict())
    model.vision_model.post_layernorm.eps = EPS[layout]
    with torch.no_grad():
        model.query_tokens.mul_(0.5)
        words = model.qformer.embeddings.word_embeddings.weight
        words.mul_(words.shape[-1] ** 0.5 / 1.6)
    return model


def _processor(folder: Path, layout: str) -> Any:
    """Return the processor with upstream's tokens: the prompt's beginning is </s>."""
    bert, llama = folder / "bert", folder / "llm" if layout == "lavis" else folder
    bert.mkdir(parents=True)
    qformer_tokenizer = BertTokenizer(
        str(write_vocabulary(bert)), bos_token="[DEC]", split_special_tokens=True
    )
    tokenizer = LlamaTokenizer(
        str(llama / "tokenizer.model"), bos_token="</s>", eos_token="</s>", unk_token="</s>",
        pad_token="[PAD]", legacy=True,
    )  # fmt: skip
    return InstructBlipProcessor(
        BlipImageProcessor(size=square(SIZE)), tokenizer, qformer_tokenizer, N_QUERIES
    )


def _as_published(path: Path) -> None:
    """Add the fields of the time of publication."""
    config = json.loads(path.read_text())
    config |= {"initializer_factor": 1.0, "initializer_range": 0.02}
    config |= {"use_decoder_only_language_model": True}
    path.write_text(json.dumps(config))


def _save_lavis(settings: dict[str, Path], model: Any, seed: int) -> None:
    """Write what was trained, and EVA-CLIP's own file: with a block and a head that never run."""
    qformer = {}
    for name, tensor in tensors_of(model.qformer).items():
        renamed = name.replace("embeddings.layernorm.", "embeddings.LayerNorm.")
        renamed = renamed.replace("attention.attention.", "attention.self.")
        qformer[f"Qformer.bert.{renamed}"] = tensor
    trained = {
        **tiny_eva.published_norm(model.vision_model), **qformer,
        **tensors_of(model.language_projection, "llm_proj."),
        "query_tokens": model.query_tokens.detach().clone(),
        "Qformer.bert.embeddings.position_ids": torch.arange(N_POSITIONS)[None],
    }  # fmt: skip
    settings["captioner"].mkdir()
    file = settings["captioner"] / "instruct_blip_vicuna7b_trimmed.pth"
    torch.save({"model": trained}, file)
    larger = tiny_eva.eva_tower(seed, image_size=SIZE, n_layers=4)
    larger.load_state_dict(model.vision_model.state_dict(), strict=False)
    tower = tiny_eva.published_tower(larger, "")
    tower |= tensors_of(make(nn.Linear(tiny_eva.WIDTH, 8), seed), "head.")
    settings["vision"].mkdir()
    torch.save(tower, settings["vision"] / "eva_vit_g.pth")
