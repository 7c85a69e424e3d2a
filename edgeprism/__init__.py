"""EdgePrism: understand pictures on your own machine.

    from edgeprism import Captioner, Prism, Reasoner

    captioner = Captioner.load("nano")
    print(captioner.caption("photo.jpg").text)

Names are loaded when first used: importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Captioner": "edgeprism.captioner",
    "Reasoner": "edgeprism.reasoner",
    "Prism": "edgeprism.prism",
    "EncodedImage": "edgeprism.records",
    "Caption": "edgeprism.records",
    "Answer": "edgeprism.records",
    "Timings": "edgeprism.records",
    "ModelInfo": "edgeprism.records",
    "TokenCounts": "edgeprism.records",
    "EdgePrismError": "edgeprism.errors",
}
__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from edgeprism.captioner import Captioner
    from edgeprism.errors import EdgePrismError
    from edgeprism.prism import Prism
    from edgeprism.reasoner import Reasoner
    from edgeprism.records import Answer, Caption, EncodedImage, ModelInfo, Timings, TokenCounts


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'edgeprism' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
