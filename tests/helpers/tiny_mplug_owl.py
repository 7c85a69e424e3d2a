"""Tiny mPLUG-Owl checkpoints in their published layout, and a reference in plain torch.

Source: mPLUG-Owl's public code (`modeling_mplug_owl.py`, `configuration_mplug_owl.py`,
`processing_mplug_owl.py`, and the example of its README). The language model is transformers' own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from tests.helpers import tiny_captioners as tiny
from tests.helpers.tiny_lm import write_lm

_HEADS, _WIDTH, _FFN, _LAYERS = 4, 48, 96, 3
_ABSTRACTOR_HEADS, _ABSTRACTOR_FFN, _ABSTRACTOR_LAYERS, _QUERIES = 3, 80, 2, 8
_EPS = 1e-6  # of the configurations; norm1, norm2 and normk keep torch's default of 1e-5
_BEFORE = (
    "The following is a conversation between a curious human and AI assistant. The assistant "
    "gives helpful, detailed, and polite answers to the user's questions.\nHuman: "
)


class Attention(nn.Module):
    """Self-attention whose packed matrix holds query, key and value of each head in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.dense = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, rows, width] → the same shape."""
        n, rows, _ = x.shape
        packed = self.query_key_value(x).view(n, rows, _HEADS, 3, _WIDTH // _HEADS)
        q, k, v = (packed[:, :, :, i].transpose(1, 2) for i in range(3))
        y: torch.Tensor = self.dense(
            functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        )
        return y


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.input_layernorm = nn.LayerNorm(_WIDTH, eps=_EPS)
        self.post_attention_layernorm = nn.LayerNorm(_WIDTH, eps=_EPS)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(_WIDTH, _FFN), "fc2": nn.Linear(_FFN, _WIDTH)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, rows, width] → the same shape."""
        x = x + self.self_attn(self.input_layernorm(x))
        inner = self.mlp["fc1"](self.post_attention_layernorm(x))
        y: torch.Tensor = x + self.mlp["fc2"](inner * torch.sigmoid(1.702 * inner))
        return y


class Embeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        n = (tiny.SIZE // tiny.PATCH) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, _WIDTH))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + n, _WIDTH))
        self.patch_embed = nn.Conv2d(3, _WIDTH, tiny.PATCH, tiny.PATCH, bias=False)
        self.pre_layernorm = nn.LayerNorm(_WIDTH, eps=_EPS)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, size, size] → [n, 1 + patches, width]."""
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        rows = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1)
        x: torch.Tensor = self.pre_layernorm(rows + self.position_embedding)
        return x


class VisionModel(nn.Module):
    """The tower: all layers, then a norm on every row, the class row included."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Layer() for _ in range(_LAYERS))})
        self.post_layernorm = nn.LayerNorm(_WIDTH, eps=_EPS)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, size, size] → [n, 1 + patches, width]."""
        x = self.embeddings(pixels)
        layers: Iterable[nn.Module] = self.encoder["layers"]  # type: ignore[assignment]
        for layer in layers:
            x = layer(x)
        y: torch.Tensor = self.post_layernorm(x)
        return y


class Mlp(nn.Module):
    """A gated feed-forward network with a norm before its last matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(_WIDTH, _ABSTRACTOR_FFN) for _ in range(2))
        self.w2 = nn.Linear(_ABSTRACTOR_FFN, _WIDTH)
        self.ffn_ln = nn.LayerNorm(_ABSTRACTOR_FFN, eps=_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, rows, width] → the same shape."""
        y: torch.Tensor = self.w2(self.ffn_ln(functional.silu(self.w1(x)) * self.w3(x)))
        return y


class CrossAttention(nn.Module):
    """One layer of the abstractor: queries see themselves and the picture, both normed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.normk = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        names = ("query", "key", "value")
        self.attention = nn.ModuleDict({name: nn.Linear(_WIDTH, _WIDTH) for name in names})
        self.output = nn.ModuleDict(
            {"out_proj": nn.Linear(_WIDTH, _WIDTH), "norm2": nn.LayerNorm(_WIDTH), "mlp": Mlp()}
        )

    def forward(self, queries: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """[n, queries, width], [n, rows, width] → [n, queries, width]."""
        h = self.norm1(queries)  # what the residual branch carries on, too
        seen = torch.cat([h, self.normk(image)], dim=1)

        def heads(name: str, x: torch.Tensor) -> torch.Tensor:
            shaped: torch.Tensor = self.attention[name](x).unflatten(-1, (_ABSTRACTOR_HEADS, -1))
            return shaped.transpose(1, 2)

        attended = functional.scaled_dot_product_attention(
            heads("query", h), heads("key", seen), heads("value", seen)
        )
        h = h + self.output["out_proj"](attended.transpose(1, 2).flatten(2))
        y: torch.Tensor = h + self.output["mlp"](self.output["norm2"](h))
        return y


class Abstractor(nn.Module):
    """The tower's rows → a few query rows, in the language model's width, and one row of end."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = (
            nn.ModuleDict({"crossattention": CrossAttention()}) for _ in range(_ABSTRACTOR_LAYERS)
        )
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.visual_fc = nn.Linear(_WIDTH, width)
        self.vit_eos = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, queries: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """[1, queries, width], [n, rows, width] → [n, queries + 1, width of the LM]."""
        x = queries.expand(len(image), -1, -1)
        layers: Iterable[nn.ModuleDict] = self.encoder["layers"]  # type: ignore[assignment]
        for layer in layers:
            x = layer["crossattention"](x, image)
        return torch.cat([self.visual_fc(x), self.vit_eos.expand(len(image), -1, -1)], dim=1)


class Vision(nn.Module):
    """All that is not the language model, with the published names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vision_model = VisionModel()
        self.abstractor = Abstractor(width)
        self.query_tokens = nn.Parameter(torch.zeros(1, _QUERIES, _WIDTH))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The tower's rows [n, rows, width] → visual tokens [n, queries + 1, width of the LM]."""
        rows: torch.Tensor = self.abstractor(self.query_tokens, features)
        return rows


def write_mplug_owl(
    folder: Path, *, abstractor: str = "visual_abstractor_config", seed: int = 31
) -> tiny.Case:
    """Write the published folder; `abstractor` is the name of its field in config.json.

    The repository's configuration class writes "visual_abstractor_config"; other code of the same
    repository reads "abstractor_config". The folder holds no file of an image processor: pictures
    are stretched, as in training.
    """
    model = write_lm(folder, "vicuna", seed=seed)
    text_config = json.loads((folder / "config.json").read_text())
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    vision = tiny.make(Vision(model.config.hidden_size), seed)
    tensors = {**tiny.tensors_of(vision), **tiny.tensors_of(model, "language_model.")}
    tiny.save_bin(folder, tensors)
    tiny.write_json(folder / "config.json", _config(text_config, abstractor))
    stock = tiny.processed(tiny.clip_processor())  # of a square it crops nothing

    def pixels(image: Image.Image) -> torch.Tensor:
        stretched = image.resize((tiny.SIZE, tiny.SIZE), Image.Resampling.BICUBIC)
        return stock(stretched)

    reference = tiny.Reference(
        [pixels], [vision.vision_model], vision, model, folder, _BEFORE, "\nHuman: {}\nAI: "
    )
    return tiny.Case("mplug-owl", {"captioner": folder}, reference)


def _config(text: dict[str, object], abstractor: str) -> dict[str, object]:
    """Return config.json as the repository's configuration class writes it."""
    return {
        "architectures": ["MplugOwlForConditionalGeneration"],
        "model_type": "mplug-owl",
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "is_encoder_decoder": False,
        "num_query_tokens": _QUERIES,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.28.1",
        "use_decoder_only_language_model": True,
        "text_config": {**text, "model_type": "llama", "pad_token_id": 2},
        "vision_config": {
            "model_type": "mplug_owl_vision_model", "hidden_size": _WIDTH,
            "intermediate_size": _FFN, "projection_dim": 768, "num_hidden_layers": _LAYERS,
            "num_attention_heads": _HEADS, "num_channels": 3, "image_size": tiny.SIZE,
            "patch_size": tiny.PATCH, "hidden_act": "quick_gelu", "layer_norm_eps": _EPS,
            "attention_dropout": 0.0, "initializer_range": 0.02, "initializer_factor": 1.0,
            "use_flash_attn": False,
        },
        abstractor: {
            "model_type": "mplug_owl_visual_abstract", "hidden_size": _WIDTH,
            "num_hidden_layers": _ABSTRACTOR_LAYERS, "num_attention_heads": _ABSTRACTOR_HEADS,
            "intermediate_size": _ABSTRACTOR_FFN, "attention_probs_dropout_prob": 0.1,
            "initializer_range": 0.02, "layer_norm_eps": _EPS, "encoder_hidden_size": _WIDTH,
        },
    }  # fmt: skip
