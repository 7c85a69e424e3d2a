"""InstructBLIP: EVA-ViT-g → a Q-Former that reads the instruction → Vicuna 1.1 or FlanT5.

This file reads both published layouts:

- transformers' (Salesforce/instructblip-vicuna-7b and -13b, -flan-t5-xl and -xxl): one set of
  files, with the Q-Former's tokenizer in qformer_tokenizer/.
- LAVIS': instruct_blip_vicuna7b_trimmed.pth (13b, flanxl, flanxxl) holds the Q-Former, the norm
  before it and the projection; eva_vit_g.pth, the language model and BERT's vocabulary are
  published on their own.

The layouts differ in the epsilon of the norm behind the tower, and in how much of an instruction
the Q-Former reads. The prompt has no template: visual tokens, for Vicuna </s> as its beginning, the
instruction, for FlanT5 </s> as its end. FlanT5's GELU is the erf form here, as in no other FlanT5.
Sources: LAVIS' `blip2_vicuna_instruct.py`, `blip2_t5_instruct.py`, `blip2.py`, `eva_vit.py` and
`Qformer.py`, transformers' InstructBlipForConditionalGeneration and InstructBlipProcessor.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.family import Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.language.model import LmParts
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.vision.config import Preparation, TowerConfig
    from edgeprism.convert.vision.instructed_side import InstructedParts
    from edgeprism.convert.vision.qformer import QFormerConfig
    from edgeprism.progress import Progress

_KIND = "instructblip"
_TOKENIZER = "qformer_tokenizer"  # the folder in transformers' layout
_PROJECTION = "language_projection"
_LAVIS_PROJECTIONS = {"llama": "llm_proj", "t5": "t5_proj"}  # by the language model's type
_EMBEDDINGS = ("embed_tokens.weight", "shared.weight")  # the latter of T5
_LAVIS_EPS = 1e-5  # torch's default, of the norm behind the tower
_LAVIS_IDS = 128  # of an instruction; LAVIS cuts a longer one on the left, for the Q-Former alone
_VISION_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
    "patch_size", "hidden_act", "layer_norm_eps", "qkv_bias",
)  # fmt: skip
_QFORMER_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "max_position_embeddings", "layer_norm_eps", "position_embedding_type",
    "cross_attention_frequency", "encoder_hidden_size",
)  # fmt: skip
# transformers' defaults, which a published configuration may leave out
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39,
    "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
    "layer_norm_eps": 1e-6, "qkv_bias": True,
}  # fmt: skip
_QFORMER_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12, "position_embedding_type": "absolute", "cross_attention_frequency": 2,
    "encoder_hidden_size": 1408,
}  # fmt: skip


@dataclass(frozen=True)
class _Layout:
    """A checkpoint's parts, the same for both layouts."""

    preparation: Preparation
    parts: InstructedParts
    lm: LmParts
    sources: list[SourceFiles]


