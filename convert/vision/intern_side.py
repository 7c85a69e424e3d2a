"""Vision halves with an InternViT: InternVL's own, and InternVL-Chat V1.0's in LLaVA's code.

LLaVA's code makes the image processor itself: pictures of 336 pixels, of 448 where the tower's name
says so, with ImageNet's mean; the folder's own preprocessor_config.json has no part in it. A tower
of another size gets its table of positions resampled, as InternViT does for any picture.

Sources: InternVL's public code (`internvl_chat_llava`, `clip_encoder.py`), InternViT's
`modeling_intern_vit.py`.
"""

from __future__ import annotations

from functools import partial

from edgeprism.convert.gate import tiling_towers
from edgeprism.convert.gate import towers as reference
from edgeprism.convert.gate.towers import Features
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import (
    Preparation,
    ProjectorConfig,
    TowerConfig,
    n_used_layers,
)
from edgeprism.convert.vision.intern_vit import (
    MEAN,
    STD,
    intern_vit_config,
    intern_vit_fields,
    intern_vit_weights,
)
from edgeprism.convert.vision.side import VisionSide, tower_side
from edgeprism.convert.vision.stock import StockProjector, StockTower, full_name
from edgeprism.convert.vision.weights import (
    VisionWeights,
    Weights,
    prefix_before,
    projector_weights,
    unused_layers,
)
from edgeprism.errors import CheckpointError

MODEL_TYPE = "intern_vit_6b"
_USUAL_SIZE, _LARGE_SIZE = 336, 448


def intern_vision_side(
    tower: StockTower, projector: StockProjector, n_out: int, published_name: str
) -> tuple[VisionSide, Preparation]:
    """Return the captioner's vision half and how pictures are prepared for it.

    `published_name` is the tower's, which decides about the size of pictures. Raises
    CheckpointError for an unsupported configuration.
    """
    fields = intern_vit_fields(tower.config, tower.where)
    size = _LARGE_SIZE if str(_LARGE_SIZE) in published_name else _USUAL_SIZE
    if size % fields["patch_size"]:
        raise CheckpointError(
            f"{tower.where}: patches of {fields['patch_size']} pixels; the captioner's pictures "
            f"have {size}.",
            "Use the vision model that the captioner's config.json names.",
        )
    if tower.keeps_first:
        raise CheckpointError(
            f"{tower.where}: the visual tokens include the class row, which is not supported.",
            "Use a checkpoint whose features are the patches alone.",
        )
    whole = intern_vit_config(fields, size, fields["num_hidden_layers"])
    n_used = n_used_layers(whole, tower.select_layer, tower.where)
    used = intern_vit_config(fields, size, n_used)
    prefix = prefix_before("embeddings.class_embedding", tower.checkpoint.names)
    shape = ProjectorConfig((used.n_embd, *[n_out] * len(projector.layers)))
    names = [full_name(projector.checkpoint, ending) for ending in projector.layers]
    table_grid = fields["image_size"] // fields["patch_size"]
    weights = VisionWeights(
        {
            "towers.0": intern_vit_weights(used, tower.checkpoint, prefix, table_grid=table_grid),
            "projector": projector_weights(shape, projector.checkpoint, names),
        }
    )
    features = tiling_towers.intern_vit(
        tower.checkpoint.files, {**fields, "num_hidden_layers": n_used}, list(MEAN), list(STD)
    )
    connector = reference.mlp(projector.checkpoint.files, projector.layers)
    unused = unused_layers(prefix, n_used, fields["num_hidden_layers"])
    side = tower_side(
        [used],
        shape,
        weights,
        partial(reference.visual_tokens, [features], connector),
        unused=[(tower.checkpoint, unused)],
    )
    return side, Preparation("crop", size, "bicubic", 1 / 255, MEAN, STD)


def intern_tower_and_mlp(
    tower: TowerConfig,
    weights: Weights,
    features: Features,
    projector: ProjectorConfig,
    checkpoint: Checkpoint,
    linears: list[str],
    norm: str,
    transposed: bool = False,
) -> VisionSide:
    """Return InternVL's vision half; `norm` and `linears` name the projector's layers.

    `checkpoint` holds them. `features` and `transposed` serve the gate's reference alone.
    """
    connector = reference.mlp(checkpoint.files, linears, norm, 2, transposed)
    return tower_side(
        [tower],
        projector,
        VisionWeights(
            {
                "towers.0": weights,
                "projector": projector_weights(projector, checkpoint, linears, norm),
            }
        ),
        partial(reference.visual_tokens, [features], connector),
    )
