"""A language model's published configuration → the shapes of its tensors and the GGUF's header."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from edgeprism.convert.language.opt_fields import opt_settings
from edgeprism.convert.language.qwen_fields import standard_fields
from edgeprism.convert.language.rope import RopeScaling, rope_scaling_from_dict
from edgeprism.convert.language.t5_fields import n_buckets, start_token, t5_settings
from edgeprism.convert.read.fields import (
    flag_faults,
    number_faults,
    size_faults,
    unknown_fields,
    variant_error,
    with_older_rope,
)
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# published model_type → llama.cpp's architecture. SmolLM, Vicuna, Yi and Llama 3 are "llama".
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "internlm2": "internlm2",
    "minicpm": "minicpm",
    "qwen": "qwen",
    "gemma": "gemma",
    "opt": "mpt",  # which can be made to compute the same: see language/opt.py
    "t5": "t5",
}
# model_type → the class of transformers that has its fields
_STOCK = {"internlm2": "", "minicpm": "llama", "qwen": ""}
# MiniCPM's factors: on embeddings, and those that `_scales` makes of two of its fields
_SCALES = ("scale_emb", "scale_depth", "dim_model_base")
_WHOLE_NUMBERS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
                  "vocab_size", "num_key_value_heads", "head_dim",
                  "max_position_embeddings")  # fmt: skip
_FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window")
# The fields that this file reads, whichever model they are of
_READ = (
    *_WHOLE_NUMBERS, "hidden_act", "hidden_activation", "rms_norm_eps", "rope_theta",
    "rope_scaling", "attention_bias", "mlp_bias", "bias", "tie_word_embeddings",
    "partial_rotary_factor", "layer_types", "sliding_window", "use_sliding_window",
    "max_window_layers",
)  # fmt: skip


@dataclass(frozen=True)
class Scales:
    """MiniCPM's constant factors, as llama.cpp applies them."""

    embedding: float  # on all that enters the first layer, visual tokens too
    residual: float  # on what each half of a layer adds
    logit: float  # the last norm's output is divided by it


@dataclass(frozen=True)
class Encoder:
    """T5's encoder, which has as many layers as the decoder, and how the decoder begins."""

    n_buckets: int  # kinds of relative positions
    start_token: int  # the id that every answer begins with


@dataclass(frozen=True)
class LmConfig:
    """The settings that decide the weights' shapes and the GGUF's header."""

    model_type: str
    architecture: str  # llama.cpp's name
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ffn: int  # of "qwen", twice the width of a feed-forward matrix, as published
    n_vocab: int
    context_length: int
    rope_theta: float  # 0: a table of positions, not rotations
    rope_scaling: RopeScaling
    norm_eps: float
    tied: bool  # the embedding serves as the output head
    qkv_bias: bool
    output_bias: bool  # a bias on the attention's output matrix
    scales: Scales | None = None
    encoder: Encoder | None = None  # None: the decoder itself reads the prompt
    rope_sections: tuple[int, ...] = ()  # M-RoPE: how many pairs turn by time, down, across

    @property
    def n_stacked(self) -> int:
        """The layers of decoder and encoder together."""
        return self.n_layers * (1 if self.encoder is None else 2)


@dataclass(frozen=True)
class LmTensor:
    """One tensor of the GGUF and the published tensor that it comes from.

    Shapes are [out, in] or [n]. If `source` is "", `turn` computes the tensor from the
    configuration. It gets `source` and then `others`, if the tensor is made of several.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    source_shape: tuple[int, ...]
    turn: Callable[..., torch.Tensor] | None = None
    others: tuple[str, ...] = ()  # further published tensors, of the shape `source_shape`
    is_wide: bool = False  # half precision holds too few of its numbers, or of its input's

    def make(self, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Return the tensor in float32; `read(name)` returns a published tensor."""
        import torch

        published = read(self.source) if self.source else torch.empty(0)
        others = [read(name) for name in self.others]
        return self.turn(published, *others) if self.turn else published


