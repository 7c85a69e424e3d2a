"""Tiny Qwen-VL and Qwen-VL-Chat checkpoints in their published layout, and a reference.

Source: the code in the published repositories (`visual.py`, `modeling_qwen.py`,
`tokenization_qwen.py`, `qwen_generation_utils.py`). The tower and its resampler are plain torch;
the language model is transformers' Qwen2 with its matrices packed as Qwen's first version packs
them; the tokenizer is byte-pair encoding by ranks, as tiktoken does it.
"""

from __future__ import annotations

import base64
import itertools
import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import regex  # type: ignore[import-untyped]
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from tests.helpers import tiny_captioners as tiny
from tests.helpers.tiny_lm import fill, write_any_tokenizer

_SIZE, _PATCH = 280, 14
_WIDTH, _HEADS, _LAYERS, _MLP_RATIO = 64, 4, 2, 4.9231
_SIDE = 16  # of the stored tables of positions and of the queries, in every published model
_LM_WIDTH, _LM_HEADS, _LM_FFN = 256, 4, 320
_HEAD = 128  # the resampler's heads are as wide as this in every published model
_EPS = 1e-6
_PATTERN = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)),
    "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>",
)  # fmt: skip
_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: <img>"
)


class Attention(nn.Module):
    """Self-attention whose packed matrix holds query, key and value of each head in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out_proj = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, rows, width] → the same shape."""
        per_head = self.in_proj(x).unflatten(-1, (_HEADS, 3 * (_WIDTH // _HEADS)))
        q, k, v = (part.transpose(1, 2) for part in per_head.chunk(3, dim=-1))
        attended = functional.scaled_dot_product_attention(q, k, v)
        y: torch.Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return y


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inner = int(_WIDTH * _MLP_RATIO)
        self.ln_1, self.ln_2 = (nn.LayerNorm(_WIDTH, eps=_EPS) for _ in range(2))
        self.attn = Attention()
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(_WIDTH, inner), "c_proj": nn.Linear(inner, _WIDTH)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, rows, width] → the same shape."""
        x = x + self.attn(self.ln_1(x))
        y: torch.Tensor = x + self.mlp["c_proj"](functional.gelu(self.mlp["c_fc"](self.ln_2(x))))
        return y


class Pool(nn.Module):
    """Queries with positions read the patches with positions; values have none."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(_SIDE**2, _LM_WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(_SIDE**2, _LM_WIDTH))
        self.kv_proj = nn.Linear(_WIDTH, _LM_WIDTH, bias=False)
        self.ln_q, self.ln_kv = (nn.LayerNorm(_LM_WIDTH, eps=_EPS) for _ in range(2))
        self.attn = nn.MultiheadAttention(_LM_WIDTH, _LM_WIDTH // _HEAD, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, patches, width] → [n, queries, width of the LM]."""
        values = self.ln_kv(self.kv_proj(x))
        keys = values + resized(self.pos_embed, x.shape[1])
        queries = (self.ln_q(self.query) + self.pos_embed).expand(len(x), -1, -1)
        y: torch.Tensor = self.attn(queries, keys, values, need_weights=False)[0]
        return y


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _WIDTH, _PATCH, _PATCH, bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros(_SIDE**2, _WIDTH))
        self.ln_pre = nn.LayerNorm(_WIDTH, eps=_EPS)
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList(Block() for _ in range(_LAYERS))}
        )
        self.attn_pool = Pool()
        self.ln_post = nn.LayerNorm(_LM_WIDTH, eps=_EPS)
        self.proj = nn.Parameter(torch.zeros(_LM_WIDTH, _LM_WIDTH))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, size, size] → [n, patches, width]."""
        x: torch.Tensor = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = self.ln_pre(x + resized(self.positional_embedding, x.shape[1]))
        blocks: Iterable[nn.Module] = self.transformer["resblocks"]  # type: ignore[assignment]
        for block in blocks:
            x = block(x)
        return x

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """[n, patches, width] → visual tokens [n, queries, width of the LM]."""
        rows: torch.Tensor = self.ln_post(self.attn_pool(x)) @ self.proj
        return rows


def resized(table: torch.Tensor, n: int) -> torch.Tensor:
    """A square table of positions [rows, width] for `n` patches, bicubic."""
    old, new = round(len(table) ** 0.5), round(n**0.5)
    square = table.view(1, old, old, -1).permute(0, 3, 1, 2)
    square = functional.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return square[0].flatten(1).t()


class Reference(tiny.Reference):
    """The reference with a tokenizer of ranks."""

    def prompt_ids(self) -> list[list[int]]:
        """Return the ids before, between and after pictures."""
        lines = (self.tokenizer / "qwen.tiktoken").read_bytes().split()
        pairs = zip(lines[::2], lines[1::2], strict=True)
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        special = {name: len(ranks) + i for i, name in enumerate(_SPECIAL)}
        texts = (self.before, self.between or "", self.after.format(tiny.INSTRUCTION))
        return [text_to_ids(text, ranks, special) for text in texts]


def text_to_ids(text: str, ranks: dict[bytes, int], special: dict[str, int]) -> list[int]:
    """Encode `text` with special tokens written out."""
    ids: list[int] = []
    names = "|".join(map(regex.escape, special))
    for part in regex.split(f"({names})", unicodedata.normalize("NFC", text)):
        if part in special:
            ids.append(special[part])
            continue
        for word in _PATTERN.findall(part):
            ids += [ranks[piece] for piece in _merged(word.encode(), ranks)]
    return ids


def _merged(word: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Join the neighbours whose union has the lowest rank, until no union has one."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while True:
        joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        if not joined or min(joined) == len(ranks):
            return parts
        at = joined.index(min(joined))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def write_qwen_vl(folder: Path, *, chat: bool = True, seed: int = 41) -> tiny.Case:
    """Write Qwen-VL-Chat's folder, or with `chat` false that of Qwen-VL."""
    folder.mkdir(parents=True)
    n_vocab = write_tokenizer(folder) + 11  # rows of padding, as published
    config = Qwen2Config(
        hidden_size=_LM_WIDTH, intermediate_size=_LM_FFN, num_hidden_layers=2,
        num_attention_heads=_LM_HEADS, num_key_value_heads=_LM_HEADS, rms_norm_eps=_EPS,
        rope_theta=10000.0, vocab_size=n_vocab, max_position_embeddings=2048,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    fill(model, seed)
    tower = tiny.make(Tower(), seed + 1)
    tensors = {**tiny.tensors_of(tower, "transformer.visual."), **_packed(model)}
    tiny.save_bin(folder, tensors)
    tiny.write_json(folder / "config.json", _config(n_vocab))
    generation = {"chat_format": "chatml" if chat else "raw", "max_new_tokens": 512}
    tiny.write_json(folder / "generation_config.json", generation)
    reference = Reference(
        [pixels], [tower.features], tower.pooled, model, folder,
        _CHAT if chat else "<img>",
        "</img>\n{}<|im_end|>\n<|im_start|>assistant\n" if chat else "</img>{}", bos=False,
    )  # fmt: skip
    return tiny.Case("qwen-vl", {"captioner": folder}, reference)


def pixels(image: Image.Image) -> torch.Tensor:
    """Stretch `image` with a bicubic filter and normalise it as CLIP does."""
    stretched = image.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
    values = torch.frombuffer(bytearray(stretched.tobytes()), dtype=torch.uint8)
    x = values.view(_SIZE, _SIZE, 3).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny.CLIP_MEAN, tiny.CLIP_STD))
    return ((x - mean) / std)[None]


