"""PrismCaptioner: SigLIP → MLP projector → InternLM2 with a LoRA adapter.

Source of the layout: the published checkpoints PrismCaptioner-2B/-7B (`llm_adapter/`,
`projector/`), the models they name, and the public code of Prism and xtuner.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from edgeprism.convert import internlm2, parity_data, parity_lm, parity_vision, siglip
from edgeprism.convert.bundle_writer import BundleWriter
from edgeprism.convert.captioner_card import CaptionerCard, card_from_folder
from edgeprism.convert.checkpoint import Checkpoint, digest_of_files, license_of, read_json
from edgeprism.convert.language_model import LmParts, open_language_model
from edgeprism.convert.lora import LoraAdapter
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.pipeline import FamilyParts, check_options, write_bundle
from edgeprism.convert.progress import Progress
from edgeprism.convert.vision_graph import VisionGraph, VisionWeights
from edgeprism.errors import CheckpointError
from edgeprism.manifest import (
    SCHEMA,
    ImagePolicy,
    LanguageModel,
    Manifest,
    Parity,
    Prompts,
    Source,
    Vision,
)

FAMILY = "prismcaptioner"
# The feature is hidden_states[-2]: the last layer, the post-norm and the head never run.
_UNUSED_LAYERS = 1

_INSTRUCTION = (
    "Describe this picture in fine detail. Name the scene and every object in it, with its "
    "colour, shape, number and condition. Say where each one is and how the objects relate to "
    "one another. Copy any text, numbers and symbols exactly as they are written."
)
_FOCUS = " Pay special attention to the following: {focus}"


class _Sources:
    """The checkpoints, opened and checked against their configurations."""

    def __init__(self, captioner: Path, llm: Path, vision: Path, progress: Progress) -> None:
        self.folders = {"captioner": captioner, "llm": llm, "vision": vision}
        config_path = llm / "config.json"
        config = read_json(config_path)
        if config.get("model_type") != "internlm2":
            raise CheckpointError(
                f"{config_path}: model_type is {config.get('model_type')!r}, expected 'internlm2'.",
                "Pass the folder of the InternLM2 language model with --llm.",
            )
        self.lm_checkpoint = Checkpoint(llm, "language model")
        opened = open_language_model(
            self.lm_checkpoint, config, str(config_path), llm, internlm2.TOKENS
        )
        self.tower_config = siglip.siglip_config_from_folder(vision)
        self.projector_config = siglip.projector_config_from_folder(
            captioner / "projector", self.tower_config.n_embd, opened.config.n_embd
        )
        self.n_used = self.tower_config.n_layers - _UNUSED_LAYERS
        self.tower = Checkpoint(vision, "vision model")
        self.prefix = siglip.siglip_prefix(self.tower)
        self.tower.require(siglip.siglip_shapes(self.tower_config, self.prefix, self.n_used))
        self.projector = Checkpoint(captioner / "projector", "projector")
        self.projector.require(siglip.projector_shapes(self.projector_config))
        shapes = opened.shapes
        self.lm_checkpoint.require(shapes)
        self.adapter_folder: Path | None = captioner / "llm_adapter"
        self.adapter: LoraAdapter | None = None
        if self.adapter_folder.is_dir():
            self.adapter = LoraAdapter(self.adapter_folder, shapes)
        else:
            self.adapter_folder = None
            progress.say(
                f"{captioner} has no llm_adapter/: the language model is taken as it is, "
                "as fully trained."
            )
        self._merged: tuple[str, torch.Tensor] | None = None
        self.lm: LmParts = dataclasses.replace(
            opened,
            read=self.merged,
            reference_logits=lambda texts, tick: parity_lm.logits(
                self.lm_checkpoint.files, config, texts, tick, self.adapter_folder
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

    def described(self) -> list[Source]:
        """Name, digest and licence of each, for the manifest."""
        files = {
            "captioner": [
                *self.projector.files,
                *(self.adapter.checkpoint.files if self.adapter else ()),
            ],
            "llm": [*self.lm_checkpoint.files, self.folders["llm"] / "tokenizer.model"],
            "vision": self.tower.files,
        }
        return [
            Source(role, _name_of(folder), digest_of_files(files[role]), license_of(folder))
            for role, folder in self.folders.items()
        ]


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
        card = card_from_folder(captioner, _INSTRUCTION, _FOCUS, max_tokens=512)
        sources = _Sources(captioner, llm, vision, progress)
        drop = not keep_first_patch
        name = options.name or card.name or captioner.resolve().name
        parts = FamilyParts(
            vision=lambda dtype: VisionGraph(
                sources.tower_config, sources.n_used, sources.projector_config, drop, dtype
            ),
            vision_weights=VisionWeights(
                sources.tower, sources.prefix, sources.n_used,
                sources.projector, sources.projector_config.depth,
            ),
            n_vision_layers=sources.n_used,
            reference_visual_tokens=lambda pixels, tick: parity_vision.siglip_visual_tokens(
                vision, captioner / "projector", pixels, drop, tick
            ),
            lm=sources.lm,
            gate_texts=card.parity_texts or parity_data.TEXTS,
            manifest=_manifest(name, sources, card, drop),
        )  # fmt: skip
        return write_bundle(parts, writer, options, progress)


def _manifest(name: str, sources: _Sources, card: CaptionerCard, drop: bool) -> Manifest:
    tower, lm = sources.tower_config, sources.lm.config
    described = sources.described()
    licenses = list(dict.fromkeys(source.license for source in described))
    return Manifest(
        schema=SCHEMA,
        name=name,
        family=FAMILY,
        license=card.license or " and ".join(licenses),
        sources=described,
        image=ImagePolicy(
            mode="pad",
            size=tower.image_size,
            fill=[int(mean * 255) for mean in tower.mean],
            resample=tower.resample,
            max_tiles=1,
        ),
        vision=Vision(
            variants=[],
            input="pixels",
            output="visual_tokens",
            grid=[tower.grid, tower.grid],
            drop_first_patch=drop,
            tokens_per_tile=tower.grid**2 - int(drop),
            n_embd=lm.n_embd,
        ),
        lm=LanguageModel(
            file="",
            quant="",
            architecture=lm.architecture,
            n_embd=lm.n_embd,
            n_vocab=lm.n_vocab,
            context_length=lm.context_length,
            image_attention="causal",
        ),
        prompts=Prompts(
            add_bos=True,
            before_image="<|im_start|>user\n",
            after_image="\n",
            before_caption="<|im_end|>\n<|im_start|>assistant\n",
            default_instruction=card.default_instruction,
            focus_instruction=card.focus_instruction,
            stop=[internlm2.IM_END],
            max_tokens=card.max_tokens,
        ),
        files={},
        parity=Parity(passed=False, forced=False, figures={}, failures=[]),
        notice=card.notice,
    )


def _name_of(folder: Path) -> str:
    """`_name_or_path` of the configuration where it names a published model, else the folder.

    In a hub's cache (models--OWNER--NAME/snapshots/COMMIT) the path says more: OWNER/NAME@COMMIT.
    """
    place = folder.resolve()
    store = place.parent.parent.name
    if place.parent.name == "snapshots" and store.startswith("models--"):
        return f"{store.removeprefix('models--').replace('--', '/', 1)}@{place.name}"
    config = folder / "config.json"
    named = str(read_json(config).get("_name_or_path", "")) if config.is_file() else ""
    # an absolute path there tells of somebody's disk, not of a model
    return named if named and not Path(named).is_absolute() else place.name
