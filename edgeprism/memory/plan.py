"""What goes where in memory, what would not fit, and whether models take turns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgeprism.choices import STAGES
from edgeprism.errors import UsageError
from edgeprism.language.gpu import Gpu
from edgeprism.machine.available_memory import available_memory
from edgeprism.machine.facts import memory_limit
from edgeprism.memory.parts import CPU, GPU, ModelParts, Part

PLAN_SCHEMA = 1
# of what is free: the rest is for other programs that grow, and for what a plan counts too low
_USABLE = 0.9
_PLACES = {CPU: "memory", GPU: "the GPU's memory"}
# Python with numpy, Pillow and both engines, without a model: resident bytes measured with
# CPython 3.11, onnxruntime 1.31 and llama-cpp-python 0.3.36 on Linux, x86-64
PROCESS_BYTES = 65_000_000


@dataclass(frozen=True)
class MachineMemory:
    """The memory that a process may use, in bytes; None where the system does not say."""

    size: int | None
    free: int | None
    source: str = ""  # what sets the limit
    gpu: Gpu | None = None

    @property
    def room(self) -> int | None:
        """What is free for this process of the memory that it may use."""
        return min((room for room in (self.size, self.free) if room is not None), default=None)

    def lacks(self, needed: int) -> str:
        """Return why `needed` bytes do not fit, in words; "" if they do, or nothing is known."""
        return _shortage(CPU, needed, self.room)


def machine_memory(gpu: Gpu | None, *, size: int | None = None) -> MachineMemory:
    """Return this machine's memory, or that of a like machine with `size` bytes, all of it free."""
    if size is not None:
        return MachineMemory(size, size, "as asked", gpu)
    limit = memory_limit()
    return MachineMemory(
        limit.size if limit else None, available_memory(), limit.source if limit else "", gpu
    )


@dataclass(frozen=True)
class Plan:
    """The parts of all models, and the memory that they have to fit into."""

    captioners: tuple[ModelParts, ...]
    reasoner: ModelParts | None
    machine: MachineMemory

    @property
    def process(self) -> ModelParts:
        """What the process takes without a model."""
        part = Part("Python and libraries", PROCESS_BYTES, "both engines, without a model")
        return ModelParts("process", "process", (part,))

    @property
    def models(self) -> tuple[ModelParts, ...]:
        """Captioners and reasoner."""
        return (*self.captioners, *([self.reasoner] if self.reasoner else []))

    def peak(self, place: str, *, apart: bool, loading: bool = False) -> int:
        """Return the most bytes that stand at a place at once.

        Parameters:
            apart: whether one model at a time is in memory.
            loading: whether pages count that are dropped when a model is loaded.
        """
        sizes = [model.size(place) for model in self.models]
        whole = [model.size(place, loading=loading) for model in self.models]
        dropped = [most - size for most, size in zip(whole, sizes, strict=True)]
        models = max([*whole, 0]) if apart else sum(sizes) + max([*dropped, 0])
        return self.process.size(place) + models

    def shortages(self, *, apart: bool) -> tuple[str, ...]:
        """Return what does not fit, in words; empty if all fits or the system says nothing."""
        return tuple(filter(None, (_shortage(*row) for row in self._against_room(apart))))

    def _against_room(self, apart: bool) -> list[tuple[str, int, int | None]]:
        """Return (place, bytes needed, bytes free) of each kind of memory."""
        cpu, gpu = (self.peak(place, apart=apart) for place in (CPU, GPU))
        device, room = self.machine.gpu, self.machine.room
        if device is None or device.shared:
            return [(CPU, cpu + gpu, room)]
        return [(CPU, cpu, room), (GPU, gpu, device.free)]

    def stages(self, requested: str = "auto") -> tuple[str, str]:
        """Return "together" or "apart", and why; `requested` is one of `choices.STAGES`."""
        if requested not in STAGES:
            raise UsageError(f"Stages {requested!r} are not known.", f"Known: {', '.join(STAGES)}.")
        if requested != "auto":
            return requested, "as requested"
        if len(self.models) < 2:
            return "together", "there is one model"
        together = self.shortages(apart=False)
        if together:
            return "apart", f"together, {'; '.join(together)}"
        return "together", "both models fit"

    def fits(self) -> bool:
        """Return whether the models fit, at least one at a time."""
        return not self.shortages(apart=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as `doctor --plan --json` prints it."""
        stages, why = self.stages()
        return {
            "schema": PLAN_SCHEMA,
            "machine": asdict(self.machine),
            "models": [asdict(model) for model in (self.process, *self.models)],
            **{
                name: {
                    "memory_bytes": self.peak(CPU, apart=apart),
                    "gpu_bytes": self.peak(GPU, apart=apart),
                    "resident_bytes": self.peak(CPU, apart=apart, loading=True),
                    "shortages": list(self.shortages(apart=apart)),
                }
                for name, apart in (("together", False), ("apart", True))
            },
            "stages": stages,
            "stages_reason": why,
            "fits": self.fits(),
        }


def _shortage(place: str, needed: int, room: int | None) -> str:
    """Return in words what is missing at a place; "" if nothing is, or the room is not known."""
    if room is None or needed <= room * _USABLE:
        return ""
    return f"{_size_text(needed)} of {_PLACES[place]} are needed, {_size_text(room)} are free"


def _size_text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
