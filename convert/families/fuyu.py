"""Fuyu-8B: patches of a picture of any shape → one matrix → Persimmon.

There is no vision tower. A picture that exceeds 1920 × 1080 pixels is reduced, none is enlarged;
its patches of 30 × 30 pixels, line by line, are the first rows of the prompt, and the row of
|NEWLINE| ends each line. Then come <s>, the instruction with its line's end, and <0x04>, with which
an answer begins. The published padding value, 1, is the level of a pixel, not white: it shows in a
picture's last patches, at the right and below.

Sources: transformers' FuyuConfig, FuyuProcessor, FuyuImageProcessor and FuyuForCausalLM; adept's
fuyu-8b on Hugging Face: config.json, preprocessor_config.json, tokenizer_config.json, model card,
list of files. Not seen: its weights and its tokenizer.json. transformers' code and tests say that
|ENDOFTEXT| ends a caption, and that the tokenizer is one of unigrams that falls back to bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.bundle.manifest import FreeShape, ImagePolicy
from edgeprism.convert.family import Family, Option

if TYPE_CHECKING:
    from edgeprism.convert.language.decoder import DecoderParts
    from edgeprism.convert.language.row_decoder import RowDecoderConfig
    from edgeprism.convert.language.vocabulary_bytes import ByteVocabulary
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.vision.patches import PatchConfig
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.progress import Progress

_KIND, _TEXT_KIND = "fuyu", "persimmon"
_BEGIN, _ANSWER, _END = "<s>", "<0x04>", "|ENDOFTEXT|"
_NEWLINE = "|NEWLINE|"
_BOX_MARKS = ("<0x00>", "<0x01>", "<0x02>", "<0x03>")  # around coordinates, which are no text
_CAPTION = "Generate a coco-style caption."  # of the model card
# The image processor's defaults, each with the only value that is understood, if there is one
_FIXED: dict[str, Any] = {
    "do_resize": True, "do_pad": True, "do_rescale": True, "do_normalize": True,
    "padding_mode": "constant",
}  # fmt: skip
_SIZE = {"height": 1080, "width": 1920}
# `target_…`, of the first version of the processor, says what `size` says now
_PROCESSOR = (*_FIXED, "resample", "rescale_factor", "image_mean", "image_std", "padding_value",
              "patch_size", "size", "target_height", "target_width")  # fmt: skip


@dataclass(frozen=True)
class _Pictures:
    """What the image processor does: filter, fill beyond the picture, largest picture, colours."""

    resample: str
    fill: int
    canvas: tuple[int, int]  # width, height
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read(captioner: Path, progress: Progress) -> PublishedCaptioner:
    """Read the published folder."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.gate import fuyu as reference
    from edgeprism.convert.language.persimmon import persimmon_config
    from edgeprism.convert.language.vocabulary_bytes import FILE, byte_vocabulary
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint, read_config
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.vision.patches import PatchConfig

    config, path = read_config(captioner), captioner / "config.json"
    if config.get("model_type") != _KIND:
        raise unknown_layout(captioner, FAMILY.name, f"model_type {_KIND}")
    text, patch = _fields_of(path, config)
    lm = persimmon_config(text, str(path))
    checkpoint = Checkpoint(captioner, "captioner")
    pictures = _pictures(captioner, patch)
    control = (_BEGIN, "</s>", *_BOX_MARKS, _ANSWER)
    tokens = byte_vocabulary(captioner, lm.n_vocab, _END, control, needed=(_NEWLINE,))
    side = _vision_side(
        PatchConfig(patch, lm.n_embd, pictures.rescale, pictures.mean, pictures.std), pictures,
        lm, checkpoint, tokens.vocabulary.pieces.index(_NEWLINE.encode()),
    )  # fmt: skip
    ids = reference.text_to_ids(captioner / FILE)
    return PublishedCaptioner(
        captioner,
        [SourceFiles("captioner", captioner, [*checkpoint.files, captioner / FILE])],
        _policy(pictures, patch),
        side,
        _decoder(lm, checkpoint, tokens, ids),
        _conversation(),
    )


