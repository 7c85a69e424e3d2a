"""How many layers of a language model go to the GPU where the caller leaves it open."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edgeprism.bundle.gguf import GgufHeader
from edgeprism.language.gpu import Gpu
from edgeprism.machine.device import ALL_LAYERS
from edgeprism.memory.language import LanguageUse, layer_count, layers_that_fit
from edgeprism.memory.parts import Part

# of the memory that is free: drivers and libraries take theirs when the first product runs
_USABLE = 0.9
_LIBRARIES = 256 << 20


def choose_layers(
    header: GgufHeader,
    file_bytes: int,
    use: LanguageUse,
    gpu: Gpu | None,
    taken: int = 0,
    beside: Callable[[LanguageUse], Iterable[Part]] = lambda _: (),
) -> int:
    """Return the layers that fit into what is free of the GPU's memory; `ALL_LAYERS` for all.

    All go to a GPU that shares the machine's memory, where a layer takes as much on either side,
    and to one that does not say how much it has.

    Parameters:
        taken: bytes of the GPU's memory that the vision encoder will take.
        beside: returns what else is taken where the language model is used so.
    """
    if gpu is None or gpu.shared or not gpu.size:
        return ALL_LAYERS
    room = int(gpu.free * _USABLE) - _LIBRARIES - taken
    layers = layers_that_fit(header, file_bytes, use, room, beside)
    return ALL_LAYERS if layers > layer_count(header) else layers
