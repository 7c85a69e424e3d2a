"""LoRA, which is merged into one base tensor at a time: W + scale · B · A."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprism.convert.read.checkpoint import ADAPTER_STEMS, Checkpoint, read_json
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
_HALVES = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_A.default.weight": "A",
    ".lora_B.default.weight": "B",
}
# Fields that change what the adapter computes, with the values that mean plain LoRA.
_PLAIN: dict[str, tuple[object, ...]] = {
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "modules_to_save": ([], None),
    "layer_replication": ([], None),
}


class LoraAdapter:
    """The adapter of `folder` (adapter_config.json + adapter_model.safetensors or .bin).

    `base_shapes` has the shapes of the base model's tensors. Raises CheckpointError for an adapter
    that is not plain LoRA, for tensors that match no base tensor (all listed) and wrong shapes.
    Layout: PEFT's, keys `base_model.model.<base tensor>.lora_{A,B}.weight`, A [r, in], B [out, r].
    """

    def __init__(self, folder: Path, base_shapes: dict[str, tuple[int, ...]]) -> None:
        self.folder = folder
        self.scale, self.rank = _scale_and_rank(folder)
        self.checkpoint = Checkpoint(folder, "adapter", ADAPTER_STEMS)
        self._pairs = self._match(base_shapes)

    def merge(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return base tensor `name` (`weight` [out, in], float32) plus the adapter's change."""
        if name not in self._pairs:
            return weight
        a, b = self._pairs[name]  # [r, in], [out, r]
        change = self.checkpoint.read_float32(b) @ self.checkpoint.read_float32(a)
        return change.mul_(self.scale).add_(weight)

    def _match(self, base_shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[str, str]]:
        halves: dict[str, dict[str, str]] = {}
        unmatched = []
        for name in sorted(self.checkpoint.names):
            base, half = _base_name_and_half(name)
            if base not in base_shapes or len(base_shapes[base]) != 2:
                unmatched.append(name)
            else:
                halves.setdefault(base, {})[half] = name
        if unmatched:
            raise CheckpointError(
                f"{self.folder}: {len(unmatched)} adapter tensors match no tensor of the base "
                f"model:",
                "Pass the language model that this adapter was trained on.",
                unmatched,
            )
        lone = [names[h] for names in halves.values() if len(names) == 1 for h in names]
        if lone:
            raise CheckpointError(
                f"{self.folder}: the other half of these adapter tensors is missing:",
                "Download the adapter again.",
                lone,
            )
        self._require_shapes(halves, base_shapes)
        return {base: (names["A"], names["B"]) for base, names in halves.items()}

    def _require_shapes(
        self, halves: dict[str, dict[str, str]], base_shapes: dict[str, tuple[int, ...]]
    ) -> None:
        expected: dict[str, tuple[int, ...]] = {}
        for base, names in halves.items():
            n_out, n_in = base_shapes[base]
            expected[names["A"]] = (self.rank, n_in)
            expected[names["B"]] = (n_out, self.rank)
        self.checkpoint.require(expected)


@dataclass(frozen=True)
class LoraHalves:
    """LoRA whose halves a family finds by name, in the base model's files or beside them.

    Args:
        checkpoint: The checkpoint of the halves.
        pairs: {base tensor: names of its halves A [rank, in] and B [out, rank]}.
        rank: The rank of all of them.
        scale: The factor of each product B · A.
    """

    checkpoint: Checkpoint
    pairs: Mapping[str, tuple[str, str]]
    rank: int
    scale: float

    def require(self, base_shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError, which lists every fault, unless all halves fit their bases."""
        expected: dict[str, tuple[int, ...]] = {}
        for base, (a, b) in self.pairs.items():
            n_out, n_in = base_shapes[base]
            expected |= {a: (self.rank, n_in), b: (n_out, self.rank)}
        self.checkpoint.require(expected)

    def merge(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return base tensor `name` (`weight` [out, in], float32) plus its product."""
        if name not in self.pairs:
            return weight
        a, b = self.pairs[name]
        change = self.checkpoint.read_float32(b) @ self.checkpoint.read_float32(a)
        return change.mul_(self.scale).add_(weight)

    def patterns(self) -> list[str]:
        """Return patterns of the halves' names, for those who list what a checkpoint may hold."""
        return [rf"^{re.escape(half)}$" for pair in self.pairs.values() for half in pair]


def _base_name_and_half(name: str) -> tuple[str, str]:
    for suffix, half in _HALVES.items():
        if name.endswith(suffix):
            return name.removeprefix(_PREFIX).removesuffix(suffix) + ".weight", half
    return "", ""


def _scale_and_rank(folder: Path) -> tuple[float, int]:
    path = folder / "adapter_config.json"
    config = read_json(path)
    if config.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(
            f"{path}: peft_type is {config['peft_type']!r}, only LORA can be merged.",
            "Merge the adapter into the language model with PEFT first.",
        )
    unsupported = [
        f"{field} = {config[field]!r}"
        for field, plain in _PLAIN.items()
        if field in config and config[field] not in plain
    ]
    if unsupported:
        raise CheckpointError(
            f"{path}: only one rank for all matrices and plain LoRA are understood; found "
            f"{', '.join(unsupported)}.",
            "Merge the adapter into the language model with PEFT first, and convert that.",
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(
            f"{path}: r (a whole number above 0) and lora_alpha (a number) are expected; found "
            f"r = {rank!r}, lora_alpha = {alpha!r}.",
            "Download the adapter again.",
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), rank