def published_shapes(tensors: list[LmTensor]) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of every tensor that the checkpoint must hold."""
    return {
        name: tensor.source_shape
        for tensor in tensors
        for name in (tensor.source, *tensor.others)
        if name
    }


def lm_config_from_dict(data: Mapping[str, Any], where: str) -> LmConfig:
    """Read the fields of a config.json or of its `text_config`.

    Missing fields get transformers' defaults. Raises CheckpointError, which lists all faults, for
    another model type or a variant that llama.cpp would compute differently.
    """
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise CheckpointError(
            f"{where}: model_type is {kind!r}, expected one of {', '.join(ARCHITECTURES)}.",
            "Pass the folder of the language model that the captioner was trained on.",
        )
    if kind == "opt":
        return LmConfig(kind, ARCHITECTURES[kind], **opt_settings(data, where))
    if kind == "t5":
        settings = t5_settings(data, where)
        encoder = Encoder(n_buckets(data), start_token(data))
        return LmConfig(kind, ARCHITECTURES[kind], **settings, encoder=encoder)
    data = standard_fields(data, where) if kind == "qwen" else with_older_rope(data, where)
    # before transformers sees them: some of its classes make a list with an entry for each layer
    given = {name: value for name, value in data.items() if value is not None}
    _refuse(_value_faults(given), where)
    fields = _with_defaults(data, where)
    faults = _value_faults(vars(fields))
    if not faults:
        faults = _variant_faults(kind, data, fields)
    scaling = RopeScaling()
    if not faults:
        result = rope_scaling_from_dict(data.get("rope_scaling"), fields.max_position_embeddings)
        if isinstance(result, str):
            faults.append(result)
        else:
            scaling = result
    _refuse(faults, where)
    window = _window(kind, fields)
    return LmConfig(
        model_type=kind,
        architecture=ARCHITECTURES[kind],
        n_layers=fields.num_hidden_layers,
        n_embd=fields.hidden_size,
        n_heads=fields.num_attention_heads,
        n_kv_heads=fields.num_key_value_heads,
        head_dim=fields.head_dim,
        n_ffn=fields.intermediate_size,
        n_vocab=fields.vocab_size,
        context_length=min(
            fields.max_position_embeddings, window or fields.max_position_embeddings
        ),
        rope_theta=float(fields.rope_theta),
        rope_scaling=scaling,
        norm_eps=float(fields.rms_norm_eps),
        tied=bool(fields.tie_word_embeddings),
        qkv_bias=kind in ("qwen", "qwen2") or bool(fields.attention_bias),
        output_bias=kind == "llama" and bool(fields.attention_bias),
        scales=_scales(fields) if kind == "minicpm" else None,
    )


def _value_faults(fields: Mapping[str, Any]) -> list[str]:
    """Return the sizes, numbers and switches among `fields` that are none, or that no model has."""
    return [
        *size_faults({name: fields[name] for name in _WHOLE_NUMBERS if name in fields}),
        *number_faults({name: fields[name] for name in ("rms_norm_eps",) if name in fields}, 1),
        *number_faults({name: fields[name] for name in ("rope_theta",) if name in fields}, 1e15),
        *flag_faults({name: fields[name] for name in _FLAGS if name in fields}),
    ]


def _refuse(faults: list[str], where: str) -> None:
    """Raise CheckpointError that lists `faults`, if there are any."""
    if faults:
        raise variant_error(
            where,
            faults,
            "Use the published weights: a changed model may not run in llama.cpp. A field that "
            "changes nothing in what the model computes can be removed from a copy of the file.",
        )


def _scales(fields: Any) -> Scales:
    """Return MiniCPM's factors; source: `modeling_minicpm.py` of the published models."""
    return Scales(
        embedding=float(fields.scale_emb),
        residual=fields.scale_depth / fields.num_hidden_layers**0.5,
        logit=fields.hidden_size / fields.dim_model_base,
    )


