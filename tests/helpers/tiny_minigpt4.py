"""Tiny MiniGPT-4s: the four sources that upstream loads, and stock classes that compute the same.

Sources: MiniGPT-4's repository (`minigpt4.py`, `minigpt_v2.py`, `minigpt_base.py`,
`base_model.py`, `conversation.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BlipImageProcessor, LlamaForCausalLM

from tests.helpers import tiny_eva
from tests.helpers.tiny_captioners import Case, Reference, make, processed, square, tensors_of
from tests.helpers.tiny_lm import write_lm
from tests.helpers.tiny_xcomposer import LoraLinear

SYSTEM = "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once"
SYSTEM += " I provide it to you. Please answer my questions."
# kind → text before and after the picture. Upstream adds BOS before a "<s>" that is typed.
PROMPTS = {
    "vicuna": (f"{SYSTEM}###Human: <Img>", "</Img> {}###Assistant: "),
    "llama-2": (f"{SYSTEM}<s>[INST] <Img>", "</Img> {} [/INST] "),
    "v2": ("<s>[INST] <Img>", "</Img> {} [/INST]"),
}
TASK = "[caption] "  # MiniGPT-v2 puts it before the instruction
RANK, ALPHA = 64, 16  # of MiniGPT-v2's adapter
_SIZES = {"vicuna": 56, "llama-2": 56, "v2": 112}


def write_minigpt4(
    folder: Path, *, kind: str = "vicuna", task: bool = False, seed: int = 41
) -> Case:
    """Write `kind` (of PROMPTS), with settings captioner, vision, qformer and llm.

    Each is a folder that holds what upstream's configuration names: a .pth file, for `llm` a
    Llama. Only "vicuna" has a Q-Former. The other kinds never load a norm behind the tower: theirs
    keeps weight 1 and bias 0, and no file holds it. `task` adds MiniGPT-v2's tag to the prompt.
    """
    lm = write_lm(folder / "llm", "vicuna", seed=seed)
    assert isinstance(lm, LlamaForCausalLM)
    n_embd, size = lm.config.hidden_size, _SIZES[kind]
    # one block more than runs, and positions of 56 × 56 pixels
    published = tiny_eva.eva_tower(seed, n_layers=4)
    tiny_eva.halved(published)
    tower = tiny_eva.eva_tower(seed, image_size=56, n_layers=3)
    tower.load_state_dict(published.state_dict(), strict=False)
    settings = {"captioner": folder / "captioner", "vision": folder / "vision",
                "llm": folder / "llm"}  # fmt: skip
    _save(settings["vision"] / "eva_vit_g.pth", _eva_file(published, seed))
    if kind == "vicuna":
        settings["qformer"] = folder / "qformer"
        path = settings["qformer"] / "blip2_pretrained_flant5xxl.pth"
        projection, connector = _with_qformer(path, tower, n_embd, seed)
        file = "prerained_minigpt4_7b.pth"  # sic
    else:
        projection, connector = _of_four_patches(tower, n_embd, seed)
        v2 = kind == "v2"
        file = "minigptv2_checkpoint.pth" if v2 else "pretrained_minigpt4_llama2_7b.pth"
    tensors = tensors_of(projection, "llama_proj.")
    if kind == "v2":
        tensors |= _adapted(lm, seed)
    _save(settings["captioner"] / file, {"model": tensors, "optimizer": {"state": {}}, "epoch": 3})
    before, after = PROMPTS[kind]
    reference = Reference(
        [processed(BlipImageProcessor(size=square(size)))],
        [lambda pixels: tiny_eva.tower_rows(tower, pixels)],
        connector, lm, folder / "llm", before, after.replace("{}", f"{TASK * task}{{}}"),
        added={"<s>": 1},
    )  # fmt: skip
    return Case("minigpt4", settings, reference)


def _save(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data, path)


def _eva_file(tower: Any, seed: int) -> dict[str, torch.Tensor]:
    """EVA-CLIP's own file: no prefix, half precision, and a head that captioners never run."""
    tensors = tiny_eva.published_tower(tower, "")
    generator = torch.Generator().manual_seed(seed + 5)
    for name in ("fc_norm.weight", "fc_norm.bias", "head.bias"):
        tensors[name] = torch.randn(tiny_eva.WIDTH, generator=generator)
    tensors["head.weight"] = torch.randn(tiny_eva.WIDTH, tiny_eva.WIDTH, generator=generator)
    return {name: tensor.half() for name, tensor in tensors.items()}


def _with_qformer(
    path: Path, tower: Any, n_embd: int, seed: int
) -> tuple[nn.Linear, Callable[[torch.Tensor], torch.Tensor]]:
    """Write BLIP-2's file; return MiniGPT-4's projection, and what follows the tower."""
    former, queries = tiny_eva.qformer(seed + 1, 7)
    projection = make(nn.Linear(tiny_eva.QUERY_WIDTH, n_embd), seed + 2)
    unused = make(nn.Linear(tiny_eva.QUERY_WIDTH, 32), seed + 3)  # to FlanT5
    tensors = {
        **tiny_eva.published_norm(tower), **tiny_eva.published_qformer(former, queries),
        **tensors_of(unused, "t5_proj."),
        "Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
    }  # fmt: skip
    _save(path, {"model": tensors})

    def connector(rows: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = projection(tiny_eva.query_rows(former, queries, rows))
        return seen

    return projection, connector


def _of_four_patches(
    tower: Any, n_embd: int, seed: int
) -> tuple[nn.Linear, Callable[[torch.Tensor], torch.Tensor]]:
    """Return a projection of four patches that follow each other, and what follows the tower."""
    with torch.no_grad():
        tower.post_layernorm.weight.fill_(1)
        tower.post_layernorm.bias.zero_()
    projection = make(nn.Linear(4 * tiny_eva.WIDTH, n_embd), seed + 2)

    def connector(rows: torch.Tensor) -> torch.Tensor:
        patches = rows[:, 1:]
        seen: torch.Tensor = projection(patches.unflatten(1, (-1, 4)).flatten(2))
        return seen

    return projection, connector


def _adapted(lm: LlamaForCausalLM, seed: int) -> dict[str, torch.Tensor]:
    """Put LoRA on q and v of `lm`; return its tensors under the names of PEFT 0.2."""
    tensors: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(lm.model.layers):
        for part in ("q_proj", "v_proj"):
            base = getattr(layer.self_attn, part)
            adapted = make(LoraLinear(base, RANK, ALPHA), seed + 10 + i)
            adapted.weight = base.weight
            setattr(layer.self_attn, part, adapted)
            lead = f"llama_model.base_model.model.model.layers.{i}.self_attn.{part}."
            for name, tensor in tensors_of(adapted).items():
                if "lora" in name:
                    tensors[f"{lead}{name}"] = tensor
    return tensors