def read(
    captioner: Path,
    vision: Path | None,
    llm: Path | None,
    qformer_tokenizer: Path | None,
    progress: Progress,
) -> PublishedCaptioner:
    """Read the folder `captioner`, and the others if it is in LAVIS' layout."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import read_config
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.vision.config import one_tile
    from edgeprism.convert.vision.instructed_side import instructed_side

    config = read_config(captioner)
    if config.get("model_type") == _KIND:
        layout = _transformers_layout(captioner, config)
    elif not config and any(captioner.glob("*.pth")):
        layout = _lavis_layout(captioner, vision, llm, qformer_tokenizer)
    else:
        raise unknown_layout(
            captioner,
            FAMILY.name,
            f"model_type {_KIND} with vision_config, qformer_config and text_config "
            "(transformers' layout), or LAVIS' .pth file without a config.json",
        )
    # the prompt's beginning stands behind the visual tokens, so the tokenizer must add none
    vocabulary = dataclasses.replace(layout.lm.vocabulary, add_bos=False)
    encodes = layout.lm.config.encoder is not None
    form = Conversation(
        "",
        "",
        picture_end="" if encodes else "</s>",
        before_caption="</s>" if encodes else "",
        needed=("</s>",),
        repetition_penalty=1.5,
        instruction="Write a detailed description.",
    )
    return PublishedCaptioner(
        captioner,
        layout.sources,
        one_tile("stretch", layout.preparation),
        instructed_side(layout.parts, layout.lm.config.n_embd),
        dataclasses.replace(layout.lm, vocabulary=vocabulary),
        form,
    )


FAMILY = Family(
    name="instructblip",
    summary="InstructBLIP with Vicuna 7B, 13B or FlanT5 XL, XXL: a Q-Former reads the instruction",
    help="""Convert InstructBLIP with Vicuna or FlanT5 to the bundle OUT.

    Reads transformers' layout, in one folder, and LAVIS' (with --vision, --llm and
    --qformer-tokenizer).
    """,
    options=(
        Option("captioner", "folder", "Folder of the checkpoint.", required=True),
        Option("vision", "folder", "LAVIS' layout: folder of eva_vit_g.pth."),
        Option("llm", "folder", "LAVIS' layout: folder of Vicuna version 1.1, or of FlanT5."),
        Option("qformer_tokenizer", "folder", "LAVIS' layout: folder of BERT's vocab.txt."),
    ),
    read=read,
    model_types=(_KIND,),
    signs=(
        "qformer_config", _TOKENIZER, "instruct_blip_vicuna7b_trimmed.pth",
        "instruct_blip_vicuna13b_trimmed.pth", "instruct_blip_flanxl_trimmed.pth",
        "instruct_blip_flanxxl_trimmed.pth",
    ),
)  # fmt: skip


def _transformers_layout(captioner: Path, config: dict[str, Any]) -> _Layout:
    from edgeprism.convert.gate import instruct_blip as reference
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.read.wordpiece import read_wordpiece
    from edgeprism.convert.vision import eva_vit, qformer
    from edgeprism.convert.vision.config import preparation_from_folder
    from edgeprism.convert.vision.instructed_side import InstructedParts
    from edgeprism.convert.vision.weights import norm_weights, prefix_before

    vision, former = _checked_configs(captioner / "config.json", config)
    checkpoint = Checkpoint(captioner, "captioner")
    lead = prefix_before("query_tokens", checkpoint.names)
    tensors = eva_vit.EvaTensors(checkpoint, f"{lead}vision_model.", eva_vit.TRANSFORMERS)
    eps = float(vision["layer_norm_eps"])
    tower = eva_vit.eva_vit_config(tensors, eps, vision["num_attention_heads"])
    prepared = preparation_from_folder(captioner, vision["image_size"], "blip")
    tower = dataclasses.replace(
        tower, eps=eps, rescale=prepared.rescale, mean=prepared.mean, std=prepared.std
    )
    names = dataclasses.replace(
        qformer.INSTRUCT_BLIP, lead=f"{lead}qformer.", queries=f"{lead}query_tokens"
    )
    queries = qformer.QFormerTensors(checkpoint, names)
    read_former = qformer.qformer_config(queries, True, former["num_attention_heads"])
    _require_agreement(captioner / "config.json", config, (vision, tower), (former, read_former))
    _require_square(captioner, prepared, tower)
    norm = norm_weights("norm_last", checkpoint, f"{lead}vision_model.post_layernorm", tower.n_embd)
    parts = InstructedParts(
        tower,
        eva_vit.eva_vit_weights(tower, tensors) | norm,
        reference.published_tower(
            checkpoint.files, vision, prepared.rescale, prepared.mean, prepared.std
        ),
        queries,
        read_former,
        f"{lead}{_PROJECTION}",
        read_wordpiece(captioner / _TOKENIZER),
        read_former.n_positions,
        [(checkpoint, qformer.qformer_unused(read_former))],
    )
    sources = [SourceFiles("captioner", captioner, checkpoint.files)]
    return _Layout(prepared, parts, _open_lm(checkpoint, config, captioner), sources)


def _checked_configs(path: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return vision_config and qformer_config with transformers' defaults, after checking both."""
    from edgeprism.convert.read.fields import number_faults, object_field, require_known

    known = ("num_query_tokens", "use_decoder_only_language_model")
    require_known(config, known, str(path), _KIND)
    parts = {}
    for name, fields, defaults in (
        ("vision_config", _VISION_FIELDS, _VISION_DEFAULTS),
        ("qformer_config", _QFORMER_FIELDS, _QFORMER_DEFAULTS),
    ):
        published = object_field(config, name, str(path))
        require_known(published, fields, f"{path} ({name})")
        parts[name] = {**defaults, **{k: published[k] for k in fields if k in published}}
    vision, former = parts["vision_config"], parts["qformer_config"]
    text = object_field(config, "text_config", str(path))
    expected = [
        ("vision_config.hidden_act", vision["hidden_act"], "gelu"),
        ("vision_config.qkv_bias", vision["qkv_bias"], True),
        ("qformer_config.hidden_act", former["hidden_act"], "gelu"),
        ("qformer_config.layer_norm_eps", former["layer_norm_eps"], 1e-12),
        ("qformer_config.position_embedding_type", former["position_embedding_type"], "absolute"),
        ("qformer_config.cross_attention_frequency", former["cross_attention_frequency"], 2),
    ]
    faults = [f"{name} {is_!r} (expected {not_!r})" for name, is_, not_ in expected if is_ != not_]
    eps = vision["layer_norm_eps"]
    faults += number_faults({"vision_config.layer_norm_eps": eps}, 1)
    faults += [
        f"{name}.num_attention_heads {part['num_attention_heads']!r}"
        for name, part in parts.items()
        if type(part["num_attention_heads"]) is not int or part["num_attention_heads"] < 1
    ]
    kind = text.get("model_type")
    if kind not in _LAVIS_PROJECTIONS:
        faults.append(f"text_config.model_type {kind!r} (known: {', '.join(_LAVIS_PROJECTIONS)})")
    if faults:
        raise CheckpointError(
            f"{path} is not understood: {'; '.join(faults)}.",
            "InstructBLIP with Vicuna or FlanT5 can be converted.",
        )
    return vision, former


