"""Tiny random Fuyu captioners as published; transformers' classes compute the same.

Sources: config.json, preprocessor_config.json, tokenizer_config.json and the list of files of
adept's fuyu-8b; transformers' FuyuForCausalLM and FuyuProcessor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentencepiece import sentencepiece_model_pb2
from transformers import FuyuConfig, FuyuForCausalLM, FuyuProcessor, LlamaTokenizerFast

from tests.helpers import tiny_captioners as tiny

NEWLINE, SPEAKER, END = "|NEWLINE|", "|SPEAKER|", "|ENDOFTEXT|"
_WORDS = [
    "a", "an", "and", "are", "at", "black", "blue", "bus", "dog", "green", "in", "is", "it", "man",
    "near", "of", "on", "person", "picture", "red", "road", "sign", "small", "star", "street",
    "the", "there", "things", "to", "train", "tree", "two", "what", "where", "which", "with",
]  # fmt: skip
_LETTERS = [chr(code) for code in range(33, 127)] + [*"éèàç图片中猫"]
_FIRST = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), SPEAKER, NEWLINE, END]
PIECES = list(dict.fromkeys(
    [*_FIRST, "▁", "▁▁", *_LETTERS, *(f"▁{word}" for word in _WORDS), *_WORDS]
))  # fmt: skip
N_VOCAB = len(PIECES) + 5  # the published table has rows that no piece has, or so it may
BEGIN, ANSWER = 1, PIECES.index("<0x04>")
CONTEXT = 3072
CONFIG: dict[str, Any] = {
    "architectures": ["FuyuForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": PIECES.index(END), "hidden_act": "relu2", "hidden_dropout": 0.0,
    "hidden_size": 128, "image_size": 300, "initializer_range": 0.02, "intermediate_size": 256,
    "layer_norm_eps": 1e-05, "max_position_embeddings": CONTEXT, "model_type": "fuyu",
    "num_attention_heads": 4, "num_channels": 3, "num_hidden_layers": 3,
    "partial_rotary_factor": 0.5, "patch_size": 30, "qk_layernorm": True, "rope_scaling": None,
    "rope_theta": 25000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.35.0.dev0", "use_cache": True, "vocab_size": N_VOCAB,
}  # fmt: skip
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "FuyuImageProcessor", "padding_mode": "constant", "padding_value": 1.0,
    "processor_class": "FuyuProcessor", "target_height": 1080, "target_width": 1920,
}  # fmt: skip
_SIZES = ((90, 60), (2500, 130), (65, 2300), (301, 8), (10, 400), (151, 217))


def pictures() -> list[Image.Image]:
    """Return pictures of six shapes, two of them larger than the model takes, four of them long."""
    rng = np.random.default_rng(5)
    images = []
    for width, height in _SIZES:
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        picture = np.stack([x, y, 1 - x], axis=-1) * 0.6 + 0.4 * rng.random((height, width, 3))
        picture[height // 4 : height // 2, width // 3 :] = rng.random(3)
        images.append(Image.fromarray((picture * 255).astype(np.uint8)))
    return images


@dataclass
class FuyuReference(tiny.Reference):
    """The published model and its processor."""

    model: Any = None
    processor: Any = None

    def inputs(self, image: Image.Image, text: str = tiny.INSTRUCTION) -> Any:
        """Return what the processor makes of a picture and a text, which ends its line."""
        made = self.processor(images=image, text=f"{text}\n", return_tensors="pt")
        return {name: made[name] for name in ("input_ids", "image_patches", "attention_mask")}

    @torch.inference_mode()
    def visual_tokens(self, image: Image.Image) -> torch.Tensor:
        """Patches with a newline behind each line of them, [n, hidden_size]."""
        inputs, model = self.inputs(image), self.model.model
        ids = inputs["input_ids"][0]
        rows = model.get_input_embeddings()(ids)
        patches = torch.cat(list(model.get_image_features(inputs["image_patches"])))
        is_patch = (ids == self.processor.image_token_id)[:, None]
        rows = rows.masked_scatter(is_patch, patches)
        before: torch.Tensor = rows[: ids.tolist().index(BEGIN)]
        return before

    @torch.inference_mode()
    def greedy(self, image: Image.Image, n_tokens: int, *_: Image.Image) -> list[int]:
        inputs = self.inputs(image)
        made = self.model.generate(
            **inputs, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False,
            num_beams=1, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        new: list[int] = made[0, inputs["input_ids"].shape[1] :].tolist()
        return new

    @torch.inference_mode()
    def caption(self, image: Image.Image, text: str, n_tokens: int) -> str:
        """Return the text of the published way to use the model."""
        made = self.model.generate(**self.inputs(image, text), max_new_tokens=n_tokens,
                                   do_sample=False, pad_token_id=0)  # fmt: skip
        (said,) = self.processor.post_process_image_text_to_text(made)
        return str(said)


def write_fuyu(
    folder: Path, *, layout: str = "safetensors", sharpness: float = 1.6, **changes: Any
) -> tiny.Case:
    """Write a folder as published.

    Parameters:
        layout: "safetensors" or "bin".
        sharpness: of the attention; with little of it a small error of the weights stays small.
        changes: of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields = {**CONFIG, **changes}
    model = FuyuForCausalLM(FuyuConfig(**fields)).eval()
    _enliven(model, sharpness)
    model.to(torch.bfloat16)
    model.save_pretrained(
        folder, safe_serialization=layout == "safetensors", max_shard_size="900KB"
    )
    _write_json(folder / "config.json", fields)
    _write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    write_tokenizer(folder)
    return tiny.Case("fuyu", {"captioner": folder}, reference_of(folder))