FAMILY = Family(
    name="fuyu",
    summary="Fuyu-8B: no vision tower; patches of pictures of any shape, Persimmon",
    help="""Convert Fuyu-8B to the bundle OUT.

    Its language model runs as an ONNX graph, on the CPU.
    """,
    options=(Option("captioner", "folder", "Folder of the checkpoint.", required=True),),
    read=read,
    model_types=(_KIND,),
    signs=("partial_rotary_factor", "qk_layernorm"),
    lm_quants=("Q8_0", "F32"),
)


def _fields_of(path: Path, config: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the language model's fields and the edge of a patch; CheckpointError lists faults.

    The published file has them at the top level; files that transformers wrote later have a
    text_config, which then decides, and may leave out what is Persimmon's default. transformers 5
    writes rope_parameters in both places.
    """
    from transformers import PersimmonConfig

    from edgeprism.convert.language.persimmon import FIELDS
    from edgeprism.convert.read.fields import (
        object_field,
        require_known,
        size_faults,
        variant_error,
        with_older_rope,
    )

    config = with_older_rope(config, str(path))
    require_known(config, FIELDS, str(path), _KIND)
    flat = {name: config[name] for name in FIELDS if config.get(name) is not None}
    text = with_older_rope(object_field(config, "text_config", str(path)), f"{path} (text_config)")
    kind = text.get("model_type", _TEXT_KIND)
    faults = [] if kind == _TEXT_KIND else [f"text_config.model_type = {kind!r}"]
    if text:
        meant = {**PersimmonConfig().to_dict(), **text}
        faults += [f"{name} = {value!r}, and {meant[name]!r} in text_config"
                   for name, value in flat.items() if meant[name] != value]  # fmt: skip
    patch = config.get("patch_size", 30)
    faults += size_faults({"patch_size": patch})
    if config.get("num_channels", 3) != 3:
        faults.append(f"num_channels = {config['num_channels']!r} (expected 3)")
    if faults:
        raise variant_error(path, faults, "Use the config.json that was published.")
    return text or flat, patch


def _pictures(folder: Path, patch: int) -> _Pictures:
    """Read preprocessor_config.json, whose fields have defaults; CheckpointError lists faults."""
    from edgeprism.bundle.manifest import MAX_EDGE
    from edgeprism.convert.read.fields import image_processor_fields, variant_error
    from edgeprism.convert.vision.config import RESAMPLINGS, normalisation

    data, path = image_processor_fields(folder, _PROCESSOR)
    faults = [f"{name} = {data[name]!r} (expected {value!r})" for name, value in _FIXED.items()
              if data.get(name, value) != value]  # fmt: skip
    size, own = data.get("size", _SIZE), data.get("patch_size", patch)
    if own not in (patch, {"height": patch, "width": patch}):
        faults.append(f"patch_size = {own!r}, and {patch} in config.json")
    canvas: dict[str, Any] = {}
    if isinstance(size, dict):
        canvas = {name: size.get(name) for name in _SIZE}
    whole = all(type(n) is int and 0 < n <= MAX_EDGE and n % patch == 0 for n in canvas.values())
    if not canvas or not whole:
        faults.append(f"size = {size!r} (expected multiples of {patch} up to {MAX_EDGE})")
    for name, edge in canvas.items():
        if data.get(f"target_{name}", edge) != edge:
            faults.append(f"target_{name} = {data[f'target_{name}']!r}, and size is {size!r}")
    fill, number = data.get("padding_value", 1.0), data.get("resample", 2)
    if type(fill) not in (int, float) or fill not in range(256):
        faults.append(f"padding_value = {fill!r} (expected a whole number in 0…255)")
    if type(number) is not int or number not in RESAMPLINGS:
        faults.append(f"resample = {number!r} (known: {', '.join(map(str, RESAMPLINGS))})")
    if faults:
        raise variant_error(path, faults, "Use the preprocessor_config.json that was published.")
    half = (0.5, 0.5, 0.5)
    for name in ("image_mean", "image_std"):  # a number stands for all three channels
        if type(data.get(name)) in (int, float):
            data[name] = [data[name]] * 3
    colours = normalisation(data, path, half, half)
    width, height = (int(canvas[name]) for name in ("width", "height"))
    return _Pictures(RESAMPLINGS[number], int(fill), (width, height), *colours)


def _policy(pictures: _Pictures, patch: int) -> ImagePolicy:
    width, height = pictures.canvas
    free = FreeShape("shrink-to-fit", patch, patch**2, width * height, canvas=[width, height])
    edge = min(pictures.canvas)
    return ImagePolicy("free", edge, [pictures.fill] * 3, pictures.resample, 1, free=free)


def _vision_side(
    config: PatchConfig,
    pictures: _Pictures,
    lm: RowDecoderConfig,
    checkpoint: Checkpoint,
    newline: int,
) -> VisionSide:
    from edgeprism.convert.gate import fuyu as reference
    from edgeprism.convert.gate.data import N_PICTURES
    from edgeprism.convert.language.persimmon import embedding
    from edgeprism.convert.vision.patches import PatchGraph
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.convert.vision.weights import (
        VisionWeights,
        Weight,
        linear_weights,
        prefix_before,
    )

    patch, probe = config.patch_size, "vision_embed_tokens"
    source = f"{prefix_before(f'{probe}.weight', checkpoint.names)}{probe}"
    table = embedding(lm, checkpoint)
    weights = linear_weights("patch", checkpoint, source, 3 * patch**2, config.n_embd)
    weights["newline_row"] = Weight(
        checkpoint, {table.source: table.shape}, lambda rows: rows[newline : newline + 1]
    )
    width, height = pictures.canvas
    side = min(width, height) // patch
    return VisionSide(
        lambda dtype: PatchGraph(config, dtype),
        (side, side),
        VisionWeights({"": weights}),
        partial(
            reference.visual_tokens, checkpoint.files, patch,
            (config.rescale, config.mean, config.std),
        ),
        N_PICTURES - 1,
        newline=True,
        most_tokens=width * height // patch**2,
    )  # fmt: skip


def _decoder(
    lm: RowDecoderConfig,
    checkpoint: Checkpoint,
    tokens: ByteVocabulary,
    ids: Callable[[str], list[int]],
) -> DecoderParts:
    from edgeprism.convert.gate import fuyu as reference
    from edgeprism.convert.gate.data import TOKENIZER_TEXTS
    from edgeprism.convert.language.decoder import DecoderParts
    from edgeprism.convert.language.persimmon import UNUSED, embedding, persimmon_weights

    sizes = {
        "num_hidden_layers": lm.n_layers, "num_attention_heads": lm.n_heads, "rotary": lm.rotary,
        "rope_theta": lm.rope_theta, "layer_norm_eps": lm.eps,
    }  # fmt: skip
    return DecoderParts(
        checkpoint,
        lm,
        tokens.vocabulary,
        persimmon_weights(lm, checkpoint),
        partial(reference.logits, checkpoint.files, sizes),
        ids,
        lm.n_embd,
        UNUSED,
        embedding=embedding(lm, checkpoint),
        n_ticks=lm.n_layers,
        tokenizer_texts=tokens.same_texts(TOKENIZER_TEXTS),
    )


def _conversation() -> Conversation:
    from edgeprism.convert.read.conversations import Conversation

    return Conversation(
        "",
        "",
        after_instruction="\n",
        before_caption=_ANSWER,
        stop=(_END,),
        picture_end=_BEGIN,
        instruction=_CAPTION,
    )