def _with_defaults(data: Mapping[str, Any], where: str) -> Any:
    """Return the fields with transformers' defaults; of models that it lacks, with ours."""
    if data["model_type"] == "internlm2":
        present = {name: value for name, value in data.items() if value is not None}
        heads, width = data.get("num_attention_heads"), data.get("hidden_size")
        valid = isinstance(heads, int) and isinstance(width, int) and heads > 0
        defaults = {
            "num_hidden_layers": None,
            "hidden_size": None,
            "num_attention_heads": None,
            "intermediate_size": None,
            "vocab_size": None,
            "num_key_value_heads": heads,
            "head_dim": width // heads if valid else 1,  # type: ignore[operator]
            "max_position_embeddings": 32768,
            "rope_theta": 10000,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
            "attention_bias": data.get("bias", False),
        }
        return SimpleNamespace(**{**defaults, **present})
    if data["model_type"] == "qwen":
        return SimpleNamespace(**data)
    from transformers import CONFIG_MAPPING

    plain = {name: value for name, value in data.items() if name != "model_type"}
    # transformers only warns of a rope_scaling that it does not understand;
    # `rope_scaling_from_dict` refuses it, as `_variant_faults` refuses quantized weights
    plain.pop("rope_scaling", None)
    plain.pop("quantization_config", None)
    try:
        kind = data["model_type"]
        read = CONFIG_MAPPING[_STOCK.get(kind, kind)](**plain)
        defaults = {"attention_bias": False, "head_dim": None, **dict.fromkeys(_SCALES, 1)}
        fields = {**defaults, **read.to_dict()}
        fields["head_dim"] = fields["head_dim"] or read.hidden_size // read.num_attention_heads
        return SimpleNamespace(**fields)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(
            f"{where} is not a configuration of {data['model_type']}: {error}.",
            "Download it again.",
        ) from error


def _variant_faults(kind: str, data: Mapping[str, Any], fields: Any) -> list[str]:
    """Return the settings with which llama.cpp would compute something else than transformers."""
    own = _SCALES if kind == "minicpm" else ()
    unknown = unknown_fields(data, (*_READ, *own), _STOCK.get(kind, kind))
    faults = [f"{field} (a field that is not understood)" for field in unknown]
    window = getattr(fields, "sliding_window", None)
    if window is not None:
        faults += size_faults({"sliding_window": window})
    if not isinstance(getattr(fields, "layer_types", None), list | None):
        faults.append(f"layer_types = {fields.layer_types!r} (expected a list)")
    faults += _gemma_faults(data, fields) if kind == "gemma" else []
    if kind != "gemma" and fields.hidden_act != "silu":
        faults.append(f"hidden_act = {fields.hidden_act!r} (expected 'silu')")
    if getattr(fields, "mlp_bias", False):
        faults.append("mlp_bias = True (expected False)")
    if data.get("partial_rotary_factor", 1.0) != 1.0:
        faults.append(f"partial_rotary_factor = {data['partial_rotary_factor']!r} (expected 1.0)")
    if fields.num_attention_heads % fields.num_key_value_heads:
        faults.append(
            f"num_attention_heads {fields.num_attention_heads} is no multiple of "
            f"num_key_value_heads {fields.num_key_value_heads}"
        )
    if fields.head_dim % 2:
        faults.append(f"head_dim {fields.head_dim} is odd")
    faults += [
        f"{name} = {value!r} (expected a number above 0)"
        for name in own
        if type(value := getattr(fields, name)) not in (int, float) or not 0 < value < 1e6
    ]
    if kind == "minicpm" and fields.attention_bias:
        faults.append(f"attention_bias = {fields.attention_bias!r} (expected False)")
    if kind == "internlm2":
        if fields.hidden_size != fields.head_dim * fields.num_attention_heads:
            faults.append(
                f"hidden_size {fields.hidden_size} is no multiple of num_attention_heads "
                f"{fields.num_attention_heads}"
            )
        faults += [
            f"{name} = {data[name]!r} (expected False)"
            for name in ("bias", "tie_word_embeddings")
            if data.get(name)
        ]
    return faults


def _gemma_faults(data: Mapping[str, Any], fields: Any) -> list[str]:
    """Return what llama.cpp's `gemma` lacks.

    It computes GELU in its tanh form. Gemma's first files say "gelu", by which the tanh form is
    meant: transformers reads it so since 4.39.
    """
    faults = []
    activation = data.get("hidden_activation") or fields.hidden_act
    if activation not in ("gelu", "gelu_pytorch_tanh"):
        faults.append(f"hidden activation {activation!r} (expected 'gelu_pytorch_tanh')")
    if fields.attention_bias:
        faults.append("attention_bias = True (expected False)")
    if not fields.tie_word_embeddings:
        faults.append("tie_word_embeddings = False (expected True)")
    return faults


def _window(kind: str, fields: Any) -> int:
    """Return the length of the sliding window, which llama.cpp does not imitate; 0: none."""
    sliding = "sliding_attention" in (getattr(fields, "layer_types", None) or ())
    used = kind == "mistral" or sliding
    used = used or (kind == "qwen2" and getattr(fields, "use_sliding_window", False))
    return int(getattr(fields, "sliding_window", None) or 0) if used else 0
