"""EdgePrism: understand pictures on your own machine.

    from edgeprism import Captioner, Prism, Reasoner

    captioner = Captioner.load("nano")
    print(captioner.caption("photo.jpg").text)

Each name is imported when it is first used, so importing the package costs almost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgeprism.version import __version__

_NAMES_BY_MODULE = {
    "edgeprism.folder.run": ("caption_folder",),
    "edgeprism.perceive.captioner": ("Captioner",),
    "edgeprism.reason.local": ("Reasoner",),
    "edgeprism.reason.remote": ("RemoteReasoner",),
    "edgeprism.prism": ("Prism",),
    "edgeprism.store.database": ("StoreError",),
    "edgeprism.records": (
        "Answer", "Caption", "EncodedImage", "ModelInfo", "Timings", "TokenCounts",
    ),
    "edgeprism.errors": (
        "CheckpointError", "DataFolderError", "DeviceError", "EdgePrismError",
        "HubUnreachableError", "ImageError", "Interrupted", "ManifestError", "ModelError",
        "NoAnswerError", "NoGraphError",
        "OutputError", "ParityError", "PromptTooLongError", "PullError", "RepetitionError",
        "ReplyError", "ServerError", "TemplateError", "UsageError",
    ),
}  # fmt: skip
__all__ = [
    "Answer",
    "Caption",
    "Captioner",
    "CheckpointError",
    "DataFolderError",
    "DeviceError",
    "EdgePrismError",
    "EncodedImage",
    "HubUnreachableError",
    "ImageError",
    "Interrupted",
    "ManifestError",
    "ModelError",
    "ModelInfo",
    "NoAnswerError",
    "NoGraphError",
    "OutputError",
    "ParityError",
    "Prism",
    "PromptTooLongError",
    "PullError",
    "Reasoner",
    "RemoteReasoner",
    "RepetitionError",
    "ReplyError",
    "ServerError",
    "StoreError",
    "TemplateError",
    "Timings",
    "TokenCounts",
    "UsageError",
    "__version__",
    "caption_folder",
]

if TYPE_CHECKING:
    from edgeprism.errors import (
        CheckpointError,
        DataFolderError,
        DeviceError,
        EdgePrismError,
        HubUnreachableError,
        ImageError,
        Interrupted,
        ManifestError,
        ModelError,
        NoAnswerError,
        NoGraphError,
        OutputError,
        ParityError,
        PromptTooLongError,
        PullError,
        RepetitionError,
        ReplyError,
        ServerError,
        TemplateError,
        UsageError,
    )
    from edgeprism.folder.run import caption_folder
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.prism import Prism
    from edgeprism.reason.local import Reasoner
    from edgeprism.reason.remote import RemoteReasoner
    from edgeprism.records import Answer, Caption, EncodedImage, ModelInfo, Timings, TokenCounts
    from edgeprism.store.database import StoreError


def __getattr__(name: str) -> Any:
    for module, names in _NAMES_BY_MODULE.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'edgeprism' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
