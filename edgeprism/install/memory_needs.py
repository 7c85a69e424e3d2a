"""How much memory a model needs to run: counted from its files, or estimated from their size."""

from __future__ import annotations

from pathlib import Path

from edgeprism.bundle.open import find_model
from edgeprism.memory.parts import CPU, ModelParts
from edgeprism.memory.plan import MachineMemory, Plan


def counted_memory(model: Path | str) -> int:
    """Count the memory that a model of this machine needs on the CPU, in bytes.

    It is the count of `doctor --plan`: for one picture, or one answer, and the process itself.

    Parameters:
        model: a bundle's folder, a reasoner's GGUF file, or an installed model's name, by which
            a reasoner comes with the adapter that ships for it.

    Raises EdgePrismError if a header cannot be read, or if llama.cpp cannot be loaded.
    """
    if find_model(model).is_dir():
        from edgeprism.perceive.captioner import Captioner

        with Captioner.load(model, device="cpu") as captioner:
            return _peak(captioner.engines.memory_parts())
    from edgeprism.reason.local import Reasoner

    return _peak(Reasoner.load(model, device="cpu").memory_parts())


def counted_pair_memory(lm: Path, mmproj: Path) -> int:
    """Count the memory that a captioner of two GGUF files needs, which nobody has run here.

    Errors as for `counted_memory`.
    """
    from edgeprism.perceive.footprint import pair_parts

    return _peak(pair_parts(lm.stem, lm, mmproj))


def estimated_memory(size: int) -> int:
    """Estimate the memory that a model needs of which only the size of its files is known.

    A rule of thumb, not a measurement: a quarter of the weights' size more for a cache of a short
    context and for buffers, and 250 MB for the engines. A long context or a batch needs more.
    """
    return int(1.25 * size) + 250_000_000


def _peak(parts: ModelParts) -> int:
    return Plan((parts,), None, MachineMemory(None, None)).peak(CPU, apart=True)
