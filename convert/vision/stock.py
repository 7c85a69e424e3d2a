"""A CLIP or SigLIP tower with a projector of Linear layers, as most captioners have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgeprism.convert.gate import towers as reference
from edgeprism.convert.gate.frames import visual_tokens_and_frames
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import (
    Preparation,
    ProjectorConfig,
    n_used_layers,
    preparation_from_folder,
    tower_config_from_dict,
)
from edgeprism.convert.vision.frames import FramePooling
from edgeprism.convert.vision.side import Reference, VisionSide, tower_side
from edgeprism.convert.vision.weights import (
    UNUSED,
    VisionWeights,
    newline_weights,
    projector_weights,
    stock_tower_weights,
    tower_prefix,
    unused_layers,
)
from edgeprism.errors import CheckpointError


@dataclass(frozen=True)
class StockTower:
    """A tower's checkpoint, and its settings as its family read them."""

    checkpoint: Checkpoint
    config: Mapping[str, Any]  # the fields of a config.json or of a vision_config
    where: str  # the name of `config` in errors
    folder: Path  # where preprocessor_config.json lies
    select_layer: Any  # the feature is hidden_states[select_layer]
    keeps_first: bool  # keep the first row: CLIP's class row, or SigLIP's first patch


@dataclass(frozen=True)
class StockProjector:
    """A projector: the endings of its layers' names, in order; `norm` if it joins cells first."""

    checkpoint: Checkpoint
    layers: Sequence[str]
    norm: str = ""
    downsample: int = 1


def stock_vision_side(
    tower: StockTower,
    projector: StockProjector,
    n_out: int,
    newline: bool = False,
    pooling: FramePooling | None = None,
) -> tuple[VisionSide, Preparation]:
    """Return the captioner's vision half and how pictures are prepared for it.

    With `newline`, the projector's checkpoint also holds an `image_newline`. With `pooling`, the
    graph has an output for frames of a video. Raises CheckpointError for an unsupported
    configuration.
    """
    kind = str(tower.config.get("model_type"))
    inner = tower.config.get("vision_config") or tower.config
    default = inner["image_size"] if type(inner.get("image_size")) is int else 224
    preparation = preparation_from_folder(tower.folder, default, kind)
    _, config = tower_config_from_dict(tower.config, preparation, tower.where)
    if tower.keeps_first and config.n_prefix:
        raise CheckpointError(
            f"{tower.where}: the visual tokens include the class row, which is not supported.",
            "Use a checkpoint whose features are the patches alone.",
        )
    n_used = n_used_layers(config, tower.select_layer, tower.where)
    used = dataclasses.replace(config, n_layers=n_used)
    prefix = tower_prefix(tower.checkpoint.names)
    n_in = config.n_embd * projector.downsample**2
    shape = ProjectorConfig((n_in, *[n_out] * len(projector.layers)), projector.downsample)
    names = [full_name(projector.checkpoint, ending) for ending in projector.layers]
    norm = full_name(projector.checkpoint, projector.norm) if projector.norm else ""
    weights = VisionWeights(
        {
            "towers.0": stock_tower_weights(used, tower.checkpoint, prefix),
            "projector": projector_weights(shape, projector.checkpoint, names, norm),
            "": newline_weights(projector.checkpoint, n_out) if newline else {},
        }
    )
    unused = (*UNUSED, *unused_layers(prefix, n_used, config.n_layers))
    features = reference.stock_tower(
        tower.checkpoint.files, tower.config, tower.folder,
        tower.select_layer, 0 if tower.keeps_first else 1,
    )  # fmt: skip
    connector = reference.mlp(
        projector.checkpoint.files, projector.layers, projector.norm, projector.downsample
    )
    side = tower_side(
        [used],
        shape,
        weights,
        _reference(features, connector, pooling),
        unused=[(tower.checkpoint, unused)],
        drop_first_patch=not tower.keeps_first and not config.n_prefix,
        newline=newline,
        pooling=pooling,
    )
    return side, preparation


def _reference(
    features: reference.Features, connector: reference.Connector, pooling: FramePooling | None
) -> Reference:
    if pooling is None:
        return lambda pixels, tick: reference.visual_tokens([features], connector, pixels, tick)
    return partial(
        visual_tokens_and_frames, features, connector, pooling.stride, pooling.after_projector
    )


def full_name(checkpoint: Checkpoint, ending: str) -> str:
    """Return the published name of a layer, with any prefix."""
    names = [n for n in checkpoint.names if n.endswith(f"{ending}.weight")]
    return names[0].removesuffix(".weight") if names else ending
