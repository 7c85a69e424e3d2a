"""Files of torch's own format under names of their publishers' choice (.pth)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.errors import CheckpointError


def pth_checkpoint(folder: Path, role: str, probes: Sequence[str]) -> Checkpoint:
    """Return the checkpoint of the .pth file in `folder` that holds all tensors of `probes`.

    Several such files may lie in one folder: the tensors tell them apart, not their names. Raises
    CheckpointError if none or more than one fits.

    Args:
        folder: Where to look.
        role: What the checkpoint is, for error messages.
        probes: Names of tensors that it must hold.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} ({role}) is not a folder.", "Pass the folder of the file.")
    files = sorted(path for path in folder.glob("*.pth") if path.is_file())
    opened = [Checkpoint(folder, role, files=[path]) for path in files]
    fitting = [checkpoint for checkpoint in opened if checkpoint.names.issuperset(probes)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(path.name for checkpoint in fitting for path in checkpoint.files)
        raise CheckpointError(
            f"{folder} ({role}) holds more than one file with {', '.join(probes)}: {names}.",
            "Leave the file that you want in the folder, and move the others.",
        )
    found = ", ".join(path.name for path in files) or "none"
    raise CheckpointError(
        f"{folder} ({role}) holds no .pth file with {', '.join(probes)} (.pth files there: "
        f"{found}).",
        "Pass the folder of the file as it was published.",
    )
