"""mPLUG-Owl with LLaMA-7B: CLIP's ViT-L, a visual abstractor of 64 queries, a Llama.

All rows of the tower's last layer, the class row too, go through the norm behind it and into the
abstractor; a learned row follows the queries' 64. Sources: X-PLUG's repository
(`configuration_mplug_owl.py`, `modeling_mplug_owl.py`, `interface.py`, the README's prompt) and a
public copy of `processing_mplug_owl.py`. The published config.json and index were not available:
sizes that config.json lacks are the defaults of the published classes. The variants for videos and
with BLOOM are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.family import Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.vision.abstractor import AbstractorConfig
    from edgeprism.convert.vision.config import Preparation, TowerConfig
    from edgeprism.progress import Progress

_SYSTEM = (
    "The following is a conversation between a curious human and AI assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
_VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "num_channels": 3,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-6,
}  # fmt: skip
_ABSTRACTOR = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6,
    "num_attention_heads": 16, "encoder_hidden_size": 1024, "layer_norm_eps": 1e-6,
}  # fmt: skip
# Fields that follow from others or that nothing reads
_WITHOUT_EFFECT = ("use_decoder_only_language_model", "projection_dim")
_N_QUERIES = 64


def read(captioner: Path, progress: Progress) -> PublishedCaptioner:
    """Read the published folder."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint, read_config
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.read.fields import text_fields
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.vision.abstractor import abstractor_side
    from edgeprism.convert.vision.config import one_tile
    from edgeprism.convert.vision.interleaved import MPLUG_OWL, interleaved_weights

    config, path = read_config(captioner), captioner / "config.json"
    if config.get("model_type") != "mplug-owl":
        expected = "model_type mplug-owl with vision_config, visual_abstractor_config, text_config"
        raise unknown_layout(captioner, FAMILY.name, expected)
    vision, abstractor = _parts_of(config, path)
    checkpoint = Checkpoint(captioner, "captioner")
    text = text_fields(config, checkpoint.names, "llama", str(path))
    where = f"{path} (text_config)"
    lm = open_language_model(checkpoint, text, where, captioner, TokenRules())
    preparation = _preparation(captioner, vision["image_size"])
    tower = _tower(vision, preparation)
    joint = _abstractor(abstractor, config.get("num_query_tokens", _N_QUERIES), lm.config.n_embd)
    weights = interleaved_weights(tower, checkpoint, "vision_model.", MPLUG_OWL)
    human = "\nHuman: "
    return PublishedCaptioner(
        captioner,
        [SourceFiles("captioner", captioner, checkpoint.files)],
        one_tile(preparation.mode, preparation),
        abstractor_side(tower, weights, joint, checkpoint),
        lm,
        Conversation(f"{_SYSTEM}{human}", human, "\nAI: ", stop=("</s>", human.rstrip())),
    )


FAMILY = Family(
    name="mplug-owl",
    summary="mPLUG-Owl: CLIP's ViT-L, visual abstractor of 64 queries, LLaMA",
    help="Convert mPLUG-Owl with LLaMA-7B to the bundle OUT.",
    options=(Option("captioner", "folder", "Folder of the checkpoint.", required=True),),
    read=read,
    model_types=("mplug-owl",),
    signs=("vision_config", "visual_abstractor_config", "abstractor_config", "num_query_tokens"),
)


