"""Published configurations as any version of their tools writes them.

transformers 5 writes what 4.x wrote in other places: `rope_parameters` holds `rope_theta` and
`rope_scaling`, the top level alone says whether embeddings are tied, and a processor keeps its
image processor's settings in `processor_config.json`. The functions here return the older spelling,
which the readers of configurations expect, and name every field that nobody here understands: a
field that is passed over in silence may be one that changes what the model computes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeprism.convert.read.checkpoint import check_model_type, read_json
from edgeprism.errors import CheckpointError

# Fields of any configuration that say nothing about what a forward pass computes: provenance,
# training, dtype, attention kernels, the tokenizer's ids and limits, other programs' settings.
_IDLE = re.compile(
    r"_name_or_path|_commit_hash|auto_map|architectures|transformers_version|model_type|torch_dtype"
    r"|dtype|_?attn_implementation(_internal|_autoset)?|_?flash_attn_\w+|use_flash_attn|use_cache"
    r"|initializer_\w+|\w*_token_(id|index)|tokenizer_\w+|model_max_length|pretraining_tp"
    r"|\w*dropout(_prob)?|drop_path_rate|gradient_checkpointing|image_seq_length|ignore_index"
    r"|(un)?freeze_\w+|tune_\w+|mm_tunable_parts|\w+_lr|neftune_\w+|use_reentrant_checkpointing"
    r"|is_llama_config|transformers\.js_config"
)
# Of an image processor: how it is called, not what it computes.
_PROCESSOR_IDLE = re.compile(
    r"\w+_processor_type|feature_extractor_type|processor_class|_valid_processor_keys|auto_map"
    r"|data_format|input_data_format|return_tensors|return_row_col_info|device|disable_grouping"
    r"|do_convert_rgb|default_to_square|image_seq(_)?length|_name_or_path"
)
# Far above any published model. The file that asks for more is damaged, and a list of the tensors
# that it asks for could fill the memory before the first of them is missed.
_MOST = {"num_hidden_layers": 1024, "layers": 1024, "vocab_size": 1 << 22}
_MOST_OF_OTHERS = 1 << 24
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


def unknown_fields(
    data: Mapping[str, Any], known: Collection[str], model_type: str = ""
) -> list[str]:
    """Return "name = value" of each field that may change the model and that nobody understands.

    Args:
        data: The fields of a configuration.
        known: Fields that the caller reads or knows to be without effect.
        model_type: transformers' name of the model, whose fields are known too; "" for none.

    Fields without a value (null, false, empty) switch nothing on and are passed over.
    """
    understood = {*known, *_fields_of(model_type)}
    return [
        f"{name} = {value!r}"
        for name, value in data.items()
        if name not in understood
        and not _IDLE.fullmatch(name)
        and value not in (None, False, "", [], {})
    ]


def size_faults(sizes: Mapping[str, Any], part: str = "") -> list[str]:
    """Return "name = value (…)" of each size that is no whole number or that no model has.

    `part` stands before the names, e.g. "vision_config.".
    """
    limits = {name: _MOST.get(name, _MOST_OF_OTHERS) for name in sizes}
    return [
        f"{part}{name} = {value!r} (expected a whole number in 1…{limits[name]})"
        for name, value in sizes.items()
        if type(value) is not int or not 1 <= value <= limits[name]
    ]


def number_faults(numbers: Mapping[str, Any], below: float) -> list[str]:
    """Return "name = value (…)" of each value that is no number above 0 and less than `below`."""
    return [
        f"{name} = {value!r} (expected a number above 0 and below {below:g})"
        for name, value in numbers.items()
        if type(value) not in (int, float) or not 0 < value < below
    ]


def flag_faults(flags: Mapping[str, Any]) -> list[str]:
    """Return "name = value (…)" of each value that is neither true, false nor null."""
    return [
        f"{name} = {value!r} (expected true or false)"
        for name, value in flags.items()
        if value is not None and not isinstance(value, bool)
    ]


def variant_error(where: object, faults: Iterable[str], hint: str) -> CheckpointError:
    """Return the error of a configuration, named `where`, whose settings have these faults."""
    return CheckpointError(
        f"{where} describes a variant that is not supported: {'; '.join(faults)}.", hint
    )


def require_known(
    data: Mapping[str, Any], known: Collection[str], where: str, model_type: str = ""
) -> None:
    """Raise CheckpointError that names every field of `unknown_fields`; `where` names `data`."""
    unknown = unknown_fields(data, known, model_type)
    if unknown:
        raise CheckpointError(
            f"{where} has fields that are not understood: {'; '.join(unknown)}.",
            "They may change what the model computes. If one does not, remove it from a copy of "
            "the file and convert that.",
        )


def _fields_of(model_type: str) -> Iterable[str]:
    """Return the fields of transformers' configuration class, with those of every class."""
    from transformers import CONFIG_MAPPING, PretrainedConfig

    every: dict[str, Any] = PretrainedConfig().to_dict()
    own: dict[str, Any] = CONFIG_MAPPING[model_type]().to_dict() if model_type else {}
    return every.keys() | own.keys()


