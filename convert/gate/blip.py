"""The gate's reference of BLIP: transformers' classes, from files of either layout.

Like `towers`, it shares no code with the converter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeprism.convert.gate.files import RawTensors
from edgeprism.convert.gate.towers import normalised

Tick = Callable[[], None]
# the original layout's names of the tower → transformers'
_TOWER = {
    "cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding", "blocks.": "encoder.layers.",
    ".norm1": ".layer_norm1", ".norm2": ".layer_norm2", "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection", "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}  # fmt: skip


@torch.inference_mode()
def visual_tokens(
    files: Iterable[Path],
    config: Mapping[str, Any],
    colours: tuple[float, Any, Any],
    pixels: np.ndarray,
    tick: Tick,
) -> np.ndarray:
    """Pixels uint8 [n, size, size, 3] → rows float32 [n, 1 + patches, width], class row first.

    `config` has the fields of a `BlipVisionConfig`; `colours` are the image processor's factor,
    mean and standard deviation. It calls `tick` for each picture.
    """
    from transformers import BlipVisionConfig, BlipVisionModel

    model = BlipVisionModel(BlipVisionConfig(**config))
    _fill(model, files, "vision_model.", "visual_encoder.")
    rows = []
    for picture in normalised(pixels, *colours).split(1):
        rows.append(model(pixel_values=picture).last_hidden_state)
        tick()
    result: np.ndarray = torch.cat(rows).numpy()
    return result


@torch.inference_mode()
def logits(
    files: Iterable[Path],
    config: Mapping[str, Any],
    texts: list[list[int]],
    rows: np.ndarray,
    tick: Tick,
) -> list[np.ndarray]:
    """Return teacher-forced logits [n_tokens, n_vocab] of each text beside `rows` [n, width].

    `config` has the fields of a `BlipTextConfig`, with the width of the rows.
    """
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    model = BlipTextLMHeadModel(BlipTextConfig(**config))
    _fill(model, files, "text_decoder.", "text_decoder.")
    seen = torch.from_numpy(rows)[None]
    results = []
    for text in texts:
        output = model(input_ids=torch.tensor([text]), encoder_hidden_states=seen)
        results.append(output.logits[0].numpy())
        tick()
    return results


def _fill(model: torch.nn.Module, files: Iterable[Path], lead: str, other: str) -> None:
    """Fill a model from names that begin with `lead`, or with `other` in the original layout."""
    raw = RawTensors(files)
    published = {name.removeprefix("model."): name for name in raw.names()}
    names = {n.removeprefix(lead): name for n, name in published.items() if n.startswith(lead)}
    if not names:
        for n, name in published.items():
            if n.startswith(other):
                short = n.removeprefix(other)
                for theirs, ours in _TOWER.items():
                    short = short.replace(theirs, ours)
                names[short] = name
    own = model.state_dict()
    tied = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
            "cls.predictions.bias": "cls.predictions.decoder.bias"}  # fmt: skip
    state = {}
    for name in own:
        source = names.get(name) or names.get(tied.get(name, ""))
        if source is not None:
            state[name] = raw[source].float()
    missing = own.keys() - state.keys()
    if lacking := sorted(name for name in missing if not name.endswith("position_ids")):
        raise KeyError(f"the files lack {', '.join(lacking)}")
    model.load_state_dict(state, strict=False)
    model.eval()
