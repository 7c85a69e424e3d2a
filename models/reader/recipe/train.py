"""Train the adapter: ``python -m edgeprism.models.reader.recipe.train BASE.gguf --out DIR``.

A stopped run continues from its last checkpoint; more steps than before extend a run. CPU and CUDA
run the same code. On a CPU that other work shares, one thread (`OMP_NUM_THREADS=1`) is fastest.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from edgeprism.models.reader.recipe.learn.model import AdapterConfig, Reader, read_base
from edgeprism.models.reader.recipe.learn.tokens import (
    POOL,
    Group,
    Tokens,
    groups_to_batch,
    pool_to_batches,
)
from edgeprism.models.reader.recipe.world.corpora import read_corpora

WARMUP = 20  # steps
DECAY_SHARE = 0.35  # last share of the steps; the rate is flat before, so that runs can be extended
FINAL_RATE = 0.02  # of the full rate
CHECK_SEED = 1_000_001  # of the held-out groups checked during training; `measure` uses another


@dataclass(frozen=True)
class Plan:
    """A run: steps, groups of examples per step, rate, seed; steps between saves and checks."""

    steps: int
    batch: int = 5
    rate: float = 1.5e-3
    seed: int = 0
    save_every: int = 20
    check_every: int = 100
    check_groups: int = 25


def step_to_rate(step: int, plan: Plan) -> float:
    """Return the rate of a step: warm-up, flat, then a linear decay to ``FINAL_RATE``."""
    down = min(1.0, (plan.steps - step) / max(1, int(plan.steps * DECAY_SHARE)))
    return plan.rate * min(1.0, (step + 1) / WARMUP) * max(FINAL_RATE, down)


class Run:
    """A run in progress: model, optimizer and next step; the adapter alone is saved."""

    def __init__(self, model: Reader, plan: Plan, folder: Path, device: torch.device) -> None:
        self.model, self.plan, self.device = model, plan, device
        self.path, self.step = folder / "adapter.pt", 0
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.0
        )
        if self.path.exists():
            saved = torch.load(self.path, map_location=device, weights_only=True)
            model.load_state_dict(saved["adapter"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step = saved["step"]

    def save(self) -> None:
        """Write a new file, then rename it, so that a crash leaves the last good file."""
        part = self.path.with_suffix(".part")
        state = {
            "adapter": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "rank": self.model.adapter.rank,
            "alpha": self.model.adapter.alpha,
        }
        torch.save(state, part)
        os.replace(part, self.path)

    def learn(self, groups: list[Group]) -> float:
        """Train one step on one batch; return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = step_to_rate(self.step, self.plan)
        loss = self.model.loss(groups_to_batch(groups, self.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())


def check(model: Reader, batches: list[list[Group]], device: torch.device) -> float:
    """Return the share of held-out replies of which each token is the likeliest."""
    right, replies = 0, 0
    for groups in batches:
        batch = groups_to_batch(groups, device)
        with torch.no_grad():
            wanted = batch.targets != -100
            found = model.logits(model.states(batch.ids, batch.positions, batch.branches)[wanted])
        wrong = found.argmax(-1) != batch.targets[wanted]
        rows = wanted.nonzero()[:, 0] * batch.ids.shape[1] + batch.branches[wanted]
        replies += len(rows.unique())
        right += len(rows.unique()) - len(rows[wrong].unique())
    return right / replies


def train(run: Run, tokens: Tokens, deadline: float) -> bool:
    """Train until the plan's last step, or until `deadline` (time.time()).

    Returns whether the plan is complete.
    """
    plan, losses, began = run.plan, list[float](), time.monotonic()
    pool = -1
    batches: list[list[Group]] = []
    while run.step < plan.steps and time.time() < deadline:
        if run.step // POOL != pool:
            pool = run.step // POOL
            batches = pool_to_batches(tokens, plan.seed, pool, plan.batch)
        losses.append(run.learn(batches[run.step % POOL]))
        if run.step % 10 == 0:
            pace = (time.monotonic() - began) / len(losses)
            shown = f"loss {sum(losses) / len(losses):.4f}, {pace:.1f} s a step"
            print(f"{time.strftime('%H:%M:%S')} step {run.step}: {shown}", flush=True)
            losses, began = [], time.monotonic()
        if run.step % plan.save_every == 0:
            run.save()
        if plan.check_groups and run.step % plan.check_every == 0:
            held_out = pool_to_batches(tokens, CHECK_SEED, 0, max(1, plan.check_groups // POOL))
            share = check(run.model, held_out, run.device)
            print(f"step {run.step} held out: {share:.1%} of replies right", flush=True)
    run.save()
    return run.step >= plan.steps


def main(arguments: list[str] | None = None) -> int:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("base", type=Path, help="GGUF file of the reasoner")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=5, help="groups of examples per step")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    parser.add_argument(
        "--corpora", type=Path, help="folder of the collections' clones (see `world/corpora.py`)"
    )
    parser.add_argument("--minutes", type=float, help="stop early; the same command continues")
    parser.add_argument(
        "--compile", action="store_true",
        help="compile the layers when training begins; needs a C++ compiler",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        corpora = None if options.corpora is None else read_corpora(options.corpora)
    except FileNotFoundError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    config, weights = read_base(options.base)
    device = torch.device(options.device)
    model = Reader(config, weights, AdapterConfig(options.rank, 2.0 * options.rank)).to(device)
    if options.compile:
        for layer in model.layers:  # all share one compiled form
            layer.compile(dynamic=True)
    plan = Plan(options.steps, options.batch, options.rate, options.seed)
    end = float("inf") if options.minutes is None else time.time() + 60 * options.minutes
    if not train(Run(model, plan, options.out, device), Tokens(options.base, corpora), end):
        print("stopped early; the same command continues from here", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
