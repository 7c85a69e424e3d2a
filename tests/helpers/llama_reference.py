"""The Llama forward pass in numpy, a reference for the tests' tiny language models.

Embeddings, layers of root-mean-square norm, rotary attention and SwiGLU, norm, head. Rotary angles
pair neighbouring dimensions (GGUF's "llama") or the two halves (GGUF's "qwen2vl", whose pairs are
divided among M-RoPE's axes in sections).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.helpers.bundles import GgufParts


@dataclass(frozen=True)
class Visual:
    """A picture's rows [n, n_embd]; positions [4, n] relative to its first position."""

    values: np.ndarray
    causal: bool = True
    positions: np.ndarray | None = None


class LlamaReference:
    """Computes one whole sequence in float64."""

    def __init__(self, parts: GgufParts) -> None:
        self.tensors = {name: value.astype(np.float64) for name, value in parts.tensors.items()}
        a = parts.architecture
        values = {key: value for key, (_, value) in parts.metadata.items()}
        self.layers = int(values[f"{a}.block_count"])
        self.heads = int(values[f"{a}.attention.head_count"])
        self.eps = float(values[f"{a}.attention.layer_norm_rms_epsilon"])
        self.base = float(values[f"{a}.rope.freq_base"])
        self.sections: Sequence[int] | None = values.get(f"{a}.rope.dimension_sections")

    def logits(self, prompt: Sequence[list[int] | Visual]) -> np.ndarray:
        """Return float64 [n, n_vocab]; row i predicts the token after the first i + 1 rows."""
        x, positions, mask = self._entered(prompt)
        for i in range(self.layers):
            x = x + self._attention(i, self._norm(x, f"blk.{i}.attn_norm"), positions, mask)
            h = self._norm(x, f"blk.{i}.ffn_norm")
            gate, up = self._linear(h, f"blk.{i}.ffn_gate"), self._linear(h, f"blk.{i}.ffn_up")
            x = x + self._linear(gate / (1 + np.exp(-gate)) * up, f"blk.{i}.ffn_down")
        return self._linear(self._norm(x, "output_norm"), "output")

    def greedy(self, prompt: Sequence[list[int] | Visual], n: int) -> list[int]:
        ids: list[int] = []
        for _ in range(n):
            ids.append(int(self.logits([*prompt, ids] if ids else prompt)[-1].argmax()))
        return ids

    def _entered(
        self, prompt: Sequence[list[int] | Visual]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows [n, n_embd], positions [4, n], mask [n, n] (True: visible)."""
        rows: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        start = 0
        whole: list[tuple[int, int]] = []
        for part in prompt:
            if isinstance(part, list):
                values, own = self.tensors["token_embd.weight"][part], None
            else:
                values, own = part.values.astype(np.float64), part.positions
                first = sum(map(len, rows))
                whole += [] if part.causal else [(first, first + len(values))]
            own = np.tile(np.arange(len(values)), (4, 1)) if own is None else own
            rows.append(values)
            positions.append(start + own)
            start += int(own.max()) + 1
        n = sum(map(len, rows))
        mask = np.tri(n, dtype=bool)
        for first, end in whole:
            mask[first:end, first:end] = True
        return np.concatenate(rows), np.concatenate(positions, axis=1), mask

    def _attention(
        self, i: int, x: np.ndarray, positions: np.ndarray, mask: np.ndarray
    ) -> np.ndarray:
        def heads(name: str) -> np.ndarray:  # [heads, n, head]
            y = self._linear(x, f"blk.{i}.{name}")
            return y.reshape(len(x), self.heads, -1).transpose(1, 0, 2)

        q, k = (self._rotated(heads(name), positions) for name in ("attn_q", "attn_k"))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores = np.where(mask, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        attended = (weights @ heads("attn_v")).transpose(1, 0, 2).reshape(len(x), -1)
        return self._linear(attended, f"blk.{i}.attn_output")

    def _rotated(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        half = x.shape[-1] // 2
        axis = np.zeros(half, int)
        if self.sections is not None:
            axis = np.repeat(np.arange(4), self.sections)[:half]
        angles = positions[axis].T * self.base ** (-np.arange(half) / half)  # [n, half]
        cos, sin = np.cos(angles), np.sin(angles)
        out = np.empty_like(x)
        if self.sections is None:
            a, b = x[..., 0::2], x[..., 1::2]
            out[..., 0::2], out[..., 1::2] = a * cos - b * sin, a * sin + b * cos
        else:
            a, b = x[..., :half], x[..., half:]
            out[..., :half], out[..., half:] = a * cos - b * sin, a * sin + b * cos
        return out

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scale = np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.eps)
        scaled: np.ndarray = x / scale * self.tensors[f"{name}.weight"]
        return scaled
