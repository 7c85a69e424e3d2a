"""Tiny random BLIP captioners in both published layouts; transformers' class computes the same.

Sources: transformers' BlipForConditionalGeneration and BlipProcessor; salesforce/BLIP's
`models/blip.py` (`decoder` and `create_vit`), whose heads are 64 wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from tests.helpers import tiny_captioners as tiny
from tests.helpers import tiny_decoder
from tests.helpers.tiny_captioners import make, square, tensors_of

PIECES = tiny_decoder.PIECES[: tiny_decoder.START] + tiny_decoder.PIECES[tiny_decoder.START + 1 :]
N_VOCAB = len(PIECES) + 2
START, CONTEXT = len(PIECES), 96
_TEXT = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
         "num_attention_heads": 2, "max_position_embeddings": CONTEXT, "vocab_size": N_VOCAB,
         "bos_token_id": START}  # fmt: skip
# transformers' name of the tower's tensors → the original layout's
_ORIGINAL = {
    "vision_model.": "visual_encoder.", "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed", "embeddings.patch_embedding": "patch_embed.proj",
    "encoder.layers.": "blocks.", "layer_norm1": "norm1", "layer_norm2": "norm2",
    "self_attn.qkv": "attn.qkv", "self_attn.projection": "attn.proj", "post_layernorm": "norm",
}  # fmt: skip


@dataclass
class BlipReference(tiny.Reference):
    """The published model and its processor."""

    model: Any = None
    processor: Any = None

    @torch.inference_mode()
    def visual_tokens(self, image: Image.Image) -> torch.Tensor:
        """[1 + patches, width], class row first."""
        rows: torch.Tensor = self.model.vision_model(self.pixels[0](image)).last_hidden_state[0]
        return rows

    @torch.inference_mode()
    def greedy(self, image: Image.Image, n_tokens: int, *_: Image.Image) -> list[int]:
        return self.continued(image, tiny.INSTRUCTION, n_tokens)

    @torch.inference_mode()
    def continued(self, image: Image.Image, text: str, n_tokens: int) -> list[int]:
        """Return what the decoder writes after `text`, past [SEP] too."""
        ids = self.processor.tokenizer(text, return_tensors="pt")["input_ids"][:, :-1]
        ids[:, 0] = START
        rows = self.visual_tokens(image)[None]
        made = self.model.text_decoder.generate(
            input_ids=ids, encoder_hidden_states=rows,
            encoder_attention_mask=torch.ones(rows.shape[:2], dtype=torch.long),
            max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False, num_beams=1,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        new: list[int] = made[0, ids.shape[1] :].tolist()
        return new

    @torch.inference_mode()
    def caption(self, image: Image.Image, text: str = "") -> str:
        """Return the text of the published `generate`, without `text` at its beginning."""
        inputs = self.processor(images=image, text=text or None, return_tensors="pt")
        (ids,) = self.model.generate(**inputs, max_new_tokens=40, do_sample=False, num_beams=1)
        said: str = self.processor.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=True
        )
        return said.removeprefix(text)


def write_blip(
    folder: Path,
    *,
    layout: str = "safetensors",
    width: int = 192,
    seed: int = 41,
    sharpness: float = 4.0,
    **changes: Any,
) -> tiny.Case:
    """Write a folder as published.

    Parameters:
        layout: "safetensors" or "bin", transformers'; "pth", the original one.
        width: of the tower; that of the decoder is 128.
        sharpness: of the decoder's attention; with 1 a small error of the weights stays small.
        changes: of text_config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vision: dict[str, Any] = {
        "hidden_size": width, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": width // 64, "image_size": tiny.SIZE, "patch_size": tiny.PATCH,
    }  # fmt: skip
    if layout == "pth":
        vision["layer_norm_eps"] = 1e-6
    config = BlipConfig(text_config={**_TEXT, **changes}, vision_config=vision)
    model = make(BlipForConditionalGeneration(config), seed)
    _enliven(model, seed, sharpness)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES), encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    images = BlipImageProcessor(size=square())
    processor = BlipProcessor(images, tokenizer)
    if layout == "pth":
        _save_original(folder, model)
    else:
        model.save_pretrained(folder, safe_serialization=layout == "safetensors")
        processor.save_pretrained(folder)
    reference = BlipReference(
        [tiny.processed(images)], [], torch.nn.Identity(),
        model.text_decoder, folder, "", "{}", model=model, processor=processor,
    )  # fmt: skip
    return tiny.Case("blip", {"captioner": folder}, reference)


def _enliven(model: Any, seed: int, sharpness: float) -> None:
    """Scale weights so that texts vary, and depend on the place, the last words and the picture."""
    generator = torch.Generator().manual_seed(seed + 1)
    sizes = {"position_embedding": 0.5, "word_embeddings": 1.0, "class_embedding": 1.0}
    factors = {"query.weight": sharpness, "crossattention.output.dense.weight": 0.3,
               "attention.output.dense.weight": 0.5, "bias": 0.3}  # fmt: skip
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            for part, size in sizes.items():
                if part in name:
                    parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
            if name.startswith("text_decoder."):
                parameter.mul_(next((f for end, f in factors.items() if name.endswith(end)), 1.0))


def _save_original(folder: Path, model: Any) -> None:
    tensors = tensors_of(model)
    for theirs, ours in _ORIGINAL.items():
        tensors = {
            name.replace(theirs, ours) if name.startswith("vision_model.") or "visual" in name
            else name: tensor for name, tensor in tensors.items()
        }  # fmt: skip
    embeddings = "text_decoder.bert.embeddings.position_ids"
    tensors[embeddings] = torch.arange(CONTEXT)[None]
    torch.save({"model": tensors}, folder / "model_base_caption_capfilt_large.pth")