def reference_of(folder: Path) -> FuyuReference:
    """Return transformers' own reading of a folder."""
    processor = FuyuProcessor.from_pretrained(folder)
    model = FuyuForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # transformers has the published number as a default
    model.config.image_token_id = processor.image_token_id

    def pixels(image: Image.Image) -> torch.Tensor:
        made: torch.Tensor = processor.image_processor(image, return_tensors="pt")["images"][0][0]
        return made[None]

    return FuyuReference(
        [pixels], [], torch.nn.Identity(), model, folder, "", "{}", mode="free",
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), model=model, processor=processor,
    )  # fmt: skip


def _enliven(model: Any, sharpness: float) -> None:
    """Draw weights with which texts vary, and depend on place, last words and picture."""
    generator = torch.Generator().manual_seed(11)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "embed_tokens" in name and "vision" not in name:
                parameter.copy_(random(*parameter.shape))
            elif parameter.ndim > 1:
                parameter.copy_(random(*parameter.shape) * 1.5 / parameter.shape[1] ** 0.5)
                if name.startswith("lm_head"):  # bytes and special tokens would be no text
                    parameter[[*range(len(_FIRST) - 1), *range(len(PIECES), N_VOCAB)]] *= 0.05
            elif name.endswith("weight"):
                middle = sharpness if "q_layernorm" in name or "k_layernorm" in name else 1
                parameter.copy_(middle * (1 + 0.2 * random(*parameter.shape)))
            else:
                # behind the last norm it would favour the same tokens everywhere
                size = 0.02 if "final" in name else 0.2
                parameter.copy_(size * random(*parameter.shape))


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of unigrams with pieces for bytes, in SentencePiece's form and tokenizers'.

    transformers itself makes the latter of the former, as it did of the published one.
    """
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    proto = sentencepiece_model_pb2.ModelProto()
    rng = np.random.default_rng(7)
    for i, piece in enumerate(PIECES):
        kind = kinds.NORMAL
        if piece.startswith("<") and piece.endswith(">") and len(piece) > 1:
            kind = kinds.BYTE if piece.startswith("<0x") else kinds.CONTROL
        score = 0.0 if i < len(_FIRST) else -float(rng.uniform(2, 4)) - 3 * (len(piece) < 3)
        proto.pieces.add(piece=piece, score=score, type=kinds.UNKNOWN if i == 0 else kind)
    proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = len(PIECES)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    path = folder / "tokenizer.model"
    path.write_bytes(proto.SerializeToString())
    fast = LlamaTokenizerFast(
        vocab_file=str(path), bos_token=END, eos_token=END, unk_token="<unk>", legacy=True,
        additional_special_tokens=["<unk>", END], from_slow=True, add_prefix_space=True,
    )  # fmt: skip
    fast.backend_tokenizer.save(str(folder / "tokenizer.json"))
    number = PIECES.index(END)
    token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
             "special": True}  # fmt: skip
    special = {"additional_special_tokens": ["<unk>", END], "bos_token": END, "eos_token": END,
               "unk_token": "<unk>"}  # fmt: skip
    _write_json(folder / "tokenizer_config.json", {
        "added_tokens_decoder": {"0": {"content": "<unk>", **token},
                                 str(number): {"content": END, **token}},
        **special, "clean_up_tokenization_spaces": False, "legacy": True,
        "model_max_length": 1000000000000000019884624838656, "pad_token": None,
        "processor_class": "FuyuProcessor", "sp_model_kwargs": {},
        "spaces_between_special_tokens": False, "tokenizer_class": "LlamaTokenizer",
        "use_default_system_prompt": True,
    })  # fmt: skip
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "added_tokens.json", {END: number})


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
