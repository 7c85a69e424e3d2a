"""The ONNX graph that an installed pair has, when `pull` puts another one in the pair's place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgeprism.bundle.manifest import FILE_NAME
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.mmproj.reuse import keep_graph
from edgeprism.convert.options import PairOptions
from edgeprism.errors import ManifestError
from edgeprism.files.home import data_dir
from edgeprism.install.gguf_request import GgufRequest


def pair_options(request: GgufRequest) -> PairOptions:
    """Return how to build the graph that a request asks for."""
    options = PairOptions(always=request.encoder == "onnx")
    quants = request.vision_quants or options.vision_quants
    return dataclasses.replace(options, vision_quants=quants)


def with_installed_quants(request: GgufRequest, folder: Path) -> GgufRequest:
    """Return the request with the quantizations of the installed graph, where it names none.

    `folder` is the place of the pair, which need not be there.
    """
    if request.vision_quants or not (folder / FILE_NAME).is_file():
        return request
    try:
        manifest = manifest_from_bundle(folder)
    except (ManifestError, OSError):  # a damaged bundle is replaced, and says nothing
        return request
    if manifest.vision.mmproj is not None:
        return request
    return dataclasses.replace(request, vision_quants=manifest.asked_quants)


def earlier_graph(folder: Path, mmproj: str, request: GgufRequest, place: Path) -> Path | None:
    """Keep the graph that an installed model has of an mmproj file, if one has it.

    Parameters:
        folder: the place of the pair, whose own graph comes first.
        mmproj: the digest of the mmproj file.
        request: says which graphs are wanted.
        place: a folder that is made.

    Returns `place`, or None.
    """
    options = pair_options(request)
    # the graph that this very pair has was chosen, also where it is not the faster encoder
    chosen = dataclasses.replace(options, always=True)
    if kept := keep_graph([folder], mmproj, chosen, place):
        return kept
    others = sorted((data_dir() / "models").glob(f"*/{FILE_NAME}"))
    return keep_graph([path.parent for path in others], mmproj, options, place)
