"""The wide model: the first nano's modules at another size, with heads for all it is taught."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import Decoder, NanoConfig, Tower
from .draw import FRAME, PATCH
from .labels import PATCH_LABELS, SCENE_LABELS, WEIGHTS

CONFIG = NanoConfig(
    vision_width=256,
    vision_layers=5,
    vision_heads=4,
    vision_ffn=1024,
    image_size=FRAME,
    patch=PATCH,
    lm_width=256,
    lm_layers=4,
    lm_heads=4,
    lm_kv_heads=4,
    lm_ffn=704,
    vocab=1280,
)


class Heads(nn.Module):
    """Training only: reads the labels of each patch off the tower's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classes = (*PATCH_LABELS.values(), *SCENE_LABELS.values())
        self.out = nn.Linear(width, sum(self.classes))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return self.out(self.norm(features)).float().split(self.classes, dim=-1)

    def loss(self, features: Tensor, patch_labels: Tensor, scene_labels: Tensor) -> Tensor:
        """Features [b, n, d], patch labels [b, n, 12], scene labels [b, 3] → weighted sum."""
        b, n, _ = features.shape
        rows = self.norm(features).flatten(0, 1)
        labels = patch_labels.flatten(0, 1).long()
        # Most patches show background: of those only the rank and what is true of the scene is
        # learnt, and the many other classes are not even computed.
        shown = (labels >= 0).sum(-1) > 1
        total = features.new_zeros((), dtype=torch.float32)
        weights, biases = self.out.weight.split(self.classes), self.out.bias.split(self.classes)
        some, some_labels = rows[shown], labels[shown]
        for i, name in enumerate(PATCH_LABELS):
            inputs, target = (rows, labels[:, i]) if name == "rank" else (some, some_labels[:, i])
            if bool((target >= 0).any()):
                logits = F.linear(inputs, weights[i], biases[i]).float()
                loss = F.cross_entropy(logits, target, ignore_index=-1)
                total = total + WEIGHTS.get(name, 1.0) * loss
        for i, name in enumerate(SCENE_LABELS):
            target = scene_labels[:, i : i + 1].expand(b, n).flatten().long()
            if bool((target >= 0).any()):
                at = len(PATCH_LABELS) + i
                logits = F.linear(rows, weights[at], biases[at]).float()
                loss = F.cross_entropy(logits, target, ignore_index=-1)
                total = total + WEIGHTS.get(name, 1.0) * loss
        return total


class Wide(nn.Module):
    """Tower → projector → decoder, and the heads that only training uses."""

    def __init__(self, c: NanoConfig = CONFIG) -> None:
        super().__init__()
        self.config = c
        self.tower = Tower(c)
        self.heads = Heads(c.vision_width)
        self.projector = nn.Sequential(
            nn.Linear(c.vision_width, c.lm_width), nn.GELU(), nn.Linear(c.lm_width, c.lm_width)
        )
        self.decoder = Decoder(c)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=min(0.05, module.in_features**-0.5 * 0.7))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.decoder.tok_embeddings.weight, std=0.05)
        depth = 2 * max(c.vision_layers, c.lm_layers)
        for name, p in self.named_parameters():
            last = name.endswith(("out.weight", "fc2.weight", "wo.weight", "w2.weight"))
            if last and "heads" not in name:
                p.data.div_(depth**0.5)

    def embed(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.decoder.tok_embeddings(ids)
        return rows
