"""The dimensions of published captioners, and random checkpoints of these dimensions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.checkpoints.attended import write_blip
from benchmarks.checkpoints.instructed import write_instructblip
from benchmarks.checkpoints.mined import write_mini_gemini
from benchmarks.checkpoints.one_tile import write_llava, write_prismcaptioner
from benchmarks.checkpoints.qwen_vl import write_qwen_vl
from benchmarks.checkpoints.sliced import write_minicpm_v
from benchmarks.checkpoints.tiled import write_internvl, write_smolvlm


@dataclass(frozen=True)
class Size:
    """One model: its family, the names of its folders, and the function that writes them."""

    family: str
    folders: tuple[str, ...]
    lm_layers: int
    write: Callable[[Path, int], None]  # (folder above them, layers of the language model)


def prismcaptioner(n_layers: int, *dimensions: int) -> Size:
    write = partial(_prismcaptioner, dimensions)
    return Size("prismcaptioner", ("captioner", "llm", "vision"), n_layers, write)


def _prismcaptioner(dimensions: tuple[int, ...], folder: Path, n_layers: int) -> None:
    write_prismcaptioner(folder, n_layers, *dimensions)


SIZES = {
    "prismcaptioner-2b": prismcaptioner(24, 2048, 16, 8192),
    "prismcaptioner-7b": prismcaptioner(32, 4096, 32, 14336),
    "llava-1.5-7b": Size("llava", ("captioner", "vision"), 32, write_llava),
    "smolvlm-256m": Size(
        "smolvlm", ("captioner",), 30, partial(write_smolvlm, hidden=576, ffn=1536, heads=9)
    ),
    "smolvlm-500m": Size(
        "smolvlm", ("captioner",), 32, partial(write_smolvlm, hidden=960, ffn=2560, heads=15)
    ),
    "internvl-2b": Size("internvl", ("captioner",), 24, write_internvl),
    "qwen-vl": Size("qwen-vl", ("captioner",), 32, write_qwen_vl),
    "instructblip-7b": Size("instructblip", ("captioner",), 32, write_instructblip),
    "mini-gemini-2b": Size(
        "mini-gemini", ("captioner", "vision", "vision_aux"), 18, write_mini_gemini
    ),
    "blip-base": Size("blip", ("captioner",), 12, write_blip),
    "blip-large": Size("blip", ("captioner",), 12, partial(write_blip, size="large")),
    "minicpm-v-2": Size("minicpm-v", ("captioner",), 40, write_minicpm_v),
}


def checkpoint_folders(work: Path, name: str, n_layers: int | None = None) -> dict[str, Path]:
    """Return {option of `convert`: folder} of a checkpoint in `work`; write it if it is missing.

    `n_layers` is the language model's number of layers, by default all of the published model.
    """
    size = SIZES[name]
    n_layers = n_layers or size.lm_layers
    checkpoint = work / f"checkpoint-{name}-{n_layers}"
    if not checkpoint.exists():
        unfinished = work / f"{checkpoint.name}.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        size.write(unfinished, n_layers)
        unfinished.rename(checkpoint)
    return {folder: checkpoint / folder for folder in size.folders}
