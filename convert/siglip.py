"""SigLIP's vision tower and the projector as one torch module, shaped for export.

Sources: the public SigLIP configuration and weights (google/siglip-*), read as transformers
names them; the projector's layout is the published PrismCaptioner one (Linear, GELU, Linear).
Matrices are kept as [in, out] so that the exported graph holds plain MatMuls with constant
weights, which is what the int8 quantizer looks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgeprism.convert.checkpoint import Checkpoint, read_json
from edgeprism.errors import CheckpointError

# transformers' number for each way of resampling
_RESAMPLINGS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class SiglipConfig:
    """The tower as published, and how pixels are prepared for it."""

    n_layers: int
    n_embd: int
    n_heads: int
    n_ffn: int
    image_size: int
    patch_size: int
    eps: float
    activation: str
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: str

    @property
    def grid(self) -> int:
        """Patches along one edge; pixels that fill no whole patch are not seen."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ProjectorConfig:
    """A chain of Linear layers with GELU (erf form) between them."""

    n_in: int
    n_out: int
    depth: int


def siglip_config_from_folder(folder: Path) -> SiglipConfig:
    """Read config.json (SiglipModel or SiglipVisionModel) and preprocessor_config.json."""
    path = folder / "config.json"
    whole = read_json(path)
    if whole.get("model_type") not in ("siglip", "siglip_vision_model"):
        raise CheckpointError(
            f"{path}: model_type is {whole.get('model_type')!r}, expected 'siglip' or "
            "'siglip_vision_model'.",
            "Pass the folder of the SigLIP vision model with --vision.",
        )
    data = whole["vision_config"] if whole["model_type"] == "siglip" else whole
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
              "image_size", "patch_size")  # fmt: skip
    absent = [name for name in needed if not isinstance(data.get(name), int)]
    activation = data.get("hidden_act", "gelu_pytorch_tanh")
    if absent or activation not in ("gelu_pytorch_tanh", "gelu"):
        raise CheckpointError(
            f"{path}: the vision model needs {', '.join(needed)} as whole numbers (missing: "
            f"{', '.join(absent) or 'none'}) and hidden_act gelu_pytorch_tanh or gelu "
            f"(found {activation!r}).",
            "Use the published SigLIP folder.",
        )
    if data["num_hidden_layers"] < 2 or data["hidden_size"] % data["num_attention_heads"]:
        raise CheckpointError(
            f"{path}: {data['num_hidden_layers']} layers, hidden_size {data['hidden_size']} and "
            f"{data['num_attention_heads']} heads do not make a tower with a second-to-last layer.",
            "Use the published SigLIP folder.",
        )
    prepare = _preprocessing(folder / "preprocessor_config.json", data["image_size"])
    return SiglipConfig(
        n_layers=data["num_hidden_layers"],
        n_embd=data["hidden_size"],
        n_heads=data["num_attention_heads"],
        n_ffn=data["intermediate_size"],
        image_size=data["image_size"],
        patch_size=data["patch_size"],
        eps=float(data.get("layer_norm_eps", 1e-6)),
        activation=activation,
        **prepare,
    )


def _preprocessing(path: Path, image_size: int) -> dict[str, Any]:
    data = read_json(path) if path.is_file() else {}
    size = data.get("size", {"height": image_size, "width": image_size})
    if size != {"height": image_size, "width": image_size}:
        raise CheckpointError(
            f"{path}: size is {size!r}, but the vision model takes {image_size}×{image_size}.",
            "Use the preprocessor_config.json that was published with the vision model.",
        )
    number = data.get("resample", 3)
    if number not in _RESAMPLINGS:
        raise CheckpointError(
            f"{path}: resample is {number!r}; known: "
            f"{', '.join(f'{n} ({name})' for n, name in _RESAMPLINGS.items())}.",
            "Use the preprocessor_config.json that was published with the vision model.",
        )
    return {
        "rescale": float(data.get("rescale_factor", 1 / 255)),
        "mean": tuple(float(v) for v in data.get("image_mean", [0.5] * 3)),
        "std": tuple(float(v) for v in data.get("image_std", [0.5] * 3)),
        "resample": _RESAMPLINGS[number],
    }


def siglip_shapes(config: SiglipConfig, prefix: str, n_used: int) -> dict[str, tuple[int, ...]]:
    """Tensors of the embeddings and the first `n_used` layers, with their shapes."""
    e, f, p = config.n_embd, config.n_ffn, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (e, 3, p, p),
        "embeddings.patch_embedding.bias": (e,),
        "embeddings.position_embedding.weight": (config.grid**2, e),
    }
    for i in range(n_used):
        layer = f"encoder.layers.{i}."
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{norm}.weight": (e,), f"{layer}{norm}.bias": (e,)}
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            name = f"{layer}self_attn.{part}"
            shapes |= {f"{name}.weight": (e, e), f"{name}.bias": (e,)}
        shapes |= {f"{layer}mlp.fc1.weight": (f, e), f"{layer}mlp.fc1.bias": (f,)}
        shapes |= {f"{layer}mlp.fc2.weight": (e, f), f"{layer}mlp.fc2.bias": (e,)}
    return {prefix + name: shape for name, shape in shapes.items()}