def _packed(model: Qwen2ForCausalLM) -> dict[str, torch.Tensor]:
    """Return Qwen2's tensors with the names and the packing of Qwen's first version."""
    state = model.state_dict()
    tensors = {
        "transformer.wte.weight": state["model.embed_tokens.weight"],
        "transformer.ln_f.weight": state["model.norm.weight"],
        "lm_head.weight": state["lm_head.weight"],
    }
    for i in range(model.config.num_hidden_layers):
        ours, theirs = f"transformer.h.{i}.", f"model.layers.{i}."
        for kind in ("weight", "bias"):
            tensors[f"{ours}attn.c_attn.{kind}"] = torch.cat(
                [state[f"{theirs}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            )
        for name, stock in {
            "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm",
            "attn.c_proj": "self_attn.o_proj", "mlp.w1": "mlp.up_proj", "mlp.w2": "mlp.gate_proj",
            "mlp.c_proj": "mlp.down_proj",
        }.items():  # fmt: skip
            tensors[f"{ours}{name}.weight"] = state[f"{theirs}{stock}.weight"]
    return {name: tensor.clone() for name, tensor in tensors.items()}


def write_tokenizer(folder: Path) -> int:
    """Write the file of ranks and tokenizer_config.json; return the number of ids."""
    write_any_tokenizer(folder, "qwen2")
    stock = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    letters = {letter: number for number, letter in bytes_to_unicode().items()}
    ranks = {bytes([letters[letter]]): rank for rank, letter in enumerate(letters)}
    for left, right in stock["model"]["merges"]:
        token = bytes(letters[letter] for letter in left + right)
        ranks.setdefault(token, len(ranks))
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    (folder / "qwen.tiktoken").write_text("".join(lines))
    tiny.write_json(folder / "tokenizer_config.json", {
        "model_max_length": 8192, "tokenizer_class": "QWenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
    })  # fmt: skip
    return len(ranks) + len(_SPECIAL)


def _config(n_vocab: int) -> dict[str, Any]:
    """Return config.json with the published fields."""
    return {
        "architectures": ["QWenLMHeadModel"], "attn_dropout_prob": 0.0, "bf16": False,
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig",
                     "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
        "emb_dropout_prob": 0.0, "fp16": False, "fp32": False, "hidden_size": _LM_WIDTH,
        "initializer_range": 0.02, "intermediate_size": 2 * _LM_FFN,
        "kv_channels": _LM_WIDTH // _LM_HEADS, "layer_norm_epsilon": _EPS,
        "max_position_embeddings": 8192, "model_type": "qwen", "no_bias": True,
        "num_attention_heads": _LM_HEADS, "num_hidden_layers": 2, "onnx_safe": None,
        "rotary_emb_base": 10000, "rotary_pct": 1.0, "scale_attn_weights": True,
        "seq_length": 2048, "tie_word_embeddings": False, "tokenizer_type": "QWenTokenizer",
        "torch_dtype": "bfloat16", "transformers_version": "4.31.0", "use_cache": True,
        "use_dynamic_ntk": True, "use_flash_attn": False, "use_logn_attn": True,
        "visual": {"heads": _HEADS, "image_size": _SIZE, "image_start_id": n_vocab - 11 - 3,
                   "layers": _LAYERS, "mlp_ratio": _MLP_RATIO, "output_dim": _LM_WIDTH,
                   "patch_size": _PATCH, "width": _WIDTH},
        "vocab_size": n_vocab,
    }  # fmt: skip
