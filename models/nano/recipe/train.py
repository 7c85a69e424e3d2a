"""Train nano: ``python -m edgeprism.models.nano.recipe.train ASSETS --out DIR``.

Stage ``tower`` teaches the vision tower the content of each patch, which the renderer knows; stage
``caption`` then trains projector and decoder to write captions. A stopped run continues from its
last checkpoint. More steps than before extend a run; after an extended tower stage, the decoder
continues with the new tower. CPU and CUDA run the same code.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeprism.models.nano.recipe.learn.data import Batch, BatchStream, Teach, heldout_scenes
from edgeprism.models.nano.recipe.learn.model import Nano
from edgeprism.models.nano.recipe.measure.tower import RANK, has, predict_labels, to_items, vote
from edgeprism.models.nano.recipe.world.draw import Assets
from edgeprism.models.nano.recipe.world.labels import PATCH_LABELS
from edgeprism.models.nano.recipe.world.scene import Sampling
from edgeprism.models.nano.recipe.world.things import HELD_OUT_STYLE

WARMUP = 40  # steps
DECAY_SHARE = 0.3  # last share of the steps; the rate is flat before, so that runs can be extended
FINAL_RATE = 0.02  # of the full rate
AVERAGED = 0.99  # share of the weights' running average that a step keeps
CHECK_SEED = 1  # of the held-out scenes scored during training; `measure` uses another
WATCHED = (*(n for n in PATCH_LABELS if n not in ("rank", "char", "cell")), "rank")
TOWER_SCENES = Sampling(crowded=0.6, texts=0.8, prints=6, listed=0.1, tinted=0.3)
CAPTION_SCENES = Sampling(mixed=0.7, plain=0.08, texts=0.75, prints=3)


@dataclass(frozen=True)
class Plan:
    """One stage of a run; every ``check_every`` steps it is saved and scored."""

    stage: str
    steps: int
    batch: int = 48
    rate: float = 1.5e-3
    seed: int = 0
    workers: int = 1
    check_every: int = 100
    check_scenes: int = 64
    how: Sampling = field(default_factory=Sampling)
    stop_at: int | None = None  # stop early at this step, with the whole plan's rates
    keep_vision: bool = False  # stage caption trains the decoder alone, not the projector


def step_to_rate(step: int, plan: Plan) -> float:
    """Return the rate of a step: warm-up, flat, then a linear decay to ``FINAL_RATE``."""
    decay = max(1, int(plan.steps * DECAY_SHARE))
    down = min(1.0, (plan.steps - step) / decay)
    return plan.rate * min(1.0, (step + 1) / WARMUP) * max(FINAL_RATE, down)


def batch_to_tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels, patch labels and scene labels on the device."""
    arrays = (batch.pixels, batch.patch_labels, batch.scene_labels)
    pixels, patches, scene = (torch.from_numpy(a).to(device) for a in arrays)
    return pixels, patches, scene


def tower_loss(model: Nano, batch: Batch, device: torch.device) -> Tensor:
    """Return the tower's loss on the labels."""
    pixels, patches, scene = batch_to_tensors(batch, device)
    return model.heads.loss(model.tower(pixels), patches, scene)


def tower_score(model: Nano, device: torch.device, scenes: int, assets: Assets) -> dict[str, float]:
    """Return the share of held-out items whose patches together vote for the right label."""
    score: dict[str, float] = {}
    for prefix, names, how in (
        ("", WATCHED, Sampling(texts=0.3)),
        ("new style ", ("identity",), Sampling(styles=(HELD_OUT_STYLE,), mixed=1.0)),
    ):
        hits: dict[str, list[bool]] = {name: [] for name in names}
        for labels, log_probabilities in predict_labels(
            model, heldout_scenes(CHECK_SEED, scenes, how), assets, device
        ):
            if "rank" in hits:  # rank is a label of every patch, including the background's
                hits["rank"] += (log_probabilities[RANK].argmax(-1) == labels[:, RANK]).tolist()
            for item in to_items(labels, log_probabilities):
                for name in hits.keys() - {"rank"}:
                    if has(item[0], name):
                        hits[name].append(vote(*item, name))
        score |= {prefix + n: sum(h) / len(h) for n, h in hits.items() if h}
    return score


