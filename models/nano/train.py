"""Train nano from nothing: ``python -m edgeprism.models.nano.train --out DIR``.

Stage ``tower`` teaches the vision tower what lies under each patch (the renderer knows); stage
``caption`` then trains projector and decoder to write captions. A run stopped anywhere goes on
from its last checkpoint and ends at the same weights an uninterrupted one gives on the same
machine. CPU and CUDA run the same code.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .caption import caption_loss, caption_score
from .data import Batch, BatchStream, heldout_scenes, scenes_to_batch
from .model import Nano, NanoConfig

WARMUP = 100  # steps
DECAY_SHARE = 0.25  # of the steps, at the end; before it the rate is flat, so runs can be extended
FINAL_RATE = 0.02  # of the full rate
CHECK_SEED = 1  # of the held-out scenes watched during training; evaluate.py uses another


@dataclass(frozen=True)
class Plan:
    """One stage of a run. ``check_every`` steps it is saved and scored on ``check_scenes``."""

    stage: str
    steps: int
    batch: int = 64
    rate: float = 1.5e-3
    seed: int = 0
    workers: int = 1
    check_every: int = 250
    check_scenes: int = 128


def step_to_rate(step: int, plan: Plan) -> float:
    """Warm-up, flat, straight down to ``FINAL_RATE`` of the rate."""
    decay = max(1, int(plan.steps * DECAY_SHARE))
    down = min(1.0, (plan.steps - step) / decay)
    return plan.rate * min(1.0, (step + 1) / WARMUP) * max(FINAL_RATE, down)


def tower_loss(model: Nano, batch: Batch, seed: int, step: int, device: torch.device) -> Tensor:
    """Patch loss of the tower alone; ``seed`` and ``step`` are for losses that draw numbers."""
    pixels, patches, scene = batch_to_tensors(batch, device)
    return model.heads.loss(model.tower(pixels), patches, scene)


def batch_to_tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, patch labels, scene labels on the device."""
    arrays = (batch.pixels, batch.patch_labels, batch.scene_labels)
    pixels, patches, scene = (torch.from_numpy(a).to(device) for a in arrays)
    return pixels, patches, scene


@torch.no_grad()
def tower_score(model: Nano, device: torch.device, scenes: int) -> dict[str, float]:
    """Share of held-out objects whose patches, voting together, give the right label."""
    batch = scenes_to_batch(heldout_scenes(CHECK_SEED, scenes))
    pixels, patches, scene = batch_to_tensors(batch, device)
    logits = model.heads(model.tower(pixels))
    names = ("shape", "colour", "size", "cell")
    hits: dict[str, list[bool]] = {name: [] for name in (*names, "shape and colour")}
    for b, drawn in enumerate(batch.scenes):
        for rank in range(len(drawn.things)):
            mine = patches[b, :, 4] == rank  # the patches of one object
            for i, name in enumerate(names):
                vote = logits[i][b, mine].log_softmax(-1).sum(0).argmax()
                hits[name].append(bool(vote == patches[b, mine][0, i]))
            hits["shape and colour"].append(hits["shape"][-1] and hits["colour"][-1])
    score = {name: sum(h) / len(h) for name, h in hits.items()}
    score["rank"] = float((logits[4].argmax(-1) == patches[..., 4] + 1).float().mean())
    score["count"] = float((logits[6].mean(1).argmax(-1) == scene[:, 1]).float().mean())
    return score


Loss = Callable[[Nano, Batch, int, int, torch.device], Tensor]
Score = Callable[[Nano, torch.device, int], dict[str, float]]
STAGES: dict[str, tuple[Loss, Score]] = {
    "tower": (tower_loss, tower_score),
    "caption": (caption_loss, caption_score),
}


class Run:
    """A stage in progress: model, optimizers, next step; saved to and loaded from one file."""

    def __init__(self, model: Nano, plan: Plan, folder: Path, device: torch.device) -> None:
        self.model, self.plan, self.device = model, plan, device
        self.path, self.step = folder / f"{plan.stage}.pt", 0
        self.loss_of, self.score_of = STAGES[plan.stage]
        matrices: list[Tensor] = []
        rest: list[Tensor] = []
        for name, p in model.named_parameters():
            (matrices if p.ndim == 2 and ".layers." in name else rest).append(p)
        # Muon suits matrices between layers; what reads or writes classes stays with AdamW.
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=0.0, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=0.0, weight_decay=0.01, betas=(0.9, 0.98)),
        ]
        if self.path.exists():
            kept = torch.load(self.path, map_location=device, weights_only=True)
            model.load_state_dict(kept["model"])
            for optimizer, state in zip(self.optimizers, kept["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.step = kept["step"]

    def save(self) -> None:
        """Write beside, then rename: a run that dies here leaves the last good file."""
        part = self.path.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "config": self.model.config.to_json(),
        }
        torch.save(state, part)
        os.replace(part, self.path)

    def learn(self, batch: Batch) -> float:
        """One step on one batch; its loss."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = step_to_rate(self.step, self.plan)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.loss_of(self.model, batch, self.plan.seed, self.step, self.device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def report(self) -> None:
        score = self.score_of(self.model, self.device, self.plan.check_scenes)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in score.items())
        print(f"{self.plan.stage} step {self.step} held out: {shown}", flush=True)


def train_stage(
    model: Nano,
    plan: Plan,
    folder: Path,
    device: torch.device,
    deadline: float = float("inf"),
    stop_at: int | None = None,
) -> bool:
    """Run one stage from its last checkpoint (``{stage}.pt`` in ``folder``), or from the start.

    Stops early at ``deadline`` (time.time()) or step ``stop_at``; True when the stage is complete.
    """
    run = Run(model, plan, folder, device)
    if run.step >= plan.steps:
        return True
    last = plan.steps if stop_at is None else min(stop_at, plan.steps)
    stream = BatchStream(plan.seed, run.step, plan.batch, plan.workers)
    began, losses = time.monotonic(), []
    try:
        for batch in stream:
            losses.append(run.learn(batch))
            if run.step % 50 == 0:
                pace = len(losses) * plan.batch / (time.monotonic() - began)
                shown = f"loss {sum(losses) / len(losses):.4f} {pace:.0f} images/s"
                print(f"{plan.stage} step {run.step} {shown}", flush=True)
                began, losses = time.monotonic(), []
            end = run.step >= last or time.time() >= deadline
            if end or run.step % plan.check_every == 0:
                run.save()
                run.report()
            if end:
                break
    finally:
        stream.close()
    return run.step >= plan.steps


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop after this long; run again to go on")
    parser.add_argument("--tower-steps", type=int, default=1400)
    parser.add_argument("--caption-steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1, help="rendering processes")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    model = Nano(NanoConfig()).to(device)
    end = float("inf") if options.minutes is None else time.time() + 60 * options.minutes
    for stage, steps in (("tower", options.tower_steps), ("caption", options.caption_steps)):
        plan = Plan(stage, steps, options.batch, seed=options.seed, workers=options.workers)
        if not train_stage(model, plan, options.out, device, end):
            print("stopped early; the same command goes on from here", file=sys.stderr)
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