def with_older_rope(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `data` with `rope_theta` and `rope_scaling` in place of `rope_parameters`.

    Raises CheckpointError, which starts with `where`, if both spellings are there and disagree, or
    if kinds of layers rotate differently.
    """
    fields = dict(data)
    newer = [_one_rope(fields.pop("rope_parameters", None), where)]
    scaling = fields.get("rope_scaling")
    if isinstance(scaling, Mapping) and "rope_theta" in scaling:
        newer.append(dict(fields.pop("rope_scaling")))  # transformers 5 under the older name
    for rope in filter(None, newer):
        kind = rope.get("rope_type", rope.get("type", "default"))
        parts = {
            "rope_theta": rope.pop("rope_theta", None),
            "partial_rotary_factor": rope.pop("partial_rotary_factor", None),
            "rope_scaling": None if kind == "default" else rope,
        }
        for name, value in parts.items():
            if value is not None and fields.get(name, value) not in (value, None):
                raise CheckpointError(
                    f"{where}: {name} is {fields[name]!r}, and {value!r} in rope_parameters.",
                    "Use the config.json that was published.",
                )
            if value is not None:
                fields[name] = value
    return fields


def _one_rope(parameters: object, where: str) -> dict[str, Any]:
    """Return rope_parameters; one of those of several kinds of layers if they are all alike."""
    if parameters is None:
        return {}
    if isinstance(parameters, Mapping) and parameters:
        kinds = list(parameters.values())
        if not any(isinstance(kind, Mapping) for kind in kinds):
            return dict(parameters)
        if isinstance(kinds[0], Mapping) and all(kind == kinds[0] for kind in kinds):
            return dict(kinds[0])
    raise CheckpointError(
        f"{where}: rope_parameters is {parameters!r}; one set of parameters is expected, the same "
        "for every kind of layer.",
        "Use the config.json that was published.",
    )


def object_field(config: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """Return the object `name` of a configuration, {} if it has none.

    Raises CheckpointError, which starts with `where`, if the field is no object, or has a
    model_type that is no text.
    """
    value = config.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise CheckpointError(f"{where}: {name} is {value!r}, no object.", "Download it again.")
    check_model_type(value or {}, f"{where}: {name}")
    return dict(value or {})


def text_fields(
    config: Mapping[str, Any],
    tensor_names: Collection[str],
    model_type: str,
    where: str = "config.json",
) -> dict[str, Any]:
    """Return the `text_config` of a captioner's config.json, told whether embeddings are tied.

    Args:
        config: The fields of config.json.
        tensor_names: The names of the checkpoint's tensors.
        model_type: The language model's type if `text_config` names none.
        where: The file's name in errors.

    In transformers 4 the text_config decides about tied embeddings; in 5 the top level does, as it
    does in some older files. So the top level counts where the files hold no output head.
    """
    text = {"model_type": model_type, **object_field(config, "text_config", where)}
    has_head = any(name.endswith("lm_head.weight") for name in tensor_names)
    if config.get("tie_word_embeddings") and not has_head:
        text["tie_word_embeddings"] = True
    if _major(config) >= 5 and has_head and not config.get("tie_word_embeddings", False):
        text["tie_word_embeddings"] = False
    return text


def _major(config: Mapping[str, Any]) -> int:
    """Return the major version of transformers that wrote `config`, or 0."""
    major, _, _ = str(config.get("transformers_version", "")).partition(".")
    return int(major) if major.isdecimal() else 0


def image_processor_fields(folder: Path, known: Collection[str]) -> tuple[dict[str, Any], Path]:
    """Return the settings of `folder`'s image processor, {} if none, and the file that has them.

    Raises CheckpointError for settings that are not `known`, and if two files disagree.
    """
    settings, path = _image_processor(folder)
    idle = {name for name in settings if _PROCESSOR_IDLE.fullmatch(name)}
    require_known(settings, {*known, *idle}, str(path))
    return settings, path


def _image_processor(folder: Path) -> tuple[dict[str, Any], Path]:
    older, newer = folder / PREPROCESSOR, folder / PROCESSOR
    settings = read_json(older) if older.is_file() else {}
    inside = read_json(newer).get("image_processor") if newer.is_file() else None
    if inside is None:
        return settings, older
    if not isinstance(inside, dict):
        raise CheckpointError(f"{newer}: image_processor is no object.", "Download it again.")
    differing = [name for name in inside if name in settings and settings[name] != inside[name]]
    differing = [name for name in differing if not _PROCESSOR_IDLE.fullmatch(name)]
    if differing:
        raise CheckpointError(
            f"{older} and {newer} disagree about {', '.join(differing)}.",
            "Use the files as they were published.",
        )
    return {**settings, **inside}, newer
