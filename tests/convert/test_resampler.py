"""The perceiver resampler's module and weights, against torch's own attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.resampler import (
    Resampler,
    ResamplerConfig,
    resampler_weights,
    waves,
)
from edgeprism.convert.vision.weights import VisionWeights
from edgeprism.errors import CheckpointError

N_IN, WIDTH, HEADS, QUERIES, EPS = 24, 32, 4, 9, 1e-3
PREFIX = "resampler."


def published(n_queries: int = QUERIES) -> dict[str, torch.Tensor]:
    shapes = {
        "query": (n_queries, WIDTH), "pos_embed": (n_queries, WIDTH),
        "kv_proj.weight": (WIDTH, N_IN), "attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "attn.in_proj_bias": (3 * WIDTH,), "attn.out_proj.weight": (WIDTH, WIDTH),
        "attn.out_proj.bias": (WIDTH,), "proj": (WIDTH, WIDTH),
    }  # fmt: skip
    for norm in ("ln_q", "ln_kv", "ln_post"):
        shapes |= {f"{norm}.weight": (WIDTH,), f"{norm}.bias": (WIDTH,)}
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def expected(
    t: dict[str, torch.Tensor], x: torch.Tensor, keys: torch.Tensor, queries: bool
) -> torch.Tensor:
    """Compute in float64 by torch's MultiheadAttention."""
    w = {name: tensor.double() for name, tensor in t.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], EPS)

    attention = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    attention.load_state_dict(
        {n.removeprefix("attn."): tensor for n, tensor in w.items() if n.startswith("attn.")}
    )
    values = norm(x.double() @ w["kv_proj.weight"].t(), "ln_kv")
    query = norm(w["query"], "ln_q") + (w["pos_embed"] if queries else 0)
    y, _ = attention(query.expand(len(x), -1, -1), values + keys.double(), values)
    rows: torch.Tensor = norm(y, "ln_post") @ w["proj"]
    return rows


def loaded(
    folder: Path, config: ResamplerConfig, tensors: dict[str, torch.Tensor], table: str,
    divisor: float = 1.0,
) -> Resampler:  # fmt: skip
    folder.mkdir()
    save_file(
        {PREFIX + name: tensor for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    checkpoint = Checkpoint(folder, "captioner")
    weights = VisionWeights(
        {"": resampler_weights(config, checkpoint, PREFIX, table=table, divisor=divisor)}
    )
    module = Resampler(config, torch.float32)
    state = {name: weights.read(name, torch.float32) for name, _ in module.named_parameters()}
    module.load_state_dict(state, assign=True)
    return module


@pytest.mark.parametrize("shape", [(4, 4), (2, 9), (7, 1)])
def test_tiles_of_any_shape_get_positions_of_their_own(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    tensors = published()
    config = ResamplerConfig(QUERIES, N_IN, WIDTH, HEADS, eps=EPS)
    module = loaded(tmp_path / "c", config, tensors, "pos_embed")
    down, across = shape
    x = torch.randn(2, down * across, N_IN)
    rates = 10000.0 ** -(torch.arange(WIDTH // 4).double() / (WIDTH // 4))
    keys = torch.stack([
        torch.cat([(c * rates).sin(), (c * rates).cos(), (r * rates).sin(), (r * rates).cos()])
        for r in range(down) for c in range(across)
    ])  # fmt: skip
    rows = module(x, torch.arange(down), torch.arange(across))
    torch.testing.assert_close(
        rows.double(), expected(tensors, x, keys, queries=True), atol=1e-4, rtol=1e-4
    )


def test_queries_without_positions_and_rows_divided(tmp_path: Path) -> None:
    tensors = published(7)
    config = ResamplerConfig(7, N_IN, WIDTH, HEADS, eps=EPS)
    module = loaded(tmp_path / "c", config, tensors, "", divisor=12.0)
    x, (down, across) = torch.randn(1, 6, N_IN), (torch.arange(2), torch.arange(3))
    rows = expected(tensors, x, waves(down, across, WIDTH), queries=False) / 12
    torch.testing.assert_close(module(x, down, across).double(), rows, atol=1e-4, rtol=1e-4)


def test_a_fixed_grid_resizes_the_stored_table(tmp_path: Path) -> None:
    tensors = published()
    config = ResamplerConfig(QUERIES, N_IN, WIDTH, HEADS, grid=8, eps=EPS)
    module = loaded(tmp_path / "c", config, tensors, "pos_embed")
    x = torch.randn(2, 64, N_IN)
    square = tensors["pos_embed"].t().reshape(1, WIDTH, 3, 3)
    keys = functional.interpolate(square, size=(8, 8), mode="bicubic", align_corners=False)
    rows = expected(tensors, x, keys.flatten(2)[0].t(), queries=True)
    torch.testing.assert_close(module(x).double(), rows, atol=1e-4, rtol=1e-4)


def test_a_table_needs_a_square_of_queries(tmp_path: Path) -> None:
    config = ResamplerConfig(7, N_IN, WIDTH, HEADS)
    with pytest.raises(CheckpointError, match="7 queries have positions, but make no square"):
        loaded(tmp_path / "c", config, published(7), "pos_embed")