class Run:
    """A stage in progress: model, average, optimizers and next step, saved in one file."""

    def __init__(self, model: Nano, plan: Plan, folder: Path, device: torch.device) -> None:
        self.model, self.plan, self.device = model, plan, device
        self.path, self.step = folder / f"{plan.stage}.pt", 0
        trained = model.tower.layers if plan.stage == "tower" else model.decoder.layers
        matrices = [p for p in trained.parameters() if p.ndim == 2]
        matrix_ids = {id(p) for p in matrices}
        unused: list[torch.nn.Module] = [model.decoder if plan.stage == "tower" else model.tower]
        if plan.keep_vision:
            unused.append(model.projector)
        frozen = {id(p) for module in unused for p in module.parameters()}
        for p in model.parameters():
            p.requires_grad_(id(p) not in frozen)
        rest = [p for p in model.parameters() if id(p) not in matrix_ids | frozen]
        # Muon for the matrices inside the layers: it needs a third of AdamW's steps.
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=0.0, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=0.0, weight_decay=0.01, betas=(0.9, 0.98)),
        ]
        self.average = {n: t.detach().clone() for n, t in model.state_dict().items()}
        if self.path.exists():
            saved = torch.load(self.path, map_location=device, weights_only=True)
            # stage caption takes these from the tower stage, not from its own file
            fixed = "tower.", "heads."
            tower = {
                name: tensor
                for name, tensor in self.average.items()
                if plan.stage == "caption" and name.startswith(fixed)
            }
            model.load_state_dict(saved["raw"] | tower)
            self.average = saved["model"] | tower
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.step = saved["step"]

    def save(self) -> None:
        """Write a new file, then rename it, so that a crash leaves the last good file."""
        part = self.path.with_suffix(".part")
        state: dict[str, Any] = {
            "model": self.average,
            "raw": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "config": self.model.config.to_json(),
        }
        torch.save(state, part)
        os.replace(part, self.path)

    def learn(self, batch: Batch, loss_of: Loss) -> float:
        """Train one step on one batch; return its loss."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = step_to_rate(self.step, self.plan)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = loss_of(self.model, batch, self.device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(AVERAGED, (1 + self.step) / (10 + self.step))  # forget the first weights fast
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                self.average[name].lerp_(tensor, 1 - keep)
        return float(loss.detach())

    def averaged(self) -> Nano:
        """Return the averaged model, to score or export it."""
        model = Nano(self.model.config).to(self.device)
        model.load_state_dict(self.average)
        return model.eval()


Loss = Callable[[Nano, Batch, torch.device], Tensor]
Score = Callable[[Nano, torch.device, int, Assets], dict[str, float]]


def stage_to_functions(stage: str) -> tuple[Loss, Score, Teach | None]:
    """Return a stage's loss, its score, and its teacher of lessons, if any."""
    if stage == "tower":
        return tower_loss, tower_score, None
    from edgeprism.models.nano.recipe.learn.caption import caption_loss, caption_score, teach

    return caption_loss, caption_score, teach


def train_stage(
    model: Nano, plan: Plan, assets: Path, folder: Path, device: torch.device, deadline: float
) -> bool:
    """Run one stage from its last checkpoint (``{stage}.pt`` in ``folder``), or from the start.

    Stops early at ``deadline`` (time.time()). Returns True if the stage is complete; the model then
    holds the averaged weights.
    """
    run = Run(model, plan, folder, device)
    loss_of, score_of, teach = stage_to_functions(plan.stage)
    if run.step < plan.steps:
        stream = BatchStream(assets, plan.seed, run.step, plan.batch, plan.how, plan.workers, teach)
        began, losses = time.monotonic(), []
        try:
            for batch in stream:
                losses.append(run.learn(batch, loss_of))
                if run.step % 25 == 0:
                    pace = len(losses) * plan.batch / (time.monotonic() - began)
                    shown = f"loss {sum(losses) / len(losses):.4f} {pace:.0f} images/s"
                    print(
                        f"{time.strftime('%H:%M')} {plan.stage} step {run.step} {shown}", flush=True
                    )
                    began, losses = time.monotonic(), []
                end = run.step >= (plan.stop_at or plan.steps) or time.time() >= deadline
                due = end or run.step % plan.check_every == 0
                if due:
                    run.save()
                if due and plan.check_scenes:
                    score = score_of(run.averaged(), device, plan.check_scenes, Assets(assets))
                    shown = ", ".join(f"{name} {value:.3f}" for name, value in score.items())
                    print(f"{plan.stage} step {run.step} held out: {shown}", flush=True)
                if end:
                    break
        finally:
            stream.close()
    model.load_state_dict(run.average)
    return run.step >= plan.steps


def main(arguments: list[str] | None = None) -> int:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("assets", type=Path, help="folder that the assets command has filled")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, help="stop after so many minutes; run again to continue"
    )
    parser.add_argument("--tower-steps", type=int, default=6000)
    parser.add_argument("--caption-steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=Plan.rate, help="learning rate")
    parser.add_argument("--workers", type=int, default=1, help="rendering processes")
    parser.add_argument(
        "--compile", action="store_true",
        help="compile the layers when training begins: a third faster; needs a C++ compiler",
    )  # fmt: skip
    parser.add_argument("--start", type=Path, help="bundle whose weights start a new run")
    parser.add_argument(
        "--keep-vision", action="store_true",
        help="leave tower and projector unchanged, so that the bundle's vision files stay valid",
    )  # fmt: skip
    parser.add_argument("--check-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--check-scenes", type=int, default=64, help="scenes to score; 0: none")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    if options.start:
        from edgeprism.models.nano.recipe.learn.restore import (
            bundle_to_model,  # imported here, so that rendering processes need not import it
        )

        model = bundle_to_model(options.start)
    else:
        model = Nano()
    model.to(device)
    if options.compile:
        # Layer by layer: all layers of a kind share one compiled form, which takes half a minute.
        for layer in (*model.tower.layers, *model.decoder.layers):
            layer.compile(dynamic=True)
    end = float("inf") if options.minutes is None else time.time() + 60 * options.minutes
    stages = (
        ("tower", options.tower_steps, TOWER_SCENES),
        ("caption", options.caption_steps, CAPTION_SCENES),
    )
    for stage, steps, how in stages:
        plan = Plan(
            stage, steps, options.batch, options.rate, options.seed, options.workers, how=how,
            check_every=options.check_every, check_scenes=options.check_scenes,
            keep_vision=options.keep_vision,
        )  # fmt: skip
        if not train_stage(model, plan, options.assets, options.out, device, end):
            print("stopped early; the same command continues from here", file=sys.stderr)
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
