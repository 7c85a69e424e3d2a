"""A vision graph's parameters: which published tensors make up each, read on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import ProjectorConfig, TowerConfig

# EncoderLayer's module → its name in CLIP and SigLIP
_LAYER_SOURCES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
# Tensors in a tower's file that never run: the text tower of the pair, the layers' final norm and
# head, and buffers
UNUSED = (
    r"^text_model\.|^logit_(scale|bias)$|^(visual|text)_projection\.",
    r"(^|\.)post_layernorm\.|(^|\.)vision_(model|tower)\.head\.|^head\.|position_ids$",
)


@dataclass(frozen=True)
class Weight:
    """One parameter: `turn` computes it from the published tensors of `shapes`, in order."""

    checkpoint: Checkpoint
    shapes: Mapping[str, tuple[int, ...]]
    turn: Callable[..., torch.Tensor]


Weights = dict[str, Weight]  # by the parameter's name in its module


class VisionWeights:
    """The weights of a GraphModule by parameter name, read from the checkpoints on demand."""

    def __init__(self, parts: Mapping[str, Weights]) -> None:
        """`parts`: {module: weights}, e.g. {"towers.0": …, "projector": …}; "" is the graph."""
        self._weights = {
            f"{module}.{name}".lstrip("."): weight
            for module, part in parts.items()
            for name, weight in part.items()
        }

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return parameter `name`, contiguous and in the module's layout."""
        weight = self._weights[name]
        tensors = (weight.checkpoint.read(source).to(dtype) for source in weight.shapes)
        return weight.turn(*tensors).to(dtype).contiguous()

    def origin(self, name: str) -> str:
        """Return the folder and the published tensors of parameter `name`, for errors."""
        weight = self._weights[name]
        return f"{weight.checkpoint.folder}: {', '.join(weight.shapes)}"

    def requirements(self) -> Iterable[tuple[Checkpoint, Mapping[str, tuple[int, ...]]]]:
        """Return the checkpoints and the shapes of the tensors that each must hold."""
        return [(weight.checkpoint, weight.shapes) for weight in self._weights.values()]


