"""Mistakes in EVA-ViT-g and its Q-Former that a comparison with a reference must see.

Each takes pytest's `monkeypatch` and changes how the vision half is computed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from edgeprism.convert.vision import eva_side, eva_vit, graph, qformer
from edgeprism.convert.vision.config import TowerConfig
from edgeprism.convert.vision.weights import take_rows


def other_epsilon_behind_the_tower(patch: pytest.MonkeyPatch) -> None:
    """Take transformers' epsilon where LAVIS' is another."""
    patch.setattr(eva_side, "EPS_LAST", 1e-6)


def epsilon_of_lavis_behind_the_tower(patch: pytest.MonkeyPatch) -> None:
    """Take LAVIS' epsilon where transformers' is another."""
    init = graph.Tower.__init__

    def planted(self: graph.Tower, config: TowerConfig, dtype: torch.dtype) -> None:
        init(self, dataclasses.replace(config, eps_last=1e-5), dtype)

    patch.setattr(graph.Tower, "__init__", planted)


def class_row_dropped(patch: pytest.MonkeyPatch) -> None:
    """Show the Q-Former the patches alone."""
    forward = graph.Tower.forward
    patch.setattr(graph.Tower, "forward", lambda self, pixels: forward(self, pixels)[:, 1:])


def queries_not_normed(patch: pytest.MonkeyPatch) -> None:
    """Leave out the norm of the Q-Former's input."""

    def planted(self: qformer.QFormer, image: torch.Tensor) -> torch.Tensor:
        x = self.query_rows.expand(image.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, image)
        return x

    patch.setattr(qformer.QFormer, "forward", planted)


def keys_for_queries(patch: pytest.MonkeyPatch) -> None:
    """Exchange the first two thirds of the tower's attention matrices."""

    def planted(first: int, end: int, tensor: torch.Tensor) -> torch.Tensor:
        n = end - first
        return take_rows(*{0: (n, 2 * n), n: (0, n)}.get(first, (first, end)), tensor)

    patch.setattr(eva_vit, "take_rows", planted)


def last_block_runs(patch: pytest.MonkeyPatch) -> None:
    """Run the tower's last block, which the published models leave out."""
    config = eva_vit.eva_vit_config

    def planted(*arguments: Any, **options: Any) -> TowerConfig:
        return config(*arguments, **{**options, "whole": False})

    patch.setattr(eva_side, "eva_vit_config", planted)
