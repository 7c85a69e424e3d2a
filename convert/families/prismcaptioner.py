"""PrismCaptioner: SigLIP → MLP projector → InternLM2 with a LoRA adapter.

Source of the layout: the published checkpoints PrismCaptioner-2B/-7B (`llm_adapter/`,
`projector/`), the models they name, and the public code of Prism and xtuner.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from edgeprism.bundle.manifest import Manifest
from edgeprism.bundle.writer import BundleWriter
from edgeprism.convert.families.layouts import unknown_layout
from edgeprism.convert.gate import language as reference_language
from edgeprism.convert.language import internlm2
from edgeprism.convert.language.model import UNUSED, LmParts, open_language_model
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.parts import (
    FOCUS,
    INSTRUCTION,
    MAX_TOKENS,
    VisionSide,
    captioner_parts,
    one_tile,
    source_of,
)
from edgeprism.convert.pipeline import check_options, write_bundle
from edgeprism.convert.read.card import card_from_folder
from edgeprism.convert.read.checkpoint import Checkpoint, Requirements, read_json
from edgeprism.convert.read.conversations import Conversation
from edgeprism.convert.read.lora import LoraAdapter
from edgeprism.convert.vision.config import Preparation, ProjectorConfig
from edgeprism.convert.vision.stock import StockProjector, StockTower, stock_vision_side
from edgeprism.errors import CheckpointError
from edgeprism.progress import Progress

FAMILY = "prismcaptioner"
# The feature is hidden_states[-2]: the last layer, the post-norm and the head never run.
_SELECT_LAYER = -2
_CONVERSATION = Conversation(
    "<|im_start|>user\n",
    "\n",
    before_caption="<|im_end|>\n<|im_start|>assistant\n",
    stop=(internlm2.IM_END,),
)


class _Sources:
    """The checkpoints, opened and checked against their configurations."""

    def __init__(
        self, captioner: Path, llm: Path, vision: Path, keep_first: bool, progress: Progress
    ) -> None:
        requirements = Requirements()
        config = _read_lm_config(llm / "config.json")
        self.lm_checkpoint = Checkpoint(llm, "language model")
        opened = open_language_model(
            self.lm_checkpoint, config, str(llm / "config.json"), llm, internlm2.TOKENS
        )
        self.vision, self.preparation = _vision_side(
            captioner / "projector", vision, keep_first, requirements
        )
        _require_fit(captioner / "projector", self.vision.projector, opened)
        requirements.add(self.lm_checkpoint, opened.shapes, UNUSED["internlm2"])
        requirements.check()
        self.adapter: LoraAdapter | None = None
        adapter_folder: Path | None = captioner / "llm_adapter"
        if adapter_folder is not None and adapter_folder.is_dir():
            self.adapter = LoraAdapter(adapter_folder, opened.shapes)
        else:
            adapter_folder = None
            progress.say(
                f"{captioner} has no llm_adapter/: the language model is taken as it is, "
                "as fully trained."
            )
        self._merged: tuple[str, torch.Tensor] | None = None
        self.lm: LmParts = dataclasses.replace(
            opened,
            read=self.merged,
            reference_logits=lambda texts, tick: reference_language.logits(
                self.lm_checkpoint.files, config, texts, tick, adapter_folder
            ),
        )

    def merged(self, name: str) -> torch.Tensor:
        """A tensor of the language model in float32, with the adapter's change."""
        if self._merged is not None and self._merged[0] == name:
            return self._merged[1]
        self._merged = None  # frees the memory before the next is made
        tensor = self.lm_checkpoint.read_float32(name)
        if self.adapter:
            tensor = self.adapter.merge(name, tensor)
        if name.endswith(".wqkv.weight"):
            # queries, keys and values come from one tensor, asked for in turn
            self._merged = (name, tensor)
        return tensor


