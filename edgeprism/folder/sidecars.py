"""The sidecars of a run: which pictures need none, and what is written for the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.errors import OutputError
from edgeprism.folder.events import Outcome
from edgeprism.output.sidecar import OwnTextError, Sidecar, TxtSidecar, XmpSidecar
from edgeprism.picture.find import PictureFile
from edgeprism.store.caption_store import CaptionStore

if TYPE_CHECKING:
    from edgeprism.folder.run import FolderOptions


class RunSidecars:
    """Writes the sidecars of a run. Use it in one thread, which is also the store's."""

    def __init__(
        self,
        sidecars: Sequence[Sidecar],
        says_nothing: Callable[[str], bool],
    ) -> None:
        """`says_nothing` tells whether a caption says that nothing was recognised."""
        self._sidecars, self._says_nothing = sidecars, says_nothing
        self.twins: list[tuple[Path, Path]] = []  # (the sidecar in use, another of that picture)

    def settled(self, picture: PictureFile) -> Outcome | None:
        """Return the outcome of a picture whose caption nobody would get; None for any other.

        Either each of its sidecars holds somebody's own text, or none of them can be written.
        """
        failure: OutputError | None = None
        for sidecar in self._sidecars:
            try:
                sidecar.check(picture)
                return None
            except OwnTextError:
                continue
            except OutputError as error:
                failure = error
        return Outcome(picture, error=failure, left_alone=failure is None)

    def write(self, outcome: Outcome) -> Outcome:
        """Write an outcome's sidecars; return it with what became of them."""
        if outcome.record is None or not self._sidecars:
            return outcome
        if self._says_nothing(str(outcome.record["caption"])):
            return replace(outcome, unrecognized=True)
        for sidecar in self._sidecars:
            try:
                self._write_one(sidecar, outcome)
            except OwnTextError:
                outcome = replace(outcome, left_alone=True)
            except OutputError as error:
                return replace(outcome, error=error)
        return outcome

    def _write_one(self, sidecar: Sidecar, outcome: Outcome) -> None:
        written = sidecar.write(outcome.record or {}, outcome.picture)
        twin = sidecar.twin(outcome.picture)
        if twin is not None:
            self.twins.append((written.path, twin))


def open_sidecars(
    options: FolderOptions, store: CaptionStore | None, says_nothing: Callable[[str], bool]
) -> RunSidecars:
    """Return the sidecars that a run writes; see `RunSidecars`."""
    common: dict[str, Any] = {
        "out_dir": options.out_dir,
        "overwrite": options.overwrite,
        "append": options.append,
        "name_form": options.sidecar_name,
        "reserved": options.reserved,
    }
    sidecars: list[Sidecar] = []
    if "txt" in options.sidecars:
        sidecars.append(TxtSidecar(**common, outputs=None if store is None else store.outputs))
    if "xmp" in options.sidecars:
        sidecars.append(XmpSidecar(**common))
    return RunSidecars(sidecars, says_nothing)
