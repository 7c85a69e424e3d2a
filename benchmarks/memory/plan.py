"""Compare the memory that `edgeprism doctor --plan` counts with what is really taken.

    python -m benchmarks.memory.plan [--model nano] [--reasoner smollm2-135m] [--runs 1] [--json]

Each engine is loaded and used in a process of its own, step by step: the libraries, the vision
encoder, one encoded picture, the language model, a caption; then the reasoner with a question. The
peak of resident memory after each step is compared with the plan's parts up to there, and at the
end the plan for both models together with the peak of one process that captions and answers.
Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edgeprism.machine.peak_memory import peak_bytes
from edgeprism.perceive.footprint import PICTURE

if TYPE_CHECKING:
    from edgeprism.memory.parts import ModelParts

_ROOT = Path(__file__).parents[2]  # of the repository
QUESTION = "How many objects are on the left side?"
_VISION = "vision"  # the parts of an encoder begin with this word
_LOADED = ("language weights", "repacked weights", "file mapped while loading", "vocabulary")


@dataclass(frozen=True)
class Comparison:
    """What was counted and what was taken, in bytes."""

    what: str
    planned: int
    taken: int

    @property
    def error(self) -> float:
        """How far the plan is off, as a share of what was taken."""
        return self.planned / self.taken - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--reasoner", default="smollm2-135m")
    parser.add_argument("--no-reasoner", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--child", metavar="PHOTO", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    reasoner = None if arguments.no_reasoner else arguments.reasoner
    if arguments.child:
        steps = measure_steps(arguments.model, reasoner, Path(arguments.child))
        print(json.dumps([asdict(step) for step in steps]))
        return
    steps = compare(arguments.model, reasoner)
    if arguments.json:
        print(json.dumps([asdict(step) | {"error": round(step.error, 4)} for step in steps]))
        return
    print(f"{'resident MB after':28}{'planned':>10}{'taken':>10}{'error':>9}")
    for step in steps:
        print(f"{step.what:28}{step.planned / 1e6:10.0f}{step.taken / 1e6:10.0f}{step.error:+9.1%}")


def compare(model: str, reasoner: str | None) -> list[Comparison]:
    """Measure in a child process, so that nothing but the models is in its memory."""
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.png")
        shape = (PICTURE[1], PICTURE[0], 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(photo)
        command = [sys.executable, "-m", "benchmarks.memory.plan", "--model", model, "--child",
                   str(photo)]  # fmt: skip
        command += ["--reasoner", reasoner] if reasoner else ["--no-reasoner"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=_ROOT)
    if ended.returncode:
        raise SystemExit(f"the process that measures ended with {ended.returncode}")
    return [Comparison(**step) for step in json.loads(ended.stdout.splitlines()[-1])]


def measure_steps(model: str, reasoner: str | None, photo: Path) -> list[Comparison]:
    """Load and use one engine after another in this process; compare after each."""
    from edgeprism import Captioner, Reasoner
    from edgeprism.language.llama import import_llama
    from edgeprism.machine.onnx_runtime import import_onnxruntime
    from edgeprism.memory.plan import MachineMemory, Plan

    import_onnxruntime()
    import_llama()
    captioner = Captioner.load(model)
    parts = captioner.engines.memory_parts()
    answering = Reasoner.load(reasoner) if reasoner else None
    plan = Plan(
        (parts,), answering.memory_parts() if answering else None, MachineMemory(None, None)
    )
    process = sum(part.size for part in plan.process.parts)
    steps = [Comparison("libraries", process, _peak())]

    def after(what: str, planned: int, act: Callable[[], object]) -> None:
        act()  # a peak may be that of an earlier step
        steps.append(Comparison(what, max(steps[-1].planned, process + planned), _peak()))

    engines = captioner.engines
    engines.vision()
    # libmtmd cannot encode without the language model's weights
    early = _LOADED if captioner.bundle.manifest.vision.mmproj else ()
    after("encoding", _vision(parts) + _loaded(parts, early), lambda: captioner.encode(photo))
    # the first word, if there is one, is enough: the cache has room for all from the start
    most = max(_vision(parts) + _loaded(parts, _LOADED), parts.size("cpu"))
    after("a caption", most, lambda: next(iter(captioner.stream(photo)), None))
    if answering is not None and plan.reasoner is not None:

        def answer() -> None:
            caption = captioner.caption(photo, caption_tokens=64)
            answering.draw_focus(QUESTION)
            answering.answer([caption], QUESTION)

        most = max(_loaded(plan.reasoner, _LOADED), plan.reasoner.size("cpu"))
        after("an answer, both in memory", parts.size("cpu") + most, answer)
    return steps


def _vision(parts: ModelParts) -> int:
    return sum(p.size for p in parts.parts if p.place == "cpu" and p.what.startswith(_VISION))


def _loaded(parts: ModelParts, names: Collection[str]) -> int:
    """Return the bytes of a language model that has just been read, with the pages of its file."""
    return sum(p.size for p in parts.parts if p.place == "cpu" and p.what in names)


def _peak() -> int:
    peak = peak_bytes()
    if peak is None:
        raise SystemExit("This system does not tell the peak of resident memory.")
    return peak


if __name__ == "__main__":
    main()
