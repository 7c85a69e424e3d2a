"""PrismCaptioner: SigLIP → MLP projector → InternLM2 with a LoRA adapter.

Sources: the published checkpoints PrismCaptioner-2B/-7B (`llm_adapter/`, `projector/`), the models
that they name, and the public code of Prism and xtuner.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.family import Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from edgeprism.convert.language.model import LmParts
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.lora import LoraAdapter
    from edgeprism.convert.vision.config import Preparation
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.progress import Progress

# The feature is hidden_states[-2]: the last layer, the post-norm and the head never run.
_SELECT_LAYER = -2


def read(
    captioner: Path, llm: Path, vision: Path, keep_first_patch: bool, progress: Progress
) -> PublishedCaptioner:
    """Read the three published folders."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.language import internlm2
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.vision.config import one_tile

    if not (captioner / "projector").is_dir():
        raise unknown_layout(captioner, FAMILY.name, "the folders projector/ and llm_adapter/")
    config = _read_lm_config(llm / "config.json")
    checkpoint = Checkpoint(llm, "language model")
    lm = open_language_model(checkpoint, config, str(llm / "config.json"), llm, internlm2.TOKENS)
    tower_config = _read_tower_config(vision / "config.json")
    tower = Checkpoint(vision, "vision model")
    projector = Checkpoint(captioner / "projector", "projector")
    side, preparation = _vision_side(projector, tower, tower_config, keep_first_patch, lm)
    adapter = _open_adapter(captioner, lm, progress)
    adapter_files = adapter.checkpoint.files if adapter else []
    return PublishedCaptioner(
        captioner,
        [
            SourceFiles("captioner", captioner, [*projector.files, *adapter_files]),
            SourceFiles("llm", llm, [*checkpoint.files, *llm.glob("tokenizer.model")]),
            SourceFiles("vision", vision, tower.files),
        ],
        one_tile("pad", preparation),
        side,
        _with_adapter(lm, config, adapter),
        Conversation(
            "<|im_start|>user\n",
            "\n",
            before_caption="<|im_end|>\n<|im_start|>assistant\n",
            stop=(internlm2.IM_END,),
        ),
    )


FAMILY = Family(
    name="prismcaptioner",
    summary="PrismCaptioner: SigLIP, projector, InternLM2 with a LoRA adapter",
    help="Convert a PrismCaptioner, its InternLM2 and its SigLIP to the bundle OUT.",
    options=(
        Option("captioner", "folder", "Folder with llm_adapter/ and projector/.", required=True),
        Option("llm", "folder", "Folder of the InternLM2 base model.", required=True),
        Option("vision", "folder", "Folder of the SigLIP model.", required=True),
        Option(
            "keep_first_patch",
            "flag",
            "Keep the first visual token; the published model drops it.",
            default=False,
        ),
    ),
    read=read,
    signs=("projector", "llm_adapter"),
)


def _read_lm_config(path: Path) -> dict[str, object]:
    from edgeprism.convert.read.checkpoint import read_json

    config = read_json(path)
    if config.get("model_type") != "internlm2":
        raise CheckpointError(
            f"{path}: model_type is {config.get('model_type')!r}, expected 'internlm2'.",
            "Pass the folder of the InternLM2 language model as `llm`.",
        )
    return config


def _open_adapter(captioner: Path, lm: LmParts, progress: Progress) -> LoraAdapter | None:
    from edgeprism.convert.read.lora import LoraAdapter

    folder = captioner / "llm_adapter"
    if folder.is_dir():
        return LoraAdapter(folder, lm.shapes)
    progress.say(
        f"{captioner} has no llm_adapter/: the language model is used unchanged, as fully trained."
    )
    return None


