"""Give a bundle another decoder: ``python -m …learn.replace_decoder RUN/caption.pt FRESH BUNDLE``.

After ``train --start BUNDLE --keep-vision``, ``FRESH`` is the bundle converted from the run. Its
tower and projector are those of ``BUNDLE``, but rounded to 8 bits a second time. So ``BUNDLE``
keeps its own vision files, byte for byte, and takes over the language model with its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from edgeprism.models.nano.recipe.learn.export import checkpoint_to_model
from edgeprism.models.nano.recipe.learn.restore import bundle_to_model

_ALIKE = ("family", "image", "lm", "prompts", "notice", "photographs", "license")
_FIGURES = ("tokenizer", "lm ")  # names of the parity figures that the language model decides


def check_vision(checkpoint: Path, bundle: Path) -> None:
    """Exit if the checkpoint's tower or projector differs from the bundle's."""
    trained, kept = checkpoint_to_model(checkpoint), bundle_to_model(bundle)
    for part in ("tower", "projector"):
        other = getattr(kept, part).state_dict()
        for name, tensor in getattr(trained, part).state_dict().items():
            if not torch.equal(tensor, other[name]):
                raise SystemExit(
                    f"{checkpoint}: its {part}.{name} is not that of {bundle}: train with"
                    " --keep-vision, or ship the whole converted bundle"
                )


def merge_manifests(fresh: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """Return the kept manifest with the fresh one's language model: file, source and figures."""
    for section in _ALIKE:
        if fresh[section] != kept[section]:
            raise SystemExit(
                f"manifest.json: the bundles differ in {section!r}; ship the whole one"
            )
    file = fresh["lm"]["file"]
    figures = {
        name: (fresh if name.startswith(_FIGURES) else kept)["parity"]["figures"][name]
        for name in kept["parity"]["figures"]
    }
    sources = [
        next(s for s in (fresh if source["role"] == "llm" else kept)["sources"]
             if s["role"] == source["role"])
        for source in kept["sources"]
    ]  # fmt: skip
    return kept | {
        "sources": sources,
        "files": kept["files"] | {file: fresh["files"][file]},
        "parity": kept["parity"] | {"figures": figures},
    }


def replace_decoder(fresh: Path, bundle: Path) -> None:
    """Replace the language model of ``bundle`` by that of ``fresh``."""
    manifests = [
        json.loads((b / "manifest.json").read_text(encoding="utf-8")) for b in (fresh, bundle)
    ]
    merged = merge_manifests(*manifests)
    file, part = merged["lm"]["file"], bundle / "manifest.json.part"
    part.write_text(json.dumps(merged, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(fresh / file, bundle / f"{file}.part")
    os.replace(bundle / f"{file}.part", bundle / file)
    os.replace(part, bundle / "manifest.json")


def main(arguments: list[str] | None = None) -> int:
    """Replace from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path, help="caption.pt of the training run")
    parser.add_argument("fresh", type=Path, help="bundle converted from the run")
    parser.add_argument("bundle", type=Path, help="bundle from which the run started")
    options = parser.parse_args(arguments)
    check_vision(options.checkpoint, options.bundle)
    replace_decoder(options.fresh, options.bundle)
    return 0


if __name__ == "__main__":
    sys.exit(main())
