"""config.json of BLIP-2 and InstructBLIP in transformers' layout, checked.

Sources: transformers' Blip2Config and InstructBlipConfig, and the config.json of
Salesforce/blip2-opt-2.7b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.convert.read.fields import number_faults, object_field, require_known
from edgeprism.errors import CheckpointError

# transformers' defaults, which a published configuration may leave out
_VISION: dict[str, Any] = {
    "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39,
    "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
    "layer_norm_eps": 1e-6, "qkv_bias": True,
}  # fmt: skip
_QFORMER: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12, "position_embedding_type": "absolute", "cross_attention_frequency": 2,
    "encoder_hidden_size": 1408, "use_qformer_text_input": False,
}  # fmt: skip
# Of classes before they were cleaned up: nothing reads them
_WITHOUT_EFFECT = ("num_channels", "projection_dim")


@dataclass(frozen=True)
class BlipConfig:
    """The fields of both parts that make visual tokens, with transformers' defaults.

    Args:
        path: The file.
        config: All of its fields.
        vision: Those of the tower.
        qformer: Those of the Q-Former.
        n_queries: The number of visual tokens.
    """

    path: Path
    config: Mapping[str, Any]
    vision: dict[str, Any]
    qformer: dict[str, Any]
    n_queries: Any

    def require_sizes(self, sizes: Mapping[str, int]) -> None:
        """Raise CheckpointError, with all faults, where the file contradicts the tensors' `sizes`.

        The names are the file's, such as "vision_config.hidden_size".
        """
        said = {"num_query_tokens": self.n_queries}
        said |= {f"vision_config.{name}": value for name, value in self.vision.items()}
        said |= {f"qformer_config.{name}": value for name, value in self.qformer.items()}
        faults = [
            f"{name} is {said[name]!r}, the tensors have {size}"
            for name, size in sizes.items()
            if said[name] != size
        ]
        if faults:
            raise CheckpointError(
                f"{self.path} contradicts the weights: {'; '.join(faults)}.",
                "Use the files as they were published together.",
            )


def blip_config(folder: Path, config: Mapping[str, Any], language_models: Mapping[str, str]
                ) -> BlipConfig:  # fmt: skip
    """Check `folder`'s config.json, whose fields are `config`, and complete it by defaults.

    Args:
        folder: The checkpoint's folder.
        config: The fields of its config.json.
        language_models: {model_type of text_config: what people call it} of those that the family
            converts.

    Raises CheckpointError, which lists all faults, for fields that nobody understands and for
    variants that compute something else.
    """
    path = folder / "config.json"
    known = ("num_query_tokens", "use_decoder_only_language_model", "image_text_hidden_size")
    require_known(config, known, str(path), str(config["model_type"]))
    parts = {}
    for name, defaults in (("vision_config", _VISION), ("qformer_config", _QFORMER)):
        published = object_field(config, name, str(path))
        require_known(published, (*defaults, *_WITHOUT_EFFECT), f"{path} ({name})")
        parts[name] = {**defaults, **{k: published[k] for k in defaults if k in published}}
    vision, qformer = parts["vision_config"], parts["qformer_config"]
    faults = _variant_faults(vision, qformer)
    kind = object_field(config, "text_config", str(path)).get("model_type")
    if kind not in language_models:
        known_kinds = ", ".join(map(repr, language_models))
        faults.append(f"text_config.model_type {kind!r} (expected {known_kinds})")
    if faults:
        raise CheckpointError(
            f"{path} is not understood: {'; '.join(faults)}.",
            f"This family's models with {' and '.join(language_models.values())} can be "
            "converted; others cannot.",
        )
    return BlipConfig(path, config, vision, qformer, config.get("num_query_tokens", 32))


def _variant_faults(vision: Mapping[str, Any], qformer: Mapping[str, Any]) -> list[str]:
    expected = [
        ("vision_config.hidden_act", vision["hidden_act"], "gelu"),
        ("vision_config.qkv_bias", vision["qkv_bias"], True),
        ("qformer_config.hidden_act", qformer["hidden_act"], "gelu"),
        ("qformer_config.layer_norm_eps", qformer["layer_norm_eps"], 1e-12),
        ("qformer_config.position_embedding_type", qformer["position_embedding_type"], "absolute"),
        ("qformer_config.cross_attention_frequency", qformer["cross_attention_frequency"], 2),
        ("qformer_config.use_qformer_text_input", qformer["use_qformer_text_input"], False),
    ]
    faults = [f"{name} {is_!r} (expected {not_!r})" for name, is_, not_ in expected if is_ != not_]
    faults += number_faults({"vision_config.layer_norm_eps": vision["layer_norm_eps"]}, 1)
    faults += [
        f"{name}.num_attention_heads {part['num_attention_heads']!r}"
        for name, part in (("vision_config", vision), ("qformer_config", qformer))
        if type(part["num_attention_heads"]) is not int or part["num_attention_heads"] < 1
    ]
    return faults
