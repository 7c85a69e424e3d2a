"""CLIP-L/14 among a captioner's own tensors, where no file has its configuration.

Sizes come from the tensors. What these do not tell is that of OpenAI's model, which the captioners'
code loads by its name: 16 heads, CLIP's own GELU, an epsilon of 1e-5, CLIP's mean and deviation.
Sources: `build_mlp.py` of InternLM-XComposer2, openai/clip-vit-large-patch14-336.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edgeprism.convert.gate import towers as reference
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import (
    CLIP_MEAN,
    CLIP_STD,
    Preparation,
    TowerConfig,
    tower_config_from_dict,
)
from edgeprism.convert.vision.weights import Weights, stock_tower_weights
from edgeprism.errors import CheckpointError

HEADS = 16
# the norm after the last layer, which no feature goes through, and what is no weight
UNUSED = (r"\.post_layernorm\.", r"\.position_ids$")


@dataclass(frozen=True)
class InnerClip:
    """The tower in `checkpoint`, up to its last layer and without its class row."""

    checkpoint: Checkpoint
    prefix: str
    config: TowerConfig
    table_grid: int  # of the published positions
    fields: dict[str, Any]  # a configuration of transformers' class, of the published positions

    @property
    def preparation(self) -> Preparation:
        """The whole picture, stretched."""
        return Preparation(
            "stretch", self.config.image_size, "bicubic", 1 / 255, CLIP_MEAN, CLIP_STD
        )

    def weights(self) -> Weights:
        """The parameters of the graph's tower; positions of another grid are resampled."""
        return stock_tower_weights(self.config, self.checkpoint, self.prefix, self.table_grid)

    def reference(self) -> reference.Features:
        """The features of the gate's reference."""
        return reference.stock_tower(
            self.checkpoint.files, self.fields, self.checkpoint.folder, -1, 1,
            resampled=self.table_grid != self.config.grid,
        )  # fmt: skip


def inner_clip(checkpoint: Checkpoint, prefix: str, image_size: int | None = None) -> InnerClip:
    """Return the CLIP whose tensors begin with `prefix`, e.g. "vit.vision_tower.vision_model.".

    `image_size` is the edge of pictures in pixels; None: that of the published positions. Raises
    CheckpointError if there is no such tower, or sizes contradict each other.
    """
    width, _, patch, _ = checkpoint.sizes(f"{prefix}embeddings.patch_embedding.weight", 4)
    rows, _ = checkpoint.sizes(f"{prefix}embeddings.position_embedding.weight", 2)
    inner, _ = checkpoint.sizes(f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)
    layer = re.compile(rf"{re.escape(prefix)}encoder\.layers\.(\d+)\.")
    numbers = [int(match[1]) for name in checkpoint.names if (match := layer.match(name))]
    table_grid = round((rows - 1) ** 0.5)
    size = table_grid * patch if image_size is None else image_size
    faults = [] if table_grid**2 == rows - 1 else [f"{rows} positions, no square and a class row"]
    if size < patch or size % patch:
        faults.append(f"pictures of {size} pixels, no whole number of patches of {patch}")
    if width % HEADS:
        faults.append(f"a width of {width}, no multiple of {HEADS} heads")
    if faults:
        raise CheckpointError(
            f"{checkpoint.folder}: its CLIP has {'; '.join(faults)}.",
            "Use the files as they were published.",
        )
    fields = {
        "model_type": "clip_vision_model", "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": 1 + max(numbers), "num_attention_heads": HEADS,
        "image_size": table_grid * patch, "patch_size": patch, "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }  # fmt: skip
    shown = Preparation("stretch", size, "bicubic", 1 / 255, CLIP_MEAN, CLIP_STD)
    where = f"{checkpoint.folder} (its CLIP)"
    _, config = tower_config_from_dict({**fields, "image_size": size}, shown, where)
    return InnerClip(checkpoint, prefix, config, table_grid, fields)
