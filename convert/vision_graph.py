"""SigLIP's vision tower and the projector as one torch module, shaped for export.

The module is built of placeholders that take no memory: exporting needs shapes alone, and the
weights are read one at a time when the file is written. Matrices are kept as [in, out] so that
the exported graph holds plain MatMuls with constant weights, which is what the int8 quantizer
looks for.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional

from edgeprism.convert.checkpoint import Checkpoint
from edgeprism.convert.siglip import ProjectorConfig, SiglipConfig

_counter = itertools.count(1)


def placeholder(dtype: torch.dtype, *shape: int) -> nn.Parameter:
    """A parameter of one stored value; each has its own, so that none is taken for another."""
    value = torch.full((1,), next(_counter) % 2000 + 1, dtype=dtype)
    return nn.Parameter(value.expand(shape), requires_grad=False)


class Affine(nn.Module):
    """x @ weight [in, out] + bias."""

    def __init__(self, dtype: torch.dtype, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = placeholder(dtype, n_in, n_out)
        self.bias = placeholder(dtype, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Norm(nn.Module):
    def __init__(self, dtype: torch.dtype, n: int, eps: float) -> None:
        super().__init__()
        self.weight = placeholder(dtype, n)
        self.bias = placeholder(dtype, n)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer over [n, patches, n_embd]."""

    def __init__(self, config: SiglipConfig, dtype: torch.dtype) -> None:
        super().__init__()
        e, f = config.n_embd, config.n_ffn
        self.norm1, self.norm2 = Norm(dtype, e, config.eps), Norm(dtype, e, config.eps)
        self.q, self.k, self.v = (Affine(dtype, e, e) for _ in range(3))
        self.out = Affine(dtype, e, e)
        self.fc1, self.fc2 = Affine(dtype, e, f), Affine(dtype, f, e)
        self.n_heads = config.n_heads
        self.activation = config.activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, e = x.shape
        y = self.norm1(x)
        q, k, v = (
            part(y).reshape(n, t, self.n_heads, e // self.n_heads).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )  # [n, heads, patches, head_dim]
        weights = torch.softmax((q * (e // self.n_heads) ** -0.5) @ k.transpose(2, 3), dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, e))
        y = gelu(self.fc1(self.norm2(x)), self.activation)
        return x + self.fc2(y)


# modules of EncoderLayer → what they are called in the checkpoint
_LAYER_SOURCES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


class VisionGraph(nn.Module):
    """uint8 pixels [n, size, size, 3] → visual tokens [n, n_tokens, n_embd of the LM], float32.

    Everything between stands inside: normalising, patches, the first `n_used` layers, the
    projector and, where the family does so, leaving out the first patch.
    """

    def __init__(
        self,
        config: SiglipConfig,
        n_used: int,
        projector: ProjectorConfig,
        drop_first_patch: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.drop_first_patch = drop_first_patch
        self.patch = Affine(dtype, 3 * config.patch_size**2, config.n_embd)
        self.position = placeholder(dtype, config.grid**2, config.n_embd)
        self.layers = nn.ModuleList(EncoderLayer(config, dtype) for _ in range(n_used))
        self.projector = nn.ModuleList(
            Affine(dtype, projector.n_out if i else projector.n_in, projector.n_out)
            for i in range(projector.depth)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        c = self.config
        n, g, p = pixels.shape[0], c.grid, c.patch_size
        # pixels beyond the last whole patch are cut, as a strided convolution does
        x = pixels[:, : g * p, : g * p, :].float()
        x = (x * c.rescale - torch.tensor(c.mean)) / torch.tensor(c.std)
        x = x.to(self.dtype).reshape(n, g, p, g, p, 3).permute(0, 1, 3, 2, 4, 5)
        x = self.patch(x.reshape(n, g * g, p * p * 3)) + self.position
        for layer in self.layers:
            x = layer(x)
        if self.drop_first_patch:
            x = x[:, 1:]
        for i, linear in enumerate(self.projector):
            x = linear(x if i == 0 else gelu(x, "gelu"))
        return x.float()


class VisionWeights:
    """The weights of a VisionGraph by parameter name, read from the checkpoints when asked for."""

    def __init__(
        self, tower: Checkpoint, prefix: str, n_used: int, projector: Checkpoint, depth: int
    ) -> None:
        modules = {"patch": (tower, f"{prefix}embeddings.patch_embedding")}
        for i in range(n_used):
            modules |= {
                f"layers.{i}.{ours}": (tower, f"{prefix}encoder.layers.{i}.{published}")
                for ours, published in _LAYER_SOURCES.items()
            }
        modules |= {f"projector.{i}": (projector, f"model.{2 * i}") for i in range(depth)}
        self._sources = {
            f"{module}.{kind}": (checkpoint, f"{name}.{kind}")
            for module, (checkpoint, name) in modules.items()
            for kind in ("weight", "bias")
        }
        self._sources["position"] = (tower, f"{prefix}embeddings.position_embedding.weight")

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Contiguous, laid out as the module has it."""
        checkpoint, source = self._sources[name]
        tensor = checkpoint.read(source).to(dtype)
        if name == "patch.weight":
            # [e, 3, p, p] → rows ordered as a pixel patch [p, p, 3] is flattened
            tensor = tensor.permute(0, 2, 3, 1).reshape(len(tensor), -1)
        if tensor.dim() == 2 and name != "position":
            tensor = tensor.t()
        return tensor.contiguous()


def gelu(x: torch.Tensor, activation: str) -> torch.Tensor:
    """SigLIP's tower uses the tanh form, the projector the erf form."""
    return functional.gelu(x, approximate="tanh" if activation != "gelu" else "none")