def convert(
    out: Path,
    options: ConvertOptions,
    progress: Progress,
    captioner: Path,
    llm: Path,
    vision: Path,
    keep_first_patch: bool = False,
) -> Manifest:
    """Convert the three published folders into the bundle `out`.

    Raises UsageError (options, `out`), CheckpointError (a folder is not what it should be) and
    ParityError (the gate failed and `options.force` is not set). Nothing is left behind then.
    """
    check_options(options)
    with BundleWriter(out, options.overwrite) as writer:
        progress.stage("Reading the checkpoints")
        if not (captioner / "projector").is_dir():
            raise unknown_layout(captioner, FAMILY, "the folders projector/ and llm_adapter/")
        card = card_from_folder(captioner, INSTRUCTION, FOCUS, MAX_TOKENS)
        sources = _Sources(captioner, llm, vision, keep_first_patch, progress)
        adapter = sources.adapter.checkpoint.files if sources.adapter else []
        projector = Checkpoint(captioner / "projector", "projector").files
        tokenizer = llm / "tokenizer.model"
        parts = captioner_parts(
            FAMILY,
            options.name or card.name or captioner.resolve().name,
            [
                source_of("captioner", captioner, [*projector, *adapter]),
                source_of("llm", llm, [*sources.lm_checkpoint.files, tokenizer]),
                source_of("vision", vision, Checkpoint(vision, "vision model").files),
            ],
            one_tile("pad", sources.preparation),
            sources.vision,
            sources.lm,
            _CONVERSATION,
            card,
        )
        return write_bundle(parts, writer, options, progress)


def _vision_side(
    projector: Path, vision: Path, keep_first: bool, requirements: Requirements
) -> tuple[VisionSide, Preparation]:
    path = vision / "config.json"
    config = read_json(path)
    if config.get("model_type") not in ("siglip", "siglip_vision_model"):
        raise CheckpointError(
            f"{path}: model_type is {config.get('model_type')!r}, expected 'siglip' or "
            "'siglip_vision_model'.",
            "Pass the folder of the SigLIP vision model with --vision.",
        )
    tower = StockTower(
        Checkpoint(vision, "vision model"), config, str(path), vision, _SELECT_LAYER, keep_first
    )
    width = (config.get("vision_config") or config).get("hidden_size", 768)
    depth, n_out = _projector_shape(projector / "config.json", width)
    layers = [f"model.{2 * i}" for i in range(depth)]  # the GELUs between hold the odd numbers
    linears = StockProjector(Checkpoint(projector, "projector"), layers)
    return stock_vision_side(tower, linears, n_out, requirements)


def _read_lm_config(path: Path) -> dict[str, object]:
    config = read_json(path)
    if config.get("model_type") != "internlm2":
        raise CheckpointError(
            f"{path}: model_type is {config.get('model_type')!r}, expected 'internlm2'.",
            "Pass the folder of the InternLM2 language model with --llm.",
        )
    return config


def _projector_shape(path: Path, n_in: int) -> tuple[int, int]:
    """How many layers, and their width; the projector's config.json must fit the tower (n_in)."""
    data = read_json(path)
    depth, n_out = data.get("depth", 2), data.get("llm_hidden_size")
    expected = {
        "model_type": ("projector", data.get("model_type", "projector")),
        "visual_hidden_size": (n_in, data.get("visual_hidden_size")),
        "hidden_act": ("gelu", data.get("hidden_act", "gelu")),
        "bias": (True, data.get("bias", True)),
    }
    faults = [
        f"{name} is {found!r}, expected {wanted!r}"
        for name, (wanted, found) in expected.items()
        if found != wanted
    ]
    for name, value in (("depth", depth), ("llm_hidden_size", n_out)):
        if not isinstance(value, int) or value < 1:
            faults.append(f"{name} is {value!r}, expected a whole number above 0")
    if faults:
        raise CheckpointError(
            f"{path} does not fit the vision model: {'; '.join(faults)}.",
            "Pass the three folders that belong together.",
        )
    return depth, int(data["llm_hidden_size"])


def _require_fit(folder: Path, projector: ProjectorConfig, lm: LmParts) -> None:
    if projector.widths[-1] != lm.config.n_embd:
        raise CheckpointError(
            f"{folder / 'config.json'} does not fit the language model: llm_hidden_size is "
            f"{projector.widths[-1]}, expected {lm.config.n_embd}.",
            "Pass the three folders that belong together.",
        )
