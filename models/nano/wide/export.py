"""Write a trained wide model as published PrismCaptioner checkpoints look, ready for ``convert``.

    python -m edgeprism.models.nano.wide.export RUN/caption.pt OUT

makes OUT/captioner, OUT/llm and OUT/vision; see ``..export`` for what each holds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import export as first
from ..model import NanoConfig
from .data import heldout_scenes
from .grammar import scene_to_long
from .model import Wide
from .scene import Sampling
from .tokenizer import BOS, DEFAULT_INSTRUCTION, EOS, FOCUS, SPECIALS, UNK, VOCAB, tokenizer

MAX_TOKENS = 96
NOTICE = (
    "nano knows drawn pictures (icons, emoji, plain shapes, short printed words, simple charts), "
    "not photographs: pull a larger captioner for those."
)


def checkpoint_to_model(path: Path) -> Wide:
    """The averaged model of a training checkpoint, on the CPU, ready to read from."""
    kept = torch.load(path, map_location="cpu", weights_only=True)
    model = Wide(NanoConfig(**kept["config"]))
    model.load_state_dict(kept["model"])
    return model.eval()


def tokenizer_config() -> dict[str, Any]:
    """Names of the special ids, as InternLM2's own file gives them."""
    names = {UNK: "<unk>", BOS: "<s>", EOS: "</s>"}
    names |= {VOCAB - len(SPECIALS) + i: name for i, name in enumerate(SPECIALS)}
    config = first.tokenizer_config()
    sample = next(iter(config["added_tokens_decoder"].values()))
    config["added_tokens_decoder"] = {
        str(number): sample | {"content": name} for number, name in names.items()
    }
    return config


def card() -> dict[str, Any]:
    """What the converter puts into the manifest in place of the family's own texts."""
    return {
        "name": "nano",
        "license": "Apache-2.0",
        "notice": NOTICE,
        "default_instruction": DEFAULT_INSTRUCTION,
        "focus_instruction": FOCUS + "{focus}",
        "max_tokens": MAX_TOKENS,
        "parity_texts": [scene_to_long(s) for s in heldout_scenes(2, 8, Sampling(unseen=True))],
    }


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    plain = {name: t.detach().float().clone().contiguous() for name, t in tensors.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(model: Wide, folder: Path) -> None:
    """Write the three folders; an earlier export at this place is replaced."""
    if folder.exists():
        shutil.rmtree(folder)
    _write(folder / "captioner" / "projector", *first.model_to_projector(model))
    _write(folder / "llm", *first.model_to_llm(model))
    (folder / "llm" / "tokenizer.model").write_bytes(tokenizer().serialized_model_proto())
    write_json(folder / "llm" / "tokenizer_config.json", tokenizer_config())
    _write(folder / "vision", *first.model_to_vision(model))
    side = model.config.image_size
    preprocessor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    write_json(folder / "vision" / "preprocessor_config.json", preprocessor)
    write_json(folder / "captioner" / "edgeprism.json", card())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path, help="caption.pt of a training run")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args(arguments)
    export(checkpoint_to_model(options.checkpoint), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
