"""Tiny random InstructBLIPs in both published layouts; transformers' classes compute the same.

Sources: transformers' InstructBlipForConditionalGeneration and InstructBlipProcessor; LAVIS'
`blip2_vicuna_instruct.py`, whose `generate` counts repetitions among new tokens alone, and
`blip2_t5_instruct.py`, whose `generate` also counts the token that begins every answer: padding,
which no answer holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from tests.helpers import tiny_eva
from tests.helpers.checkpoints import write_tokenizer
from tests.helpers.instructed import VOCABULARY, write_vocabulary
from tests.helpers.tiny_captioners import make, square, tensors_of
from tests.helpers.tiny_lm import write_lm
from tests.helpers.tiny_t5 import (
    N_EXTRA,
    TinyT5,
    fill_t5,
    t5_config,
    write_t5,
    write_t5_tokenizer,
)

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
    t5: TinyT5 | None = None  # the language model, if it is one

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
    def greedy(
        self, image: Image.Image, instruction: str, n_tokens: int, said: Sequence[int] = ()
    ) -> list[int]:
        """Return the likeliest tokens, each less likely once it stands in the text.

        `said` decides between what is tied: see `TinyT5.greedy`.
        """
        lm, prompt = self.model.language_model, self.inputs(image, instruction)["prompt"]
        if self.t5 is not None:
            reference, (ids,) = self.t5.as_ggml(), prompt.tolist()
            rows = [self.visual_tokens(image, instruction).numpy(), reference.embed(ids)]
            return reference.greedy(np.concatenate(rows), n_tokens, PENALTY, said)
        penalize: Any = RepetitionPenaltyLogitsProcessor(PENALTY)
        seen = [self.visual_tokens(image, instruction)[None], lm.get_input_embeddings()(prompt)]
        step = lm(inputs_embeds=torch.cat(seen, dim=1), use_cache=True)
        ids = []
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
    folder: Path,
    *,
    layout: str = "transformers",
    language: str = "llama",
    shards: str = "safetensors",
    seed: int = 61,
) -> InstructBlipCase:
    """Write `layout` ("transformers" or "lavis"); `shards`: "safetensors" or "bin", for the former.

    `language`: "llama" or "t5". transformers' vocabulary has rows for [PAD] and <image>, and more
    to fill it up.
    """
    folder.mkdir(parents=True)
    model, t5 = _model(folder, layout, language, seed)
    processor = _processor(folder, layout, language)
    if layout == "transformers":
        model.save_pretrained(
            folder, max_shard_size="300KB", safe_serialization=shards == "safetensors"
        )
        _as_published(folder / "config.json", decoder_only=language != "t5")
        processor.image_processor.save_pretrained(folder)
        processor.qformer_tokenizer.save_pretrained(folder / "qformer_tokenizer")
        return InstructBlipCase(layout, {"captioner": folder}, model, processor, t5)
    settings = {
        "captioner": folder / "captioner", "vision": folder / "vision", "llm": folder / "llm",
        "qformer_tokenizer": folder / "bert",
    }  # fmt: skip
    processor.qformer_tokenizer.truncation_side = "left"
    _save_lavis(settings, model, seed)
    return InstructBlipCase(layout, settings, model, processor, t5)


def _model(folder: Path, layout: str, language: str, seed: int) -> tuple[Any, TinyT5 | None]:
    """Return the whole model; in LAVIS' layout its language model lies in a folder of its own."""
    lm: Any = None
    text: Any
    if language == "t5":
        text = t5_config(dense_act_fn="gelu")
        if layout == "lavis":  # the file of FlanT5 itself says otherwise
            lm = write_t5(folder / "llm", seed=seed).model
    elif layout == "lavis":
        lm = write_lm(folder / "llm", "vicuna", seed=seed)
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
    t5 = None
    if language == "t5":
        fill_t5(model.language_model, seed)
        t5 = TinyT5(model.language_model, write_t5_tokenizer(_language_folder(folder, layout)))
    if lm is not None:
        model.language_model.load_state_dict(lm.state_dict())
    model.vision_model.load_state_dict(tiny_eva.eva_tower(seed, image_size=SIZE).state_dict())
    model.vision_model.post_layernorm.eps = EPS[layout]
    with torch.no_grad():
        model.query_tokens.mul_(0.5)
        words = model.qformer.embeddings.word_embeddings.weight
        words.mul_(words.shape[-1] ** 0.5 / 1.6)
    return model, t5


def _language_folder(folder: Path, layout: str) -> Path:
    return folder / "llm" if layout == "lavis" else folder


def _processor(folder: Path, layout: str, language: str) -> Any:
    """Return the processor with upstream's tokens: Vicuna's prompt begins with </s>."""
    bert, own = folder / "bert", _language_folder(folder, layout)
    bert.mkdir(parents=True)
    qformer_tokenizer = BertTokenizer(
        str(write_vocabulary(bert)), bos_token="[DEC]", split_special_tokens=True
    )
    tokenizer: Any
    if language == "t5":
        tokenizer = T5Tokenizer(str(own / "spiece.model"), extra_ids=N_EXTRA, legacy=True)
    else:
        tokenizer = LlamaTokenizer(
            str(own / "tokenizer.model"), bos_token="</s>", eos_token="</s>", unk_token="</s>",
            pad_token="[PAD]", legacy=True,
        )  # fmt: skip
    return InstructBlipProcessor(
        BlipImageProcessor(size=square(SIZE)), tokenizer, qformer_tokenizer, N_QUERIES
    )


def _as_published(path: Path, *, decoder_only: bool) -> None:
    """Add the fields of the time of publication."""
    config = json.loads(path.read_text())
    config |= {"initializer_factor": 1.0, "initializer_range": 0.02}
    config |= {"use_decoder_only_language_model": decoder_only}
    path.write_text(json.dumps(config))


def _save_lavis(settings: dict[str, Path], model: Any, seed: int) -> None:
    """Write what was trained, and EVA-CLIP's own file: with a block and a head that never run."""
    is_t5 = isinstance(model.language_model, T5ForConditionalGeneration)
    projection, name_of_file = ("t5_proj", "flanxl") if is_t5 else ("llm_proj", "vicuna7b")
    qformer = {}
    for name, tensor in tensors_of(model.qformer).items():
        renamed = name.replace("embeddings.layernorm.", "embeddings.LayerNorm.")
        renamed = renamed.replace("attention.attention.", "attention.self.")
        qformer[f"Qformer.bert.{renamed}"] = tensor
    trained = {
        **tiny_eva.published_norm(model.vision_model), **qformer,
        **tensors_of(model.language_projection, f"{projection}."),
        "query_tokens": model.query_tokens.detach().clone(),
        "Qformer.bert.embeddings.position_ids": torch.arange(N_POSITIONS)[None],
    }  # fmt: skip
    settings["captioner"].mkdir()
    file = settings["captioner"] / f"instruct_blip_{name_of_file}_trimmed.pth"
    torch.save({"model": trained}, file)
    larger = tiny_eva.eva_tower(seed, image_size=SIZE, n_layers=4)
    larger.load_state_dict(model.vision_model.state_dict(), strict=False)
    tower = tiny_eva.published_tower(larger, "")
    tower |= tensors_of(make(nn.Linear(tiny_eva.WIDTH, 8), seed), "head.")
    settings["vision"].mkdir()
    torch.save(tower, settings["vision"] / "eva_vit_g.pth")