def same(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as it was published."""
    return tensor


def linear_weights(
    module: str, checkpoint: Checkpoint, source: str, n_in: int, n_out: int
) -> Weights:
    """Return `module`'s matrix [in, out], published as [out, in], and its bias."""
    return {
        f"{module}.weight": Weight(
            checkpoint, {f"{source}.weight": (n_out, n_in)}, lambda tensor: tensor.t()
        ),
        f"{module}.bias": Weight(checkpoint, {f"{source}.bias": (n_out,)}, same),
    }


def norm_weights(module: str, checkpoint: Checkpoint, source: str, n: int) -> Weights:
    """A layer norm's weight and bias [n] for `module`, published under `source`."""
    return {
        f"{module}.{kind}": Weight(checkpoint, {f"{source}.{kind}": (n,)}, same)
        for kind in ("weight", "bias")
    }


def patch_rows(tensor: torch.Tensor) -> torch.Tensor:
    """[e, 3, p, p] → [p · p · 3, e], with rows in the order of a flattened patch [p, p, 3]."""
    return tensor.permute(0, 2, 3, 1).reshape(len(tensor), -1).t()


def take_rows(first: int, end: int, tensor: torch.Tensor) -> torch.Tensor:
    """Return rows of a bias, or of a matrix [out, in] transposed to [in, out]."""
    part = tensor[first:end]
    return part.t() if part.dim() == 2 else part


def resized_positions(rows: torch.Tensor, grid: int, antialias: bool = False) -> torch.Tensor:
    """Resize positions [old · old, e] to [grid · grid, e] in float32, bicubic, as torch does it."""
    old = round(len(rows) ** 0.5)
    if old == grid:
        return rows
    square = rows.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    square = functional.interpolate(
        square, size=(grid, grid), mode="bicubic", align_corners=False, antialias=antialias
    )
    return square.permute(0, 2, 3, 1).reshape(grid * grid, -1).to(rows.dtype)


def stock_tower_weights(
    config: TowerConfig, checkpoint: Checkpoint, prefix: str, table_grid: int = 0
) -> Weights:
    """Return a CLIP or SigLIP tower's parameters; `prefix` e.g. "vision_model.".

    `table_grid`: the grid of the published positions, if these are resampled to the tower's.
    """
    e, f, p = config.n_embd, config.n_ffn, config.patch_size
    embeddings = f"{prefix}embeddings."
    n_positions = config.n_prefix + (table_grid or config.grid) ** 2
    position = {f"{embeddings}position_embedding.weight": (n_positions, e)}
    patches = {f"{embeddings}patch_embedding.weight": (e, 3, p, p)}

    def places(table: torch.Tensor) -> torch.Tensor:
        return resized_positions(table[config.n_prefix :], config.grid)

    weights = {
        "patch.weight": Weight(checkpoint, patches, patch_rows),
        "position": Weight(checkpoint, position, places),
    }
    if config.patch_bias:
        bias = {f"{embeddings}patch_embedding.bias": (e,)}
        weights["patch.bias"] = Weight(checkpoint, bias, same)
    if config.n_prefix:
        rows = {f"{embeddings}class_embedding": (e,), **position}
        weights["prefix"] = Weight(checkpoint, rows, lambda row, table: (row + table[0])[None])
    if config.norm_first:
        weights |= norm_weights("norm_first", checkpoint, f"{prefix}pre_layrnorm", e)  # sic
    if config.norm_last:
        weights |= norm_weights("norm_last", checkpoint, f"{prefix}post_layernorm", e)
    widths = {"fc1": (e, f), "fc2": (f, e)}
    for i in range(config.n_layers):
        for part, published in _LAYER_SOURCES.items():
            module, source = f"layers.{i}.{part}", f"{prefix}encoder.layers.{i}.{published}"
            if part.startswith("norm"):
                weights |= norm_weights(module, checkpoint, source, e)
            else:
                weights |= linear_weights(module, checkpoint, source, *widths.get(part, (e, e)))
    return weights


def prefix_before(probe: str, names: Iterable[str], usual: str = "") -> str:
    """Return what stands before `probe` in the first of `names` that ends with it, or `usual`."""
    prefixes = sorted(name.removesuffix(probe) for name in names if name.endswith(probe))
    return prefixes[0] if prefixes else usual


def tower_prefix(names: Iterable[str]) -> str:
    """Return the prefix before `embeddings.…` in a file that holds one vision tower."""
    return prefix_before("embeddings.patch_embedding.weight", names, "vision_model.")


def unused_layers(prefix: str, n_used: int, n_layers: int) -> tuple[str, ...]:
    """Return patterns of the tower's layers from number `n_used` on."""
    numbers = "|".join(map(str, range(n_used, n_layers)))
    return (rf"^{prefix}encoder\.layers\.({numbers})\.",) if numbers else ()


def projector_weights(
    config: ProjectorConfig, checkpoint: Checkpoint, names: list[str], norm: str = ""
) -> Weights:
    """Return the linear layers published as `names`; `norm`: a downsampling projector's norm."""
    weights: Weights = {}
    if config.has_norm:
        weights |= norm_weights("norm", checkpoint, norm, config.widths[0])
    for i, name in enumerate(names):
        weights |= linear_weights(f"linears.{i}", checkpoint, name, *config.widths[i : i + 2])
    if config.plain:
        weights = {name: weight for name, weight in weights.items() if not name.endswith(".bias")}
    return weights


def newline_weights(checkpoint: Checkpoint, n: int) -> Weights:
    """Return the learned row that follows each row of patches, published as [n]."""
    names = [name for name in checkpoint.names if name.endswith("image_newline")]
    name = names[0] if names else "image_newline"
    return {"newline_row": Weight(checkpoint, {name: (n,)}, lambda row: row[None])}
