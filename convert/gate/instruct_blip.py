"""The gate's reference of InstructBLIP: transformers' own classes, from both published layouts.

Like `towers`, it shares no code with the converter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeprism.convert.gate.files import RawTensors
from edgeprism.convert.gate.towers import Connector, Features, Tick, normalised

ToIds = Callable[[str], list[int]]
# a tower's rows [n, rows, width] and a text's ids [1, T] → query rows [n, n_queries, n_embd]
Reader = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@torch.inference_mode()
def visual_tokens(
    tower: Features,
    open_reader: Callable[[], Reader],
    project: Connector,
    ids: Sequence[list[int]],
    pixels: np.ndarray,
    tick: Tick,
) -> np.ndarray:
    """Pixels uint8 [n, size, size, 3] → visual tokens [n, n_tokens, n_embd] float32.

    `ids` are those of each picture's instruction.
    """
    features, read = tower(pixels, tick).split(1), open_reader()
    rows = [read(row, torch.tensor([text])) for row, text in zip(features, ids, strict=True)]
    result: np.ndarray = project(torch.cat(rows)).float().numpy()
    return result


def published_tower(
    files: Iterable[Path],
    config: Mapping[str, Any],
    rescale: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> Features:
    """Return a tower in transformers' layout: all rows, normed; `config` is its vision_config."""

    def run(pixels: np.ndarray, tick: Tick) -> torch.Tensor:
        from transformers import InstructBlipVisionConfig, InstructBlipVisionModel

        raw = RawTensors(files)
        lead = raw.lead_of("embeddings.class_embedding")
        with torch.device("meta"):
            model = InstructBlipVisionModel(InstructBlipVisionConfig(**config))
        state = {name: raw[lead + name].float() for name in model.state_dict()}
        model.load_state_dict(state, assign=True)
        model.eval()
        pictures = normalised(pixels, rescale, mean, std).split(1)
        rows = [model(pixel_values=picture).last_hidden_state for picture in pictures]
        for _ in range(model.config.num_hidden_layers):
            tick()
        return torch.cat(rows)

    return run


def reader(files: Iterable[Path], n_heads: int) -> Reader:
    """Load the Q-Former that reads an instruction, from files of either layout."""
    model, queries = _load_qformer(files, n_heads)
    n_queries = queries.shape[1]

    def run(features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = model(
            input_ids=ids,
            attention_mask=torch.ones(1, n_queries + ids.shape[1]),
            query_embeds=queries.expand(len(features), -1, -1),
            encoder_hidden_states=features,
        ).last_hidden_state
        return rows[:, :n_queries]

    return run


def _load_qformer(files: Iterable[Path], n_heads: int) -> tuple[Any, torch.Tensor]:
    """Return transformers' model, and the queries [1, n, n_embd]."""
    from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

    raw = RawTensors(files)
    queries = raw[f"{raw.lead_of('query_tokens')}query_tokens"].float()
    lead = raw.lead_of("encoder.layer.0.intermediate_query.dense.bias")
    lavis = f"{lead}embeddings.LayerNorm.weight" in raw
    layers = {found[1] for name in raw.names() if (found := _LAYER.search(name))}
    words = raw[f"{lead}embeddings.word_embeddings.weight"]
    keys = "self" if lavis else "attention"
    config = InstructBlipQFormerConfig(
        vocab_size=len(words),
        hidden_size=queries.shape[-1],
        num_hidden_layers=len(layers),
        num_attention_heads=n_heads,
        intermediate_size=len(raw[f"{lead}encoder.layer.0.intermediate_query.dense.bias"]),
        max_position_embeddings=len(raw[f"{lead}embeddings.position_embeddings.weight"]),
        encoder_hidden_size=raw[f"{lead}encoder.layer.0.crossattention.{keys}.key.weight"].shape[1],
        cross_attention_frequency=2,
        layer_norm_eps=1e-12,
    )
    with torch.device("meta"):
        model = InstructBlipQFormerModel(config)
    name_of = _lavis_name if lavis else str
    state = {name: raw[lead + name_of(name)].float() for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    places = torch.arange(config.max_position_embeddings)[None]
    model.embeddings.register_buffer("position_ids", places, persistent=False)
    model.eval()
    return model, queries


_LAYER = re.compile(r"encoder\.layer\.(\d+)\.intermediate_query\.")


def _lavis_name(name: str) -> str:
    """Return LAVIS' name of a tensor of InstructBlipQFormerModel."""
    name = name.replace("embeddings.layernorm.", "embeddings.LayerNorm.")
    return name.replace("attention.attention.", "attention.self.")


def bert_ids(pieces: Sequence[str]) -> ToIds:
    """Return transformers' BertTokenizer of a vocabulary as a text → ids function."""

    def run(text: str) -> list[int]:
        import tempfile

        from transformers import BertTokenizer

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocab.txt"
            path.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
            tokenizer = BertTokenizer(str(path), split_special_tokens=True)
        ids: list[int] = tokenizer(text, verbose=False).input_ids
        return ids

    return run