def siglip_prefix(checkpoint: Checkpoint) -> str:
    """ "vision_model." in a SiglipModel or SiglipVisionModel file; "" for a bare tower."""
    name = "vision_model.embeddings.patch_embedding.weight"
    bare = name.removeprefix("vision_model.")
    return "" if bare in checkpoint.names and name not in checkpoint.names else "vision_model."


def projector_config_from_folder(folder: Path, n_in: int, n_out: int) -> ProjectorConfig:
    """Read the projector's config.json; it must fit the tower (n_in) and the LM (n_out)."""
    path = folder / "config.json"
    data = read_json(path)
    depth = data.get("depth", 2)
    expected = {
        "model_type": ("projector", data.get("model_type", "projector")),
        "visual_hidden_size": (n_in, data.get("visual_hidden_size")),
        "llm_hidden_size": (n_out, data.get("llm_hidden_size")),
        "hidden_act": ("gelu", data.get("hidden_act", "gelu")),
        "bias": (True, data.get("bias", True)),
    }
    faults = [
        f"{name} is {found!r}, expected {wanted!r}"
        for name, (wanted, found) in expected.items()
        if found != wanted
    ]
    if not isinstance(depth, int) or depth < 1:
        faults.append(f"depth is {depth!r}, expected a whole number above 0")
    if faults:
        raise CheckpointError(
            f"{path} does not fit the vision model and the language model: {'; '.join(faults)}.",
            "Pass the three folders that belong together.",
        )
    return ProjectorConfig(n_in, n_out, depth)


def projector_shapes(config: ProjectorConfig) -> dict[str, tuple[int, ...]]:
    """Keys model.0, model.2, …: the GELUs between hold the odd numbers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(config.depth):
        n_in = config.n_in if i == 0 else config.n_out
        shapes[f"model.{2 * i}.weight"] = (config.n_out, n_in)
        shapes[f"model.{2 * i}.bias"] = (config.n_out,)
    return shapes


class Affine(nn.Module):
    """x @ weight [in, out] + bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.t().contiguous(), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Norm(nn.Module):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer over [n, patches, n_embd]."""

    def __init__(self, parts: dict[str, nn.Module], n_heads: int, activation: str) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.n_heads = n_heads
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, e = x.shape
        y = self.parts["norm1"](x)
        q, k, v = (
            self.parts[p](y).reshape(n, t, self.n_heads, e // self.n_heads).transpose(1, 2)
            for p in "qkv"
        )  # [n, heads, patches, head_dim]
        weights = torch.softmax((q * (e // self.n_heads) ** -0.5) @ k.transpose(2, 3), dim=-1)
        x = x + self.parts["out"]((weights @ v).transpose(1, 2).reshape(n, t, e))
        y = self.parts["fc1"](self.parts["norm2"](x))
        return x + self.parts["fc2"](gelu(y, self.activation))


class VisionGraph(nn.Module):
    """uint8 pixels [n, size, size, 3] → visual tokens [n, n_tokens, n_embd of the LM], float32.

    Everything between stands inside: normalising, patches, the used layers, the projector and,
    where the family does so, leaving out the first patch.
    """

    def __init__(
        self,
        config: SiglipConfig,
        tower: Checkpoint,
        prefix: str,
        n_used: int,
        projector: Checkpoint,
        projector_depth: int,
        drop_first_patch: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.config = config
        self.drop_first_patch = drop_first_patch
        self.dtype = dtype

        def read(name: str, source: Checkpoint = tower, lead: str = prefix) -> torch.Tensor:
            return source.read(lead + name).to(dtype)

        def affine(name: str) -> Affine:
            return Affine(read(f"{name}.weight"), read(f"{name}.bias"))

        def norm(name: str) -> Norm:
            return Norm(read(f"{name}.weight"), read(f"{name}.bias"), config.eps)

        # [e, 3, p, p] → rows ordered as a pixel patch [p, p, 3] is flattened
        patch = read("embeddings.patch_embedding.weight").permute(0, 2, 3, 1)
        self.patch = Affine(
            patch.reshape(config.n_embd, -1), read("embeddings.patch_embedding.bias")
        )
        self.position = nn.Parameter(
            read("embeddings.position_embedding.weight"), requires_grad=False
        )
        self.layers = nn.ModuleList()
        for i in range(n_used):
            layer = f"encoder.layers.{i}."
            parts: dict[str, nn.Module] = {
                "norm1": norm(layer + "layer_norm1"),
                "norm2": norm(layer + "layer_norm2"),
                "out": affine(layer + "self_attn.out_proj"),
                "fc1": affine(layer + "mlp.fc1"),
                "fc2": affine(layer + "mlp.fc2"),
            }
            parts |= {p: affine(f"{layer}self_attn.{p}_proj") for p in "qkv"}
            self.layers.append(EncoderLayer(parts, config.n_heads, config.activation))
        self.projector = nn.ModuleList(
            Affine(
                read(f"model.{2 * i}.weight", projector, ""),
                read(f"model.{2 * i}.bias", projector, ""),
            )
            for i in range(projector_depth)
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


def gelu(x: torch.Tensor, activation: str) -> torch.Tensor:
    """SigLIP's tower uses the tanh form, the projector the erf form."""
    return functional.gelu(x, approximate="tanh" if activation != "gelu" else "none")
