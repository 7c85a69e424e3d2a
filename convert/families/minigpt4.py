"""MiniGPT-4 and MiniGPT-v2: EVA-ViT-g → Q-Former, or neighbouring patches → a Llama.

What is published holds only what was trained. The other parts are the publications of others, which
upstream's configuration names:

- MiniGPT-4 with Vicuna (version 0): a projection; eva_vit_g.pth, blip2_pretrained_flant5xxl.pth
  (the Q-Former and the norm before it) and Vicuna.
- MiniGPT-4 with Llama 2: a projection of four joined patches; eva_vit_g.pth and Llama-2-chat. The
  norm behind the tower is in no file, so it has torch's initial values, as upstream runs it.
- MiniGPT-v2: such a projection for pictures of twice the side, and a LoRA of Llama-2-chat.

The tensors of the projection's file tell the three apart. Sources: MiniGPT-4's repository
(`minigpt4.py`, `minigpt_v2.py`, `minigpt_base.py`, `base_model.py`, `eva_vit.py`,
`conversation.py`, the configurations).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprism.convert.family import Family, Option
from edgeprism.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import torch

    from edgeprism.bundle.manifest import ImagePolicy
    from edgeprism.convert.language.model import LmParts
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.read.lora import LoraHalves
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.progress import Progress

_PROJECTION = "llama_proj"
_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I "
    "provide it to you. Please answer my questions."
)
# MiniGPT-v2's names of tasks, in its training's instructions
_TASKS = ("caption", "grounding", "vqa", "detection", "refer", "identify")
_LORA_LEAD = "llama_model.base_model.model."
_LORA_MATRICES = ("self_attn.q_proj", "self_attn.v_proj")
_RANK, _ALPHA = 64, 16  # of MiniGPT-v2's configuration, which its file does not repeat
_SCALE_OF_V2 = 2  # 448 pixels, where the tower's positions are for 224


def read(
    captioner: Path, vision: Path, qformer: Path | None, llm: Path, task: str, progress: Progress
) -> PublishedCaptioner:
    """Read the folders of the published files."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint, read_json
    from edgeprism.convert.read.pth import pth_checkpoint
    from edgeprism.convert.read.sources import SourceFiles

    if not any(captioner.glob("*.pth")):
        raise unknown_layout(captioner, FAMILY.name, f"a .pth file with {_PROJECTION}.weight")
    own = pth_checkpoint(captioner, "captioner", [f"{_PROJECTION}.weight", f"{_PROJECTION}.bias"])
    tower = pth_checkpoint(vision, "vision model", ["patch_embed.proj.weight", "pos_embed"])
    language = Checkpoint(llm, "language model")
    lm = _open_lm(language, read_json(llm / "config.json"))
    sources = [
        SourceFiles("captioner", captioner, own.files),
        SourceFiles("vision", vision, tower.files),
        SourceFiles("llm", llm, [*language.files, *llm.glob("tokenizer.model")]),
    ]
    kind = _kind(own, tower, task)
    if kind == "vicuna":
        queries = _open_qformer(qformer, own)
        sources.append(SourceFiles("qformer", queries.folder, queries.files))
        side, image = _query_side(own, tower, queries, lm.config.n_embd)
    else:
        side, image = _patch_side(own, tower, kind == "v2", lm.config.n_embd)
    if kind == "v2":
        lm, lora = _with_lora(lm, own, read_json(llm / "config.json"))
        side = dataclasses.replace(side, unused=[*side.unused, (own, tuple(lora.patterns()))])
    return PublishedCaptioner(captioner, sources, image, side, lm, _conversation(kind, task))


FAMILY = Family(
    name="minigpt4",
    summary="MiniGPT-4 (Vicuna v0, Llama 2) and MiniGPT-v2: EVA-ViT-g, Q-Former or joined patches",
    help="""Convert MiniGPT-4 or MiniGPT-v2 to the bundle OUT.

    It is put together from files of several publishers; each folder holds the file that is named,
    and one folder may hold several of them.
    """,
    options=(
        Option("captioner", "folder", "Folder of MiniGPT's own .pth file.", required=True),
        Option("vision", "folder", "Folder of eva_vit_g.pth.", required=True),
        Option("qformer", "folder", "Folder of blip2_pretrained_flant5xxl.pth, for Vicuna."),
        Option("llm", "folder", "Folder of Vicuna version 0 or Llama-2-chat.", required=True),
        Option(
            "task",
            "choice",
            "Task that each instruction names, for MiniGPT-v2.  [default: none]",
            default="",
            choices=_TASKS,
        ),
    ),
    read=read,
    signs=("prerained_minigpt4_7b.pth", "pretrained_minigpt4.pth", "minigptv2_checkpoint.pth"),
)


