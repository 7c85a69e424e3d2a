"""Tiny random captioners in their published layouts, and stock classes that compute the same.

Each `write_…` makes the folders that a user would download and returns a `Case`: the settings for
the family, and a `Reference` of transformers' classes and processors.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from tests.helpers.tiny_lm import fill, write_lm

INSTRUCTION = "Which things are there, and where?"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZE, PATCH = 56, 14
_VISION = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "image_size": SIZE,
           "patch_size": PATCH}  # fmt: skip
Pixels = Callable[[Image.Image], torch.Tensor]  # [1, 3, size, size], normalised


@dataclass
class Reference:
    """A captioner in float32 from stock parts."""

    pixels: list[Pixels]  # for each tower
    features: list[Callable[[torch.Tensor], torch.Tensor]]
    projector: Callable[[torch.Tensor], torch.Tensor]
    lm: PreTrainedModel
    tokenizer: Path
    before: str
    after: str  # "{}" is the instruction; special tokens written out
    bos: bool = True
    mode: str = "stretch"  # of the image policy
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    added: dict[str, int] = field(default_factory=dict)  # special tokens that SentencePiece lacks
    between: str | None = None  # text between the pictures of one prompt; None: one picture only

    @torch.inference_mode()
    def visual_tokens(self, image: Image.Image) -> torch.Tensor:
        """[n_tokens, n_embd]"""
        result = [f(p(image)) for p, f in zip(self.pixels, self.features, strict=True)]
        return self.projector(torch.cat(result, dim=-1))[0]

    def prompt_ids(self) -> list[list[int]]:
        """Return the ids before, between and after pictures, by the tokenizer's own library."""
        path = self.tokenizer / "tokenizer.model"
        texts = (self.before, self.between or "", self.after.format(INSTRUCTION))
        if path.is_file():
            model = sentencepiece.SentencePieceProcessor(model_file=str(path))
            before, between, behind = (self._pieces(model, text) for text in texts)
            return [[1] * self.bos + before, between, behind]
        fast = Tokenizer.from_file(str(self.tokenizer / "tokenizer.json"))
        first = [fast.token_to_id("<|begin_of_text|>")] if self.bos else []
        before, between, behind = (fast.encode(t, add_special_tokens=False).ids for t in texts)
        return [first + before, between, behind]

    def _pieces(self, model: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
        """Tokenize with SentencePiece between added tokens."""
        actual = re.split(f"({'|'.join(self.added)})", text) if self.added else [text]
        ids: list[int] = []
        for piece in filter(None, actual):
            ids += [self.added[piece]] if piece in self.added else model.encode(piece)
        return ids

    @torch.inference_mode()
    def greedy(self, image: Image.Image, n_tokens: int, *others: Image.Image) -> list[int]:
        embed = self.lm.get_input_embeddings()
        before, between, after = (
            embed(torch.tensor([ids], dtype=torch.long)) for ids in self.prompt_ids()
        )
        shown = [before, self.visual_tokens(image)[None]]
        for other in others:
            shown += [between, self.visual_tokens(other)[None]]
        rows = torch.cat([*shown, after], dim=1)
        step = self.lm(inputs_embeds=rows, use_cache=True)
        ids = [int(step.logits[0, -1].argmax())]
        while len(ids) < n_tokens:
            step = self.lm(
                input_ids=torch.tensor([ids[-1:]]), past_key_values=step.past_key_values,
                use_cache=True,
            )  # fmt: skip
            ids.append(int(step.logits[0, -1].argmax()))
        return ids


@dataclass
class Case:
    family: str
    settings: dict[str, Any]
    reference: Reference


def pictures() -> list[Image.Image]:
    """Return pictures of six shapes, two of them extreme."""
    rng = np.random.default_rng(3)
    images = []
    for width, height in ((90, 60), (70, 140), (56, 56), (300, 9), (7, 260), (51, 120)):
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        picture = np.stack([x, y, 1 - x], axis=-1) * 0.6 + 0.4 * rng.random((height, width, 3))
        picture[height // 4 : height // 2, width // 3 :] = rng.random(3)
        images.append(Image.fromarray((picture * 255).astype(np.uint8)))
    return images


# ---- parts

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def make(model: ModuleT, seed: int) -> ModuleT:
    fill(model, seed)
    return model.eval()


def clip_tower(seed: int, **changes: Any) -> CLIPVisionModel:
    config = CLIPVisionConfig(**{**_VISION, "num_hidden_layers": 4, **changes})
    return make(CLIPVisionModel(config), seed)


def siglip_tower(seed: int, **changes: Any) -> SiglipVisionModel:
    config = SiglipVisionConfig(**{**_VISION, "num_hidden_layers": 4, **changes})
    return make(SiglipVisionModel(config), seed)


def mlp(seed: int, *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.GELU()]
    return make(nn.Sequential(*layers[:-1]), seed)


def feature(model: Any, layer: int, n_skipped: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(pixels: torch.Tensor) -> torch.Tensor:
        states = model(pixels, output_hidden_states=True).hidden_states
        rows: torch.Tensor = states[layer][:, n_skipped:]
        return rows

    return run


def clip_processor(size: int = SIZE) -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )


def squared(image: Image.Image, mean: tuple[float, ...]) -> Image.Image:
    edge = max(image.size)
    square = Image.new("RGB", (edge, edge), tuple(int(m * 255) for m in mean))
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return square


def processed(processor: Any, pad: tuple[float, ...] | None = None) -> Pixels:
    def run(image: Image.Image) -> torch.Tensor:
        picture = image if pad is None else squared(image, pad)
        pixels: torch.Tensor = processor(picture, return_tensors="pt")["pixel_values"]
        return pixels

    return run


def tensors_of(model: nn.Module, lead: str = "") -> dict[str, torch.Tensor]:
    return {lead + n: t.clone() for n, t in model.state_dict().items() if "position_ids" not in n}


def save_bin(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write two shards in torch's own format, with their index."""
    names = sorted(tensors)
    shards = {f"pytorch_model-0000{i}-of-00002.bin": names[i - 1 :: 2] for i in (1, 2)}
    for file, held in shards.items():
        torch.save({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": weight_map})


def save_one(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data))


def write_vision(folder: Path, tower: Any, kind: str, processor: Any, bare: bool = False) -> None:
    """Write the tower's repository with its text half (CLIP), or without if `bare` (ShareGPT4V)."""
    folder.mkdir(parents=True)
    processor.save_pretrained(folder)
    tensors = tensors_of(tower)
    if bare:
        torch.save(tensors, folder / "pytorch_model.bin")
        write_json(folder / "config.json", tower.config.to_diff_dict())
        return
    config: dict[str, Any] = {**tower.config.to_dict(), "model_type": f"{kind}_vision_model"}
    if kind == "clip":
        tensors["text_model.embeddings.token_embedding.weight"] = torch.zeros(5, 8)
        tensors |= {"visual_projection.weight": torch.zeros(8, 48), "logit_scale": torch.zeros(1)}
        config = {"model_type": "clip", "vision_config": config, "text_config": {}}
    save_one(folder, tensors)
    write_json(folder / "config.json", config)


# ---- families

# Fields that descendants of LLaVA add or replace
_DESCENDANTS: dict[str, dict[str, Any]] = {
    "": {},
    # VILA's tag v1.0, `train.py`; its base is Llama 2, so it adds no token
    "vila": {
        "architectures": ["LlavaLlamaForCausalLM"], "freeze_mm_mlp_adapter": False,
        "mm_projector_lr": None, "mm_use_im_patch_token": False, "rope_scaling": None,
        "tokenizer_model_max_length": 4096, "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False, "use_mm_proj": True,
    },
    # ShareGPT4V's `train.py`: it trains the tower from layer 12 on and publishes it separately
    "share4v": {
        "model_type": "share4v", "architectures": ["Share4VLlamaForCausalLM"],
        "mm_vision_tower": "Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12",
        "freeze_mm_mlp_adapter": False, "image_grid_pinpoints": None, "mm_projector_lr": None,
        "mm_use_im_patch_token": False, "tune_entire_model": False, "tune_mm_mlp_adapter": False,
        "tune_vision_tower": False, "use_mm_proj": True, "vision_tower_lr": None,
    },
}  # fmt: skip


def write_llava(
    folder: Path, *, projector: str = "mlp2x_gelu", aspect: str = "pad", lm: str = "vicuna",
    tower: str = "clip", inside: bool = False, marks: bool = False, kind: str = "", seed: int = 1,
) -> Case:  # fmt: skip
    """Write the original layout: the tower is separate or, if `inside`, among the tensors.

    `marks` adds LLaVA v1's tokens around the picture. `kind` is a descendant: "vila" (1.0) or
    "share4v".
    """
    captioner, vision = folder / "captioner", folder / "vision"
    model = write_lm(captioner, lm, seed=seed)
    width = model.config.hidden_size
    for path in captioner.glob("*.safetensors*"):
        path.unlink()
    clip = tower == "clip"
    encoder = clip_tower(seed) if clip else siglip_tower(seed)
    processor = clip_processor() if clip else SiglipImageProcessor(size=square())
    write_vision(vision, encoder, tower, processor, bare=kind == "share4v")
    deep = projector != "linear"
    connector = mlp(seed, 48, width, width) if deep else mlp(seed, 48, width)
    names = tensors_of(connector, "model.mm_projector.")
    if not deep:
        names = {n.replace(".0.", "."): t for n, t in names.items()}
    tensors = {**tensors_of(model), **names}
    if inside:
        tensors |= tensors_of(encoder, "model.vision_tower.vision_tower.")
    save_bin(captioner, tensors)
    types = {"vicuna": "llava_llama", "qwen2": "llava_qwen", "mistral": "llava_mistral"}
    config = json.loads((captioner / "config.json").read_text())
    config |= {
        "model_type": types[lm], "mm_hidden_size": 48, "mm_vision_tower": "openai/clip-vit-large",
        "mm_projector_type": projector, "mm_vision_select_layer": -2, "mm_use_im_start_end": marks,
        "mm_vision_select_feature": "patch", "image_aspect_ratio": aspect, **_DESCENDANTS[kind],
    }  # fmt: skip
    write_json(captioner / "config.json", config)
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else ((0.5,) * 3, (0.5,) * 3)
    pad = aspect == "pad"
    who = "user" if kind == "vila" else "human"
    system = f"A chat between a curious {who} and an artificial intelligence assistant. The "
    system += f"assistant gives helpful, detailed, and polite answers to the {who}'s questions."
    before, after = f"{system} USER: ", "\n{} ASSISTANT:"
    if lm == "qwen2":
        before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        after = "\n{}<|im_end|>\n<|im_start|>assistant\n"
    added: dict[str, int] = {}
    if marks:  # the last rows of the embedding
        n = model.config.vocab_size
        added = {"<im_start>": n - 2, "<im_end>": n - 1}
        write_json(captioner / "added_tokens.json", added)
        before, after = f"{before}<im_start>", f"<im_end>{after}"
    reference = Reference(
        [processed(processor, mean if pad else None)], [feature(encoder, -2, int(clip))],
        connector, model, captioner, before, after, bos=lm != "qwen2", added=added,
        mode="pad" if pad else "crop" if clip else "stretch", mean=mean, std=std,
        between="\n" if kind == "vila" else "" if lm == "qwen2" else None,
    )  # fmt: skip
    family = "vila" if kind == "vila" else "llava"
    return Case(family, {"captioner": captioner, "vision": vision}, reference)


def write_llava_hf(
    folder: Path, *, tower: str = "clip", lm: str = "vicuna", newer: bool = False,
    strategy: str = "default", layer: int = -2, pad: bool = False, seed: int = 2,
) -> Case:  # fmt: skip
    """Write transformers' layout, with the names before or from (`newer`) version 4.52."""
    model = write_lm(folder, lm, seed=seed)
    text_config = json.loads((folder / "config.json").read_text())
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    clip = tower == "clip"
    encoder = clip_tower(seed) if clip else siglip_tower(seed)
    width = model.config.hidden_size
    connector = mlp(seed, 48, width, width)
    leads = ("model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", "")
    if not newer:
        leads = ("vision_tower.", "multi_modal_projector.", "language_model.model.",
                 "language_model.")  # fmt: skip
    tensors = tensors_of(encoder, leads[0])
    for name, tensor in tensors_of(connector).items():
        number, kind = name.split(".")
        tensors[f"{leads[1]}linear_{1 + int(number) // 2}.{kind}"] = tensor
    for name, tensor in tensors_of(model).items():
        inner = name.startswith("model.")
        tensors[leads[2] + name.removeprefix("model.") if inner else leads[3] + name] = tensor
    save_one(folder, tensors)
    vision_config = {**encoder.config.to_diff_dict(), "model_type": f"{tower}_vision_model"}
    write_json(folder / "config.json", {
        "model_type": "llava", "text_config": text_config, "vision_config": vision_config,
        "vision_feature_layer": layer, "vision_feature_select_strategy": strategy,
        "projector_hidden_act": "gelu", "image_token_index": 7,
    })  # fmt: skip
    processor: Any = clip_processor() if clip else SiglipImageProcessor(size=square())
    if pad:
        processor = LlavaImageProcessor(
            do_pad=True, size={"shortest_edge": SIZE}, crop_size=square()
        )
    processor.save_pretrained(folder)
    before, after = "USER: ", "\n{} ASSISTANT:"
    if lm == "qwen2":
        before, after = "<|im_start|>user ", "\n{}<|im_end|><|im_start|>assistant"
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else ((0.5,) * 3, (0.5,) * 3)
    reference = Reference(
        [processed(processor)], [feature(encoder, layer, int(strategy == "default"))], connector,
        model, folder, before, after, bos=lm != "qwen2",
        mode="pad" if pad else "crop" if clip else "stretch",
        mean=mean, std=std, between="" if lm == "qwen2" else None,
    )  # fmt: skip
    return Case("llava", {"captioner": folder}, reference)


def square(size: int = SIZE) -> dict[str, int]:
    return {"height": size, "width": size}
