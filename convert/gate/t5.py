"""The gate's reference of T5: what the published tensors compute, in torch float32.

As `gate/language.py`, it shares no code with the converter. Sources: the T5 paper (arXiv
1910.10683) and transformers' T5ForConditionalGeneration. Only one layer's weights are in memory at
a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from edgeprism.convert.gate.files import RawTensors

Tick = Callable[[], None]


@dataclass(frozen=True)
class _T5:
    """The published tensors, and the fields of the configuration that a forward pass needs."""

    tensors: RawTensors
    lead: str
    data: dict[str, Any]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[f"{self.lead}{name}.weight"].float()

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        eps = self.data.get("layer_norm_epsilon", 1e-6)
        return self[name] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))

    def attention(
        self, x: torch.Tensor, seen: torch.Tensor, name: str, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """[t, width] looks at [s, width]; `bias` [heads, t, s] is added to the scores."""
        heads = self.data["num_heads"]
        q = (x @ self[f"{name}.q"].t()).unflatten(-1, (heads, -1))
        k, v = ((seen @ self[f"{name}.{part}"].t()).unflatten(-1, (heads, -1)) for part in "kv")
        scores = torch.einsum("thd,shd->hts", q, k)  # not divided by the root of the width
        scores = scores if bias is None else scores + bias
        rows = torch.einsum("hts,shd->thd", scores.softmax(-1), v).flatten(1)
        return rows @ self[f"{name}.o"].t()

    def feed(self, x: torch.Tensor, name: str) -> torch.Tensor:
        exact = self.data.get("dense_act_fn", "gelu_new") == "gelu"
        gate = F.gelu(x @ self[f"{name}.wi_0"].t(), approximate="none" if exact else "tanh")
        return (gate * (x @ self[f"{name}.wi_1"].t())) @ self[f"{name}.wo"].t()


@torch.inference_mode()
def logits(
    files: Iterable[Path], data: dict[str, Any], texts: list[list[int]], tick: Tick
) -> list[np.ndarray]:
    """Return teacher-forced logits [n_tokens, n_vocab] float32 of each text (ids).

    The encoder reads each text, and the decoder repeats it: row i is after its tokens[: i + 1].
    `files` hold the model, `data` has the fields of its config.json. `tick` is called once for each
    layer of the encoder, and of the decoder.
    """
    tensors = RawTensors(files)
    t5 = _T5(tensors, tensors.lead_of("shared.weight"), data)
    table, start = t5["shared"], data.get("decoder_start_token_id")
    start = data.get("pad_token_id", 0) if start is None else start
    seen = _stack(t5, "encoder", [table[text] for text in texts], None, tick)
    said = _stack(t5, "decoder", [table[[start, *text]] for text in texts], seen, tick)
    del table
    return [(rows @ t5["lm_head"].t())[1:].numpy() for rows in said]


def _stack(
    t5: _T5,
    stack: str,
    texts: list[torch.Tensor],
    seen: list[torch.Tensor] | None,
    tick: Tick,
) -> list[torch.Tensor]:
    """Run the encoder, or the decoder where it has seen what the encoder made of each text."""
    n_layers = t5.data["num_layers"]
    table = t5[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"]
    far = t5.data.get("relative_attention_max_distance", 128)
    biases = [_biases(len(x), table, far, both_ways=seen is None) for x in texts]
    for i in range(n_layers):
        layer = f"{stack}.block.{i}.layer."
        for k, x in enumerate(texts):
            y = t5.norm(x, f"{layer}0.layer_norm")
            x = x + t5.attention(y, y, f"{layer}0.SelfAttention", biases[k])
            if seen is not None:
                y = t5.norm(x, f"{layer}1.layer_norm")
                x = x + t5.attention(y, seen[k], f"{layer}1.EncDecAttention", None)
            last = f"{layer}{1 if seen is None else 2}."
            y = t5.norm(x, f"{last}layer_norm")
            texts[k] = x + t5.feed(y, f"{last}DenseReluDense")
        tick()
    return [t5.norm(x, f"{stack}.final_layer_norm") for x in texts]


def _biases(n: int, table: torch.Tensor, far: int, *, both_ways: bool) -> torch.Tensor:
    """Return what is added to scores [heads, n, n]; where it is one way, nothing looks ahead."""
    place = torch.arange(n)
    ahead = place[None, :] - place[:, None]
    kinds = len(table)
    first = torch.zeros_like(ahead)
    if both_ways:
        kinds //= 2
        first = torch.where(ahead > 0, kinds, 0)
        distance = ahead.abs()
    else:
        distance = (-ahead).clamp(min=0)
    near = kinds // 2  # these have a kind each, the others share theirs by their logarithm
    share = (distance.clamp(min=1).float() / near).log() / math.log(far / near)
    shared = near + (share * (kinds - near)).long()
    kind = torch.where(distance < near, distance, shared.clamp(max=kinds - 1))
    biases = table[first + kind].permute(2, 0, 1)
    return biases if both_ways else biases.masked_fill(ahead > 0, float("-inf"))