def _kind(own: Checkpoint, tower: Checkpoint, task: str) -> str:
    """Return "vicuna", "llama-2" or "v2", which the tensors of MiniGPT's file tell."""
    adapted = any(name.startswith(_LORA_LEAD) for name in own.names)
    width = tower.sizes("patch_embed.proj.weight", 4)[0]
    n_in = own.sizes(f"{_PROJECTION}.weight", 2)[1]
    joined = n_in == 4 * width
    if adapted and not joined:
        raise CheckpointError(
            f"{own.folder} (captioner): a LoRA beside a projection of {n_in} numbers; that of "
            f"MiniGPT-v2 takes {4 * width}.",
            "Pass the files that belong together.",
        )
    kind = "v2" if adapted else "llama-2" if joined else "vicuna"
    if task and task not in _TASKS:
        raise UsageError(f"The task {task} is not known.", f"Known: {', '.join(_TASKS)}.")
    if task and kind != "v2":
        raise UsageError(
            f"`task` is {task}, but {own.files[0]} is no MiniGPT-v2: MiniGPT-4 knows no tasks.",
            "Leave `task` out.",
        )
    return kind


def _open_lm(language: Checkpoint, config: dict[str, object]) -> LmParts:
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules

    where = str(language.folder / "config.json")
    # Vicuna and Llama 2 have these two, which tells a later Llama of the same width apart
    rules = TokenRules(needed=("<s>", "</s>"))
    return open_language_model(language, config, where, language.folder, rules)


def _open_qformer(folder: Path | None, own: Checkpoint) -> Checkpoint:
    from edgeprism.convert.read.pth import pth_checkpoint

    if folder is None:
        raise CheckpointError(
            f"{own.files[0]} is a projection of the Q-Former's rows, and the Q-Former is published "
            "on its own.",
            "Download blip2_pretrained_flant5xxl.pth and pass its folder as `qformer`.",
        )
    return pth_checkpoint(folder, "Q-Former", ["query_tokens", "ln_vision.weight"])


def _query_side(
    own: Checkpoint, tower: Checkpoint, queries: Checkpoint, n_embd: int
) -> tuple[VisionSide, ImagePolicy]:
    from edgeprism.convert.vision.eva_side import (
        EvaSources,
        image_policy,
        lavis_parts,
        query_side,
    )
    from edgeprism.convert.vision.eva_vit import EvaTensors
    from edgeprism.convert.vision.qformer import QFormerTensors

    sources = EvaSources(EvaTensors(tower, ""), queries, own, _PROJECTION, whole_tower=True)
    parts = lavis_parts(sources, QFormerTensors(queries), reads_text=False)
    # BLIP-2's own projection to its T5
    parts = dataclasses.replace(parts, unused=[*parts.unused, (queries, (r"^t5_",))])
    return query_side(parts, n_embd), image_policy(parts.tower)


def _patch_side(
    own: Checkpoint, tower: Checkpoint, larger: bool, n_embd: int
) -> tuple[VisionSide, ImagePolicy]:
    from edgeprism.convert.vision.eva_side import EvaSources, joined_patch_side
    from edgeprism.convert.vision.eva_vit import EvaTensors

    # a file that holds the norm has trained it
    norm = own if "ln_vision.weight" in own.names else None
    sources = EvaSources(EvaTensors(tower, ""), norm, own, _PROJECTION, whole_tower=True)
    return joined_patch_side(sources, n_embd, _SCALE_OF_V2 if larger else 1)


def _with_lora(
    lm: LmParts, own: Checkpoint, config: dict[str, object]
) -> tuple[LmParts, LoraHalves]:
    """Return the language model with the LoRA of MiniGPT-v2's file merged into it."""
    from edgeprism.convert.gate import language as reference
    from edgeprism.convert.read.lora import LoraHalves

    # newer PEFT writes the name of the adapter, too
    middle = ".default" if any(".lora_A.default." in name for name in own.names) else ""
    pairs = {}
    for name in lm.shapes:
        stem = name.removesuffix(".weight")
        if stem != name and stem.endswith(_LORA_MATRICES):
            a, b = (f"{_LORA_LEAD}{stem}.lora_{half}{middle}.weight" for half in "AB")
            pairs[name] = (a, b)
    scale = _ALPHA / _RANK
    lora = LoraHalves(own, pairs, _RANK, scale)
    lora.require(lm.shapes)
    files = [*lm.checkpoint.files, *own.files]
    inner = reference.InnerLora(f"model.{_LORA_LEAD}", scale)

    def merged(name: str) -> torch.Tensor:
        return lora.merge(name, lm.checkpoint.read_float32(name))

    return dataclasses.replace(
        lm,
        read=merged,
        reference_logits=lambda texts, tick: reference.logits(
            files, dict(config), texts, tick, inner=inner
        ),
    ), lora


def _conversation(kind: str, task: str) -> Conversation:
    from edgeprism.convert.read.conversations import Conversation

    if kind == "vicuna":
        return Conversation(
            f"{_SYSTEM}###Human: <Img>",
            "</Img> ",
            "###Assistant: ",
            stop=("###", "</s>"),
            repetition_penalty=1.05,
        )
    # upstream's tokenizer puts a BOS before the one that is typed here
    named = f"[{task}] " if task else ""
    return Conversation(
        "<s>[INST] <Img>" if kind == "v2" else f"{_SYSTEM}<s>[INST] <Img>",
        f"</Img> {named}",
        " [/INST]" if kind == "v2" else " [/INST] ",
        needed=("<s>",),
        repetition_penalty=1.05,
    )