def _require_agreement(
    path: Path,
    config: dict[str, Any],
    tower: tuple[dict[str, Any], TowerConfig],
    queries: tuple[dict[str, Any], QFormerConfig],
) -> None:
    """Raise CheckpointError, with all faults, where config.json contradicts the tensors' sizes."""
    (vision, found), (former, read_former) = tower, queries
    said = {"num_query_tokens": config.get("num_query_tokens", 32)}
    said |= {f"vision_config.{name}": value for name, value in vision.items()}
    said |= {f"qformer_config.{name}": value for name, value in former.items()}
    sizes = {
        "num_query_tokens": read_former.n_queries,
        "vision_config.hidden_size": found.n_embd,
        "vision_config.intermediate_size": found.n_ffn,
        "vision_config.num_hidden_layers": found.n_layers,
        "vision_config.image_size": found.image_size,
        "vision_config.patch_size": found.patch_size,
        "qformer_config.vocab_size": read_former.n_vocab,
        "qformer_config.hidden_size": read_former.n_embd,
        "qformer_config.num_hidden_layers": read_former.n_layers,
        "qformer_config.intermediate_size": read_former.n_ffn,
        "qformer_config.max_position_embeddings": read_former.n_positions,
        "qformer_config.encoder_hidden_size": read_former.n_image,
    }
    faults = [
        f"{name} is {said[name]!r}, the tensors have {size}"
        for name, size in sizes.items()
        if said[name] != size
    ]
    if faults:
        raise CheckpointError(
            f"{path} contradicts the weights: {'; '.join(faults)}.",
            "Use the files as they were published together.",
        )


def _require_square(folder: Path, prepared: Preparation, tower: TowerConfig) -> None:
    if (prepared.mode, prepared.size) != ("stretch", tower.image_size):
        raise CheckpointError(
            f"{folder / 'preprocessor_config.json'} prepares pictures in the mode {prepared.mode} "
            f"at {prepared.size} pixels; the vision model takes {tower.image_size}, stretched.",
            "Use the preprocessor_config.json that was published with the model.",
        )


