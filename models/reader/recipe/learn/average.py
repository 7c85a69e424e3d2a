"""Average two checkpoints of a run: ``python -m …learn.average LATER.pt EARLIER.pt OUT.pt``.

Training on other examples loses a little of what was learnt before. Weights between those of before
and after keep most of both (Wortsman et al., arXiv 2109.01903).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

SHARE = 0.7


def average(later: Path, earlier: Path, out: Path, share: float = SHARE) -> None:
    """Write `later` to `out` with adapter matrices of which `share` is its own.

    The rest is `earlier`'s. The optimizer's state stays that of `later`, so that training can go
    on from `out`. Raises ValueError for adapters of other ranks.
    """
    state = torch.load(later, map_location="cpu", weights_only=True)
    before = torch.load(earlier, map_location="cpu", weights_only=True)
    if state["rank"] != before["rank"]:
        raise ValueError(f"{later}: rank {state['rank']}, but {earlier}: rank {before['rank']}")
    for name, tensor in state["adapter"].items():
        state["adapter"][name] = share * tensor + (1 - share) * before["adapter"][name]
    torch.save(state, out)


def main(arguments: list[str] | None = None) -> int:
    """Average from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("later", type=Path, help="adapter.pt of the training run")
    parser.add_argument("earlier", type=Path, help="a copy of it from before")
    parser.add_argument("out", type=Path, help="checkpoint to write")
    parser.add_argument("--share", type=float, default=SHARE, help="of the later checkpoint")
    options = parser.parse_args(arguments)
    if not 0 <= options.share <= 1:
        parser.error("--share: from 0 to 1")
    try:
        average(options.later, options.earlier, options.out, options.share)
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
