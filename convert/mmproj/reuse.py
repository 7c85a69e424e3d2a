"""A graph that was made of an mmproj file earlier, for another language model of the same pair.

Building and measuring takes minutes; the graph depends on the mmproj file alone. It is taken over
where this version of EdgePrism made it on this machine's data folder, where its digests are those
that were measured, and where the language model takes the same rows between the same texts.
Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from edgeprism.bundle.manifest import FILE_NAME, Manifest
from edgeprism.bundle.open import check_file
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.bundle.writer import BundleWriter, manifest_digest, require_unchanged
from edgeprism.convert.options import LEAST_GAIN, PairOptions
from edgeprism.errors import EdgePrismError, OutputError
from edgeprism.files.links import link_or_copy
from edgeprism.files.remembered import Remembered
from edgeprism.version import __version__
from edgeprism.vision.pair import MMPROJ_FILE

_FORM = 1  # raised where graphs of the same version are written or measured in another way
_SPEED = "speed on the converting machine"
_TEXT = "greedy text"  # the only check whose result depends on the language model
_graphs = Remembered("graphs.json", limit=100)


def remember_graph(bundle: Path) -> None:
    """Remember that this version made a bundle's graphs and measured them."""
    manifest = manifest_from_bundle(bundle)
    _graphs.remember(_key(manifest), _stamp(manifest))


def keep_graph(
    bundles: Iterable[Path], mmproj: str, options: PairOptions, place: Path
) -> Path | None:
    """Link the graph of an mmproj file into a folder, where it stays if its bundle is replaced.

    Parameters:
        bundles: folders to look through; what is no bundle is passed over.
        mmproj: the digest of the mmproj file.
        options: the graphs that are wanted.
        place: a folder that is made, and is to be removed when the graph has been used.

    Returns `place`, or None if none of the bundles has such a graph, whole and as it was measured.
    """
    for bundle in bundles:
        # one that is damaged, or written by another program, is none to take a graph from
        with contextlib.suppress(EdgePrismError, OSError):
            manifest = manifest_from_bundle(bundle)
            if not _is_wanted(manifest, mmproj, options):
                continue
            names = _graph_files(manifest)
            for name in names:
                entry = manifest.files[name]
                check_file(bundle / name, entry.sha256, entry.size, again=True)
            shutil.rmtree(place, ignore_errors=True)  # what a killed process left
            place.mkdir()
            for name in names:
                link_or_copy(bundle / name, place / name, symbolic=False)
            shutil.copyfile(bundle / FILE_NAME, place / FILE_NAME)
            return place
    return None


def reuse_graph(bundle: Path, kept: Path, digest: str | None = None) -> bool:
    """Put a graph that `keep_graph` kept into the bundle of a pair, in the encoder's place.

    `digest` is that of the bundle's manifest when it was written, by default now.

    Returns whether it was done; not where the language model takes rows in another way. Raises
    OutputError if the bundle cannot be written, or another program has changed it; then it is as
    it was.
    """
    digest = digest or manifest_digest(bundle)
    pair, old = manifest_from_bundle(bundle), manifest_from_bundle(kept)
    if not _is_same_prompt(pair, old):
        return False
    figures = {check: values for check, values in old.parity.figures.items() if check != _TEXT}
    manifest = dataclasses.replace(
        pair,
        image=old.image,
        vision=old.vision,
        lm=dataclasses.replace(pair.lm, image_positions=old.lm.image_positions),
        prompts=dataclasses.replace(
            pair.prompts, markers=old.prompts.markers, several=old.prompts.several
        ),
        parity=dataclasses.replace(old.parity, figures=figures),
        notice="",
    )
    with BundleWriter(bundle, overwrite=True) as writer:
        take_files(bundle, digest, pair.files, writer)
        for name in _graph_files(old):
            put_in_place(kept / name, writer.folder / name, writer.out)
        writer.finish(dataclasses.replace(manifest, files=writer.file_entries()))
    return True


def take_files(pair: Path, digest: str | None, names: Iterable[str], writer: BundleWriter) -> None:
    """Link files of the bundle `pair`, whose manifest had this digest, into a writer's folder.

    From then on they stay what they are, whatever another program puts at `pair`. Raises
    OutputError if one has done so already.
    """
    try:
        for name in names:
            put_in_place(pair / name, writer.folder / name, writer.out)
    except OutputError:
        require_unchanged(pair, digest)
        raise
    require_unchanged(pair, digest)


def put_in_place(source: Path, target: Path, out: Path) -> None:
    """Put a file of a bundle into the one that becomes `out`: as a link where that is safe.

    A symbolic link into the folder that `out` replaces would lead nowhere.
    """
    real = source.resolve()
    with contextlib.suppress(OSError):
        os.link(real, target)
        return
    if source.is_symlink() and not real.is_relative_to(out.resolve()):
        with contextlib.suppress(OSError):
            target.symlink_to(real)
            return
    try:
        shutil.copyfile(real, target)
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be written: {error.strerror}.", "Free some space."
        ) from error


def _is_wanted(manifest: Manifest, mmproj: str, options: PairOptions) -> bool:
    """Return whether a bundle's graphs are of this mmproj file, and as they would be made now."""
    if manifest.vision.mmproj is not None or not manifest.parity.passed:
        return False
    file = manifest.files.get(MMPROJ_FILE)
    made_now = _graphs.read().get(_key(manifest)) == _stamp(manifest)
    gain = manifest.parity.figures.get(_SPEED, {}).get("times_as_fast", 0.0)
    return (
        file is not None
        and file.sha256 == mmproj
        and made_now
        and manifest.asked_quants == options.vision_quants
        and (options.always or gain >= LEAST_GAIN)
    )


def _is_same_prompt(pair: Manifest, old: Manifest) -> bool:
    """Return whether a language model takes the rows as the one that the graph was measured with.

    The texts between the rows were compared token by token with libmtmd's, so the vocabulary has to
    be of the same size too.
    """
    parts = [
        (
            it.vision.n_embd,
            (it.lm.architecture, it.lm.n_embd, it.lm.n_vocab, it.lm.image_attention),
            dataclasses.replace(it.prompts, markers=None, several=None),
        )
        for it in (pair, old)
    ]
    return parts[0] == parts[1]


def _graph_files(manifest: Manifest) -> list[str]:
    graphs = {variant.file for variant in manifest.vision.variants}
    return [name for name in manifest.files if name.removesuffix(".data") in graphs]


def _key(manifest: Manifest) -> str:
    """Return the digests of a bundle's graphs and their weights as one text."""
    return " ".join(manifest.files[name].sha256 for name in _graph_files(manifest))


def _stamp(manifest: Manifest) -> list[object]:
    """Return what made the graphs, and of what."""
    return [__version__, _FORM, manifest.files[MMPROJ_FILE].sha256]
