"""timm's VisionTransformer as published → a tower of the vision graph.

Sources: timm's `vision_transformer.py` (names, and what each architecture sets), the weights of
timm/vit_*. Sizes come from the tensors' shapes, all other settings from the TimmArchitectures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import TowerConfig
from edgeprism.convert.vision.weights import (
    Weight,
    Weights,
    linear_weights,
    norm_weights,
    patch_rows,
    resized_positions,
    same,
)
from edgeprism.errors import CheckpointError


@dataclass(frozen=True)
class TimmArchitecture:
    """The settings of a model that its tensors do not reveal."""

    n_heads: int
    eps: float
    activation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
ARCHITECTURES = {
    "dinov2-l": TimmArchitecture(16, 1e-6, "gelu", *_IMAGENET),
    "siglip-b": TimmArchitecture(12, 1e-6, "gelu", *_HALF),
    "siglip-so": TimmArchitecture(16, 1e-6, "gelu", *_HALF),
    "clip-b": TimmArchitecture(12, 1e-5, "quick_gelu", *_CLIP),
    "clip-l": TimmArchitecture(16, 1e-5, "quick_gelu", *_CLIP),
    # CLIP was trained with the quick GELU; timm itself runs it with the exact one
    "clip-l-gelu": TimmArchitecture(16, 1e-5, "gelu", *_CLIP),
}

_PROBE = "patch_embed.proj.weight"


@dataclass(frozen=True)
class TimmTower:
    """A tower up to its second-to-last block; `unused` matches tensors that it may ignore."""

    config: TowerConfig
    weights: Weights
    unused: tuple[str, ...]


def timm_tower(
    checkpoint: Checkpoint, architecture: TimmArchitecture, image_size: int, whole: bool = False
) -> TimmTower:
    """Return the tower in `checkpoint` for pictures of `image_size` pixels.

    It ends with the second-to-last block or, if it is `whole`, with the norm after the last. It
    resamples positions of another grid, as timm does when it loads a model. Raises
    CheckpointError if `checkpoint` has no timm VisionTransformer.
    """
    names = checkpoint.names
    lead = next((n.removesuffix(_PROBE) for n in sorted(names) if n.endswith(_PROBE)), None)
    depth = 1 + max(
        (_block_number(n, lead) for n in names if n.startswith(f"{lead}blocks.")), default=-1
    )
    if lead is None or depth < 2 or f"{lead}pos_embed" not in names:
        raise CheckpointError(
            f"{checkpoint.folder} ({checkpoint.role}) holds no timm VisionTransformer: "
            f"{_PROBE}, pos_embed and at least two blocks are expected.",
            "Pass the folder of the vision model as timm publishes it.",
        )
    e, _, _, p = checkpoint.sizes(f"{lead}{_PROBE}", 4)
    fc1 = f"{lead}blocks.0.mlp.fc1.weight"
    config = TowerConfig(
        n_layers=depth if whole else depth - 1,
        n_embd=e,
        n_heads=architecture.n_heads,
        n_ffn=checkpoint.sizes(fc1, 2)[0] if fc1 in names else 4 * e,
        image_size=image_size,
        patch_size=p,
        eps=architecture.eps,
        activation=architecture.activation,
        rescale=1 / 255,
        mean=architecture.mean,
        std=architecture.std,
        n_prefix=sum(
            checkpoint.sizes(lead + name, 3)[1]
            for name in ("cls_token", "reg_token")
            if lead + name in names
        ),
        patch_bias=f"{lead}patch_embed.proj.bias" in names,
        norm_first=f"{lead}norm_pre.weight" in names,
        layer_scale=f"{lead}blocks.0.ls1.gamma" in names,
        norm_last=whole,
    )
    if e % architecture.n_heads:
        raise CheckpointError(
            f"{checkpoint.folder}: width {e} is no multiple of {architecture.n_heads} heads.",
            "Pass the vision model that the captioner names.",
        )
    unused = (rf"^{lead}(norm|fc_norm|head|attn_pool)\.", rf"^{lead}mask_token$",
              rf"^{lead}blocks\.{depth - 1}\.", rf"^(?!{lead})")  # fmt: skip
    return TimmTower(config, _weights(config, checkpoint, lead), unused)


def _block_number(name: str, lead: str | None) -> int:
    number = name.removeprefix(f"{lead}blocks.").split(".")[0]
    return int(number) if number.isdigit() else -1


def _weights(config: TowerConfig, checkpoint: Checkpoint, lead: str) -> Weights:
    e, f, p, grid = config.n_embd, config.n_ffn, config.patch_size, config.grid
    weights = {"patch.weight": Weight(checkpoint, {f"{lead}{_PROBE}": (e, 3, p, p)}, patch_rows)}
    if config.patch_bias:
        bias = {f"{lead}patch_embed.proj.bias": (e,)}
        weights["patch.bias"] = Weight(checkpoint, bias, same)
    weights |= _row_weights(checkpoint, lead, grid)
    if config.norm_first:
        weights |= norm_weights("norm_first", checkpoint, f"{lead}norm_pre", e)
    if config.norm_last:
        weights |= norm_weights("norm_last", checkpoint, f"{lead}norm", e)
    for i in range(config.n_layers):
        layer, block = f"layers.{i}.", f"{lead}blocks.{i}."
        weights |= norm_weights(f"{layer}norm1", checkpoint, f"{block}norm1", e)
        weights |= norm_weights(f"{layer}norm2", checkpoint, f"{block}norm2", e)
        weights |= linear_weights(f"{layer}out", checkpoint, f"{block}attn.proj", e, e)
        weights |= linear_weights(f"{layer}fc1", checkpoint, f"{block}mlp.fc1", e, f)
        weights |= linear_weights(f"{layer}fc2", checkpoint, f"{block}mlp.fc2", f, e)
        packed = {"weight": (3 * e, e), "bias": (3 * e,)}
        for number, part in enumerate("qkv"):
            for kind, shape in packed.items():
                source = {f"{block}attn.qkv.{kind}": shape}
                weights[f"{layer}{part}.{kind}"] = Weight(checkpoint, source, _third(number))
        if config.layer_scale:
            for number in (1, 2):
                source = {f"{block}ls{number}.gamma": (e,)}
                weights[f"{layer}scale{number}"] = Weight(checkpoint, source, same)
    return weights


def _third(number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that takes third `number` of a packed bias, or of a matrix, transposed."""

    def turn(packed: torch.Tensor) -> torch.Tensor:
        part = packed.chunk(3)[number]
        return part.t() if part.dim() == 2 else part

    return turn


def _row_weights(checkpoint: Checkpoint, lead: str, grid: int) -> Weights:
    """Return the patches' positions, and the class and register rows plus their positions."""
    name = f"{lead}pos_embed"
    _, n_rows, e = checkpoint.sizes(name, 3)
    ahead = [f"{lead}{row}" for row in ("cls_token", "reg_token") if lead + row in checkpoint.names]
    # the class row has a position unless the table is an exact square
    n_class = int(bool(ahead) and round(n_rows**0.5) ** 2 != n_rows)
    table = {name: (1, n_rows, e)}
    weights = {
        "position": Weight(
            checkpoint,
            table,
            lambda rows: resized_positions(rows[0, n_class:], grid, antialias=True),
        )
    }
    if ahead:
        sources = {row: checkpoint.shape(row) for row in ahead}

        def joined(rows: torch.Tensor, *tokens: torch.Tensor) -> torch.Tensor:
            prefix = torch.cat([token[0] for token in tokens])
            prefix[:n_class] += rows[0, :n_class]
            return prefix

        weights["prefix"] = Weight(checkpoint, {**table, **sources}, joined)
    return weights