def _parts_of(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configurations of tower and abstractor; CheckpointError lists every fault."""
    from edgeprism.convert.read.fields import require_known, variant_error

    # the published code itself writes one name and, in one place, reads the other
    names = ("visual_abstractor_config", "abstractor_config")
    present = [name for name in names if config.get(name) is not None]
    known = ("vision_config", "text_config", "num_query_tokens", *names, *_WITHOUT_EFFECT)
    require_known(config, known, str(path))
    vision = config.get("vision_config") or {}
    abstractor = config[present[0]] if present else {}
    for name, part in (("vision_config", vision), ("visual_abstractor_config", abstractor)):
        if not isinstance(part, Mapping):
            raise CheckpointError(f"{path}: {name} is no object.", "Download the file again.")
    require_known(vision, (*_VISION, *_WITHOUT_EFFECT), f"{path} (vision_config)")
    require_known(
        abstractor, (*_ABSTRACTOR, *_WITHOUT_EFFECT), f"{path} (visual_abstractor_config)"
    )
    tower, joint = _VISION | dict(vision), _ABSTRACTOR | dict(abstractor)
    faults = [f"{names} have two values"] if _differ(config, present) else []
    faults += _size_faults("vision_config", tower, _VISION)
    faults += _size_faults("visual_abstractor_config", joint, _ABSTRACTOR)
    faults = faults or _contradictions(tower, joint)
    queries = config.get("num_query_tokens", _N_QUERIES)
    if type(queries) is not int or not 1 <= queries < 1024:
        faults.append(f"num_query_tokens = {queries!r} (expected a whole number above 0)")
    if faults:
        raise variant_error(
            path,
            faults,
            "Use the config.json that was published.",
        )
    return tower, joint


def _differ(config: Mapping[str, Any], names: list[str]) -> bool:
    return any(config[name] != config[names[0]] for name in names)


def _size_faults(part: str, fields: Mapping[str, Any], defaults: Mapping[str, object]) -> list[str]:
    from edgeprism.convert.read.fields import size_faults

    sizes = {name: fields[name] for name, default in defaults.items() if type(default) is int}
    faults = size_faults(sizes, f"{part}.")
    eps = fields["layer_norm_eps"]
    if not isinstance(eps, float) or not 0 < eps < 1:
        faults.append(f"{part}.layer_norm_eps = {eps!r} (expected a small number above 0)")
    return faults


def _contradictions(vision: Mapping[str, Any], abstractor: Mapping[str, Any]) -> list[str]:
    faults = [
        f"{part}.hidden_size is no multiple of num_attention_heads"
        for part, fields in (("vision_config", vision), ("visual_abstractor_config", abstractor))
        if fields["hidden_size"] % fields["num_attention_heads"]
    ]
    if vision["hidden_act"] != "quick_gelu":
        faults.append(f"vision_config.hidden_act = {vision['hidden_act']!r} "
                      "(the published code runs quick_gelu)")  # fmt: skip
    if vision["num_channels"] != 3:
        faults.append(f"vision_config.num_channels = {vision['num_channels']} (expected 3)")
    if vision["image_size"] % vision["patch_size"]:
        faults.append("vision_config.image_size is no multiple of patch_size")
    widths = {abstractor["hidden_size"], abstractor["encoder_hidden_size"], vision["hidden_size"]}
    if len(widths) > 1:  # queries and features are rows of one attention
        faults.append("hidden_size of tower and abstractor and encoder_hidden_size differ")
    return faults


def _preparation(folder: Path, size: int) -> Preparation:
    """Return how CLIP's image processor prepares pictures; without its file they are stretched."""
    from edgeprism.convert.read.fields import PREPROCESSOR, PROCESSOR
    from edgeprism.convert.vision.config import (
        CLIP_MEAN,
        CLIP_STD,
        Preparation,
        preparation_from_folder,
    )

    if not any((folder / name).is_file() for name in (PREPROCESSOR, PROCESSOR)):
        return Preparation("stretch", size, "bicubic", 1 / 255, CLIP_MEAN, CLIP_STD)
    preparation = preparation_from_folder(folder, size, "clip")
    if preparation.size != size:
        raise CheckpointError(
            f"{folder}: pictures are prepared at {preparation.size}×{preparation.size}, but the "
            f"vision model takes {size}×{size}.",
            "Use the files as they were published.",
        )
    return preparation


def _tower(vision: Mapping[str, Any], preparation: Preparation) -> TowerConfig:
    from edgeprism.convert.vision.config import TowerConfig

    return TowerConfig(
        n_layers=vision["num_hidden_layers"],
        n_embd=vision["hidden_size"],
        n_heads=vision["num_attention_heads"],
        n_ffn=vision["intermediate_size"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        eps=vision["layer_norm_eps"],
        activation=vision["hidden_act"],
        rescale=preparation.rescale,
        mean=preparation.mean,
        std=preparation.std,
        n_prefix=1,
        keeps_prefix=True,
        patch_bias=False,
        norm_first=True,
        norm_last=True,
    )


def _abstractor(fields: Mapping[str, Any], n_queries: int, n_out: int) -> AbstractorConfig:
    from edgeprism.convert.vision.abstractor import AbstractorConfig

    return AbstractorConfig(
        n_layers=fields["num_hidden_layers"],
        n_embd=fields["hidden_size"],
        n_heads=fields["num_attention_heads"],
        n_ffn=fields["intermediate_size"],
        n_queries=n_queries,
        n_out=n_out,
        eps=fields["layer_norm_eps"],
    )
