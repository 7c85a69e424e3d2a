"""Average a run's decoder with a bundle's: ``python -m …learn.average CAPTION.pt BUNDLE OUT.pt``.

Training for something new loses a little of what was learnt before. Weights between those of before
and after keep most of both (Wortsman et al., arXiv 2109.01903).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from edgeprism.models.nano.recipe.learn.restore import bundle_to_model

SHARE = 0.9


def average(checkpoint: Path, bundle: Path, out: Path, share: float = SHARE) -> None:
    """Write ``checkpoint`` to ``out`` with a decoder of which ``share`` is its own.

    The rest is the bundle's; tower and projector stay the checkpoint's.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    before = bundle_to_model(bundle).state_dict()
    for name, tensor in state["model"].items():
        if name.startswith("decoder."):
            state["model"][name] = share * tensor + (1 - share) * before[name]
    torch.save(state, out)


def main(arguments: list[str] | None = None) -> int:
    """Average from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path, help="caption.pt of the training run")
    parser.add_argument("bundle", type=Path, help="bundle whose decoder was trained further")
    parser.add_argument("out", type=Path, help="checkpoint to write")
    parser.add_argument("--share", type=float, default=SHARE, help="of the run's decoder")
    options = parser.parse_args(arguments)
    if not 0 <= options.share <= 1:
        parser.error("--share: from 0 to 1")
    average(options.checkpoint, options.bundle, options.out, options.share)
    return 0


if __name__ == "__main__":
    sys.exit(main())