def _with_adapter(lm: LmParts, config: dict[str, object], adapter: LoraAdapter | None) -> LmParts:
    """Return `lm` with the adapter's change in its tensors and in its reference."""
    from edgeprism.convert.gate import language as reference

    folder = adapter.folder if adapter else None
    return dataclasses.replace(
        lm,
        read=_MergedTensors(lm.checkpoint, adapter).read,
        reference_logits=lambda texts, tick: reference.logits(
            lm.checkpoint.files, config, texts, tick, folder
        ),
    )


class _MergedTensors:
    """The language model's tensors in float32, with the adapter's change if there is an adapter."""

    def __init__(self, checkpoint: Checkpoint, adapter: LoraAdapter | None) -> None:
        self._checkpoint = checkpoint
        self._adapter = adapter
        self._last: tuple[str, torch.Tensor] | None = None

    def read(self, name: str) -> torch.Tensor:
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        self._last = None  # free this tensor before the next is read
        tensor = self._checkpoint.read_float32(name)
        if self._adapter:
            tensor = self._adapter.merge(name, tensor)
        if name.endswith(".wqkv.weight"):
            # the writer reads this tensor three times in a row: for queries, keys and values
            self._last = (name, tensor)
        return tensor


def _read_tower_config(path: Path) -> dict[str, Any]:
    from edgeprism.convert.read.checkpoint import read_json

    config = read_json(path)
    if config.get("model_type") not in ("siglip", "siglip_vision_model"):
        raise CheckpointError(
            f"{path}: model_type is {config.get('model_type')!r}, expected 'siglip' or "
            "'siglip_vision_model'.",
            "Pass the folder of the SigLIP vision model as `vision`.",
        )
    return config


def _vision_side(
    projector: Checkpoint,
    vision: Checkpoint,
    config: dict[str, Any],
    keep_first: bool,
    lm: LmParts,
) -> tuple[VisionSide, Preparation]:
    from edgeprism.convert.vision.stock import StockProjector, StockTower, stock_vision_side

    where = str(vision.folder / "config.json")
    tower = StockTower(vision, config, where, vision.folder, _SELECT_LAYER, keep_first)
    width = (config.get("vision_config") or config).get("hidden_size", 768)
    depth, n_out = _projector_shape(projector.folder / "config.json", width)
    layers = [f"model.{2 * i}" for i in range(depth)]  # the GELUs between them have the odd numbers
    side = stock_vision_side(tower, StockProjector(projector, layers), n_out)
    _require_fit(projector.folder, n_out, lm)
    return side


def _projector_shape(path: Path, n_in: int) -> tuple[int, int]:
    """Return the projector's number of layers and their width.

    Raises CheckpointError if its config.json does not fit the tower's width `n_in`.
    """
    from edgeprism.convert.read.checkpoint import read_json

    data = read_json(path)
    depth: object = data.get("depth", 2)
    n_out: object = data.get("llm_hidden_size")
    expected = {
        "model_type": ("projector", data.get("model_type", "projector")),
        "visual_hidden_size": (n_in, data.get("visual_hidden_size")),
        "hidden_act": ("gelu", data.get("hidden_act", "gelu")),
        "bias": (True, data.get("bias", True)),
    }
    faults = [
        f"{name} is {published!r}, expected {value!r}"
        for name, (value, published) in expected.items()
        if published != value
    ]
    for name, value in (("depth", depth), ("llm_hidden_size", n_out)):
        if not isinstance(value, int) or value < 1:
            faults.append(f"{name} is {value!r}, expected a whole number above 0")
    if faults or not isinstance(depth, int) or not isinstance(n_out, int):
        raise CheckpointError(
            f"{path} does not fit the vision model: {'; '.join(faults)}.",
            "Pass the three folders that belong together.",
        )
    return depth, n_out


def _require_fit(folder: Path, n_out: int, lm: LmParts) -> None:
    if n_out != lm.config.n_embd:
        raise CheckpointError(
            f"{folder / 'config.json'} does not fit the language model: llm_hidden_size is "
            f"{n_out}, expected {lm.config.n_embd}.",
            "Pass the three folders that belong together.",
        )
