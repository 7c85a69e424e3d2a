"""Tiny MiniCPM-V 1.0, 2.0 and Llama3-V 2.5 checkpoints, and what upstream computes.

transformers holds none of the three as a whole. Its Llama serves for both language models, with
scaled weights for MiniCPM's.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from tests.helpers import tiled
from tests.helpers.checkpoints import CORPUS
from tests.helpers.minicpm_v_parts import (
    MOST,
    PATCH,
    WIDTH,
    Resampler,
    TimmTower,
    cut,
    idefics2_tower,
    sincos_table,
    strip,
)  # fmt: skip
from tests.helpers.tiny_captioners import save_bin, tensors_of
from tests.helpers.tiny_lm import write_any_tokenizer

SCALE, N_EMBD = 56, 256  # the published scale is 448
SCALE_EMB, SCALE_DEPTH, BASE = 12, 0.6, 64  # published: 12, 1.4 (of 40 layers), 256 (of 2304)
SPECIAL = [
    "<image>", "</image>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<point>",
    "</point>", "<slice>", "</slice>",
]  # fmt: skip


@dataclass
class Case:
    family: str
    settings: dict[str, Any]
    reference: MiniCpmReference


@dataclass
class MiniCpmReference:
    """A MiniCPM-V in float32.

    `lm` has the scales of embeddings, branches and logits in its weights: its embedding gives what
    upstream hands to the first layer.
    """

    version: str
    folder: Path
    tower: nn.Module
    resampler: Resampler
    lm: LlamaForCausalLM
    n_queries: int
    scale: int = SCALE
    most: int = MOST
    added: dict[str, int] = field(default_factory=dict)

    @property
    def rows_divisor(self) -> float:
        """Return what llama.cpp multiplies a picture's rows by, and upstream does not."""
        return 1.0 if self.version == "2.5" else float(SCALE_EMB)

    def pictures(self, image: Image.Image) -> tuple[list[Image.Image], tuple[int, int]]:
        """Return the RGB pictures that the tower sees, and their grid (columns, rows)."""
        if self.version == "1.0":
            return [image.resize((self.scale, self.scale), Image.Resampling.BICUBIC)], (0, 0)
        return cut(image, self.scale, self.most)

    @torch.inference_mode()
    def upstream_rows(self, image: Image.Image) -> torch.Tensor:
        """[n_pictures, n_queries, n_embd] as upstream hands them to its language model."""
        each = []
        for picture in self.pictures(image)[0]:
            grey = torch.from_numpy(np.asarray(picture, np.float32) / 255)
            pixels = ((grey - 0.5) / 0.5).permute(2, 0, 1)[None]
            grid = (picture.height // PATCH, picture.width // PATCH)
            each.append(self.resampler(self._patches(pixels), grid))
        return torch.cat(each)

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """[1, 3, h, w] normalised → [1, n_patches, width]"""
        if self.version == "2.5":
            states: torch.Tensor = self.tower(strip(pixels)).last_hidden_state
            return states
        rows: torch.Tensor = self.tower(pixels)
        return rows

    def visual_tokens(self, image: Image.Image) -> torch.Tensor:
        """[n_tokens, n_embd] as a language model takes them that scales all rows alike."""
        return self.upstream_rows(image).flatten(0, 1) / self.rows_divisor

    def greedy(
        self, image: Image.Image, n_tokens: int = tiled.N_TOKENS, *others: Image.Image,
        instruction: str = tiled.INSTRUCTION,
    ) -> list[int]:  # fmt: skip
        """Return the greedy text's ids; `others` follow in the same prompt (2.5 alone)."""
        images = (image, *others)
        ids = torch.tensor([self.prompt_ids(instruction, *images)])
        rows = torch.cat([self.upstream_rows(each).flatten(0, 1) for each in images])
        with torch.inference_mode():
            embedded = self.lm.get_input_embeddings()(ids)
            embedded[0, self._places(ids[0])] = rows
            message = tiled.generated(
                self.lm, inputs_embeds=embedded, attention_mask=torch.ones_like(ids)
            )
        return message[:n_tokens]

    def output(self, *images: Image.Image) -> tiled.ModelOutput:
        rows = torch.cat([self.visual_tokens(image) for image in images])
        return tiled.ModelOutput(rows.numpy(), self.greedy(images[0], tiled.N_TOKENS, *images[1:]))

    def prompt_ids(self, instruction: str, *images: Image.Image) -> list[int]:
        """Return upstream's prompt, in which a picture's rows are `<unk>`."""
        shown = "\n".join([*map(self._placeholder, images), instruction])
        if self.version == "2.5":
            text = (
                "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
                f"{shown.strip()}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
            )
            fast = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            return list(fast.encode(text, add_special_tokens=False).ids)
        slow = LlamaTokenizer.from_pretrained(self.folder)
        return list(slow.encode(f"<用户>{shown}<AI>"))  # with <s>, as its configuration says

    def _placeholder(self, image: Image.Image) -> str:
        one = f"<image>{'<unk>' * self.n_queries}</image>"
        columns, rows = self.pictures(image)[1]
        if not columns:
            return one
        return f"{one}<slice>{chr(10).join([one * columns] * rows)}</slice>"

    def _places(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the indices of the ids between `<image>` and `</image>`."""
        start, end = (torch.nonzero(ids == self.added[name])[:, 0] for name in SPECIAL[:2])
        return torch.cat(
            [torch.arange(int(a) + 1, int(b)) for a, b in zip(start, end, strict=True)]
        )


def write_minicpm_v(
    folder: Path, version: str, *, scale: int = SCALE, most: int = MOST, seed: int = 0
) -> Case:
    """Write a checkpoint in its published layout: 1.0 as two `.bin`, the others in safetensors.

    The configuration of 1.0 was not seen; it has the fields of 2.0 but for those about slices.

    Parameters:
        version: "1.0", "2.0" or "2.5"
        scale: side of a picture's usual area, 448 in the published models
    """
    folder.mkdir(parents=True)
    llama3 = version == "2.5"
    n_queries = 5 if llama3 else 9
    added = _write_llama3_tokenizer(folder) if llama3 else _write_spm_tokenizer(folder)
    text = {
        "hidden_size": N_EMBD, "intermediate_size": 320, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2 if llama3 else 4,
        "max_position_embeddings": 8192 if llama3 else 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0 if llama3 else 10000.0, "rope_scaling": None,
        "vocab_size": max(added.values()) + 3, "tie_word_embeddings": False,
        "attention_bias": False, "hidden_act": "silu", "initializer_range": 0.1,
        "bos_token_id": added["bos"], "eos_token_id": added["eos"], "pretraining_tp": 1,
    }  # fmt: skip
    lm = LlamaForCausalLM(LlamaConfig(**text)).eval()
    # 1.0 enlarges its table of positions as published (27 to 32), 2.0 does both
    tower = (
        idefics2_tower() if llama3 else TimmTower(WIDTH, 16, 96, 2, 3 if version == "1.0" else 6)
    )
    resampler = Resampler(version, n_queries, N_EMBD, WIDTH)
    for number, module in enumerate((lm, tower, resampler)):
        fill(module.eval(), 3 * seed + number)
    if not llama3:
        side = math.isqrt(n_queries)
        with torch.no_grad():  # stored in the published precision, which a computed table is not
            stored = sincos_table(side, side, N_EMBD).bfloat16().float()
            resampler.pos_embed.copy_(stored)
            lm.model.embed_tokens.weight /= SCALE_EMB
    tensors = tensors_of(lm, "llm.") | tensors_of(tower, "vpm.")
    tensors |= tensors_of(resampler, "resampler.")
    if version == "1.0":
        save_bin(folder, tensors)
    else:
        save_shards(folder, tensors, 7 if llama3 else 2)
    _write_configs(folder, version, text, n_queries, scale, most)
    if not llama3:
        scale_weights(lm)
    reference = MiniCpmReference(
        version, folder, tower, resampler, lm, n_queries, scale, most, added
    )
    return Case("minicpm-v", {"captioner": folder}, reference)


def fill(model: nn.Module, seed: int) -> None:
    """Fill `model` with random weights under which rows and texts depend on every input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(0.2 * noise + (0.0 if name.endswith("bias") else 1.0))
            elif any(part in name for part in ("embed_tokens", "pos", "query")):
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * (1.6 / parameter[0].numel() ** 0.5))


def scale_weights(lm: LlamaForCausalLM) -> None:
    """Put MiniCPM's three scales into the weights of a Llama."""
    n_layers = lm.config.num_hidden_layers
    with torch.no_grad():
        lm.model.embed_tokens.weight *= SCALE_EMB
        lm.lm_head.weight /= lm.config.hidden_size / BASE
        for layer in lm.model.layers:
            for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
                branch.weight *= SCALE_DEPTH / math.sqrt(n_layers)


def save_shards(folder: Path, tensors: dict[str, torch.Tensor], n_shards: int) -> None:
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i in range(n_shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[i::n_shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_configs(
    folder: Path, version: str, text: dict[str, Any], n_queries: int, scale: int, most: int
) -> None:
    parts = ("AutoModel", "AutoModelForCausalLM")
    config: dict[str, Any] = {
        **text, "architectures": ["MiniCPMV"], "model_type": "minicpmv", "use_cache": True,
        "auto_map": {
            "AutoConfig": "configuration_minicpm.MiniCPMVConfig",
            **dict.fromkeys(parts, "modeling_minicpmv.MiniCPMV"),
        },
        "attention_dropout": 0.0, "image_size": scale, "mm_use_im_start_end": True,
        "patch_size": PATCH, "query_num": n_queries,
    }  # fmt: skip
    names = {"1.0": "MiniCPM-V", "2.0": "MiniCPM-V-2", "2.5": "MiniCPM-Llama3-V-2_5"}
    config["_name_or_path"] = f"openbmb/{names[version]}"
    if version == "2.5":
        config |= {
            "version": "2.5", "batch_vision_input": True, "drop_vision_last_layer": False,
            "slice_mode": True, "torch_dtype": "float16", "transformers_version": "4.40.0",
            "slice_config": {
                "max_slice_nums": most, "patch_size": PATCH, "model_type": "minicpmv",
                "scale_resolution": scale,  # the published file leaves it at the class's 448
            },
            "vision_config": {
                "hidden_size": WIDTH, "image_size": 980, "intermediate_size": 96,
                "model_type": "idefics2", "num_attention_heads": 4, "num_hidden_layers": 2,
                "patch_size": PATCH,
            },
        }  # fmt: skip
    else:
        config |= {
            "dim_model_base": BASE, "drop_vision_last_layer": True, "scale_depth": SCALE_DEPTH,
            "scale_emb": SCALE_EMB, "torch_dtype": "bfloat16", "transformers_version": "4.36.0",
            "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
        }  # fmt: skip
    if version == "2.0":
        config |= {"max_slice_nums": most, "scale_resolution": scale, "slice_mode": True}
    _write_json(folder / "config.json", config)
    if version == "2.5":
        _write_json(folder / "preprocessor_config.json", {
            "image_processor_type": "MiniCPMVImageProcessor",
            "processor_class": "MiniCPMVProcessor", "max_slice_nums": most,
            "scale_resolution": scale, "patch_size": PATCH, "image_feature_size": n_queries,
            "im_start": "<image>", "im_end": "</image>", "slice_start": "<slice>",
            "slice_end": "</slice>", "unk": "<unk>", "norm_mean": [0.5] * 3, "norm_std": [0.5] * 3,
            "version": 2.5,
        })  # fmt: skip


def _write_spm_tokenizer(folder: Path) -> dict[str, int]:
    """Write the tokenizer of 1.0 and 2.0: marks are pieces, the names of speakers are not."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS * 4, *["<用户>", "<AI>"] * 8]), model_writer=trained,
        model_type="bpe", vocab_size=420, byte_fallback=True, user_defined_symbols=SPECIAL,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, add_dummy_prefix=True, split_digits=True,
        character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    ids = {name: model.piece_to_id(name) for name in ("<unk>", "<s>", "</s>", *SPECIAL)}
    _write_json(folder / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": _added(ids),
        "additional_special_tokens": SPECIAL, "bos_token": "<s>", "eos_token": "</s>",
        "auto_map": {"AutoTokenizer": ["modeling_minicpmv.LlamaTokenizerWrapper", None]},
        "clean_up_tokenization_spaces": False, "legacy": True, "pad_token": "<unk>",
        "padding_side": "right", "sp_model_kwargs": {}, "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>",
        "use_default_system_prompt": False,
    })  # fmt: skip
    return {**ids, "bos": 1, "eos": 2, "last": len(model) - 1}


def _write_llama3_tokenizer(folder: Path) -> dict[str, int]:
    """Write the tokenizer of 2.5: Llama 3's with renamed reserved tokens."""
    write_any_tokenizer(folder, "llama3")
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["<|end_of_text|>", "<unk>", *SPECIAL])
    tokenizer.save(str(path))
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<unk>", "<|start_header_id|>",
             "<|end_header_id|>", "<|eot_id|>", *SPECIAL]  # fmt: skip
    ids = {name: tokenizer.token_to_id(name) for name in names}
    template = (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
        "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | "
        "trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
        "{% endif %}{{ content }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    )
    _write_json(folder / "tokenizer_config.json", {
        "added_tokens_decoder": _added(ids), "bos_token": "<|begin_of_text|>",
        "auto_map": {"AutoTokenizer": ["tokenization_minicpmv_fast.MiniCPMVTokenizerFast", None]},
        "chat_template": template, "clean_up_tokenization_spaces": True,
        "eos_token": "<|end_of_text|>", "pad_token": "!", "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"], "truncation_side": "right",
        "tokenizer_class": "MiniCPMVTokenizerFast", "unk_token": "<unk>",
    })  # fmt: skip
    last = tokenizer.get_vocab_size() - 1
    return {**ids, "bos": ids[names[0]], "eos": ids[names[1]], "last": last}


def _added(ids: dict[str, int]) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {str(i): {"content": name, **flags, "special": True} for name, i in ids.items()}


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1))
