"""SigLIP's and the projector's published layouts: configurations and the tensors they announce.

Sources: the public SigLIP configuration and weights (google/siglip-*), read as transformers
names them; the projector's layout is the published PrismCaptioner one (Linear, GELU, Linear).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