def _open_lm(checkpoint: Checkpoint, config: dict[str, Any], folder: Path) -> LmParts:
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.read.fields import text_fields

    text = text_fields(config, checkpoint.names, "llama", str(folder / "config.json"))
    # [PAD] and <image> were added to the published vocabulary, and its size padded since
    rows = [checkpoint.sizes(name, 2)[0] for name in checkpoint.names if name.endswith(_EMBEDDINGS)]
    text |= {"vocab_size": rows[0]} if rows else {}
    where = f"{folder / 'config.json'} (text_config)"
    return open_language_model(checkpoint, text, where, folder, TokenRules(needed=("</s>",)))


def _parts_missing(captioner: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{captioner} holds LAVIS' layout of InstructBLIP, whose other parts are published on "
        "their own.",
        f"Pass their folders as {', '.join(f'`{name}`' for name in names)}.",
    )


def _lavis_language(llm: Path) -> dict[str, Any]:
    """Return the fields of the language model's config.json, as LAVIS takes them."""
    from edgeprism.convert.read.checkpoint import read_json

    text = read_json(llm / "config.json")
    # LAVIS replaces the activation that FlanT5's own file names
    return {**text, "dense_act_fn": "gelu"} if text.get("model_type") == "t5" else text


def _lavis_layout(
    captioner: Path, vision: Path | None, llm: Path | None, qformer_tokenizer: Path | None
) -> _Layout:
    from edgeprism.convert.gate import eva as reference
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.pth import pth_checkpoint
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.read.wordpiece import read_wordpiece
    from edgeprism.convert.vision import eva_vit, qformer
    from edgeprism.convert.vision.config import Preparation
    from edgeprism.convert.vision.instructed_side import InstructedParts
    from edgeprism.convert.vision.weights import norm_weights

    if vision is None or llm is None or qformer_tokenizer is None:
        parts_named = {"vision": vision, "llm": llm, "qformer_tokenizer": qformer_tokenizer}
        raise _parts_missing(captioner, [n for n, folder in parts_named.items() if folder is None])
    text, where = _lavis_language(llm), str(llm / "config.json")
    projection = _LAVIS_PROJECTIONS["t5" if text.get("model_type") == "t5" else "llama"]
    own = pth_checkpoint(captioner, "captioner", ["query_tokens", f"{projection}.weight"])
    eva = pth_checkpoint(vision, "vision model", ["patch_embed.proj.weight", "pos_embed"])
    language = Checkpoint(llm, "language model")
    tensors = eva_vit.EvaTensors(eva, "")
    tower = eva_vit.eva_vit_config(tensors, _LAVIS_EPS, whole=True)
    queries = qformer.QFormerTensors(own)
    former = qformer.qformer_config(queries, reads_text=True)
    lm = open_language_model(language, text, where, llm, TokenRules(needed=("</s>",)))
    files = reference.EvaFiles(
        eva.files, own.files, tower.n_layers, tower.n_heads, tower.image_size
    )
    norm = norm_weights("norm_last", own, "ln_vision", tower.n_embd)
    tokenizer = dataclasses.replace(read_wordpiece(qformer_tokenizer), truncation="left")
    parts = InstructedParts(
        tower,
        eva_vit.eva_vit_weights(tower, tensors) | norm,
        reference.eva_tower(files),
        queries,
        former,
        projection,
        tokenizer,
        min(_LAVIS_IDS, former.n_positions),
        [
            (own, qformer.qformer_unused(former)),
            # its last block, its head, what training needed: LAVIS passes over all that it lacks
            (eva, (r".",)),
        ],
    )
    sources = [
        SourceFiles("captioner", captioner, own.files),
        SourceFiles("vision", vision, eva.files),
        SourceFiles(
            "llm", llm, [*language.files, *llm.glob("tokenizer.model"), *llm.glob("spiece.model")]
        ),
    ]
    prepared = Preparation(
        "stretch", tower.image_size, "bicubic", 1 / 255, eva_vit.MEAN, eva_vit.STD
    )
    return _Layout(prepared, parts, lm, sources)
