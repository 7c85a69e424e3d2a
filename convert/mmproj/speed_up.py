"""Give the bundle of a pair a faster encoder, where there is one: for `pull` and `convert mmproj`.

It imports nothing heavy at its top, and needs no torch.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprism.bundle.writer import manifest_digest, require_unchanged
from edgeprism.choices import PAIR_QUANTS
from edgeprism.convert.options import PairOptions, check_vision_quants
from edgeprism.errors import EdgePrismError, NoGraphError, ParityError

if TYPE_CHECKING:
    from edgeprism.progress import Progress

NEEDED = ("gguf", "onnx", "onnxruntime")  # packages of the extras `pairs` and `cpu`


def speed_up_pair(
    bundle: Path,
    progress: Progress,
    options: PairOptions | None = None,
    earlier: Path | None = None,
    digest: str | None = None,
) -> str:
    """Put an ONNX graph into the bundle of a pair if it is faster than libmtmd; say what became.

    `bundle` is a folder that `vision.pair.write_pair` wrote. It builds a graph from the mmproj's
    tensors, compares it with libmtmd, quantizes it to int8 behind the parity gate, measures both
    encoders on a few tiles, and replaces the bundle by one with the graph. The bundle keeps its
    name, its sources and both files. Wherever that fails, the bundle stays as it is.

    Parameters:
        progress: receives every stage.
        options: by default an int8 graph, if it is faster. With `always` a graph that is not
            faster is kept too, and an encoder that has no graph is an error.
        earlier: a folder of `reuse.keep_graph`, with the graph that was made of the same mmproj
            file; it is taken where it fits the language model.
        digest: of the bundle's manifest, which `write_pair` returned; by default of the one that
            is there. A bundle that another program put in its place is left alone.

    Returns one line for a person: how much faster it is, or why libmtmd stays.

    Raises UsageError for quantizations that are not known or exclude each other; Interrupted after
    Ctrl-C; ModelError if a file is damaged; OutputError if the disk is full or another program has
    changed the bundle; NoGraphError, ParityError, or EdgePrismError if the work was ended from
    outside, only with `always`. Each says that the bundle has no graph, while it is this one.
    """
    options = options or PairOptions()
    check_vision_quants(options.vision_quants, PAIR_QUANTS)
    digest = digest or manifest_digest(bundle)
    try:
        if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
            raise NoGraphError(
                f"packages that build a graph are missing: {', '.join(missing)}.",
                'Install them: pip install "edgeprism[cpu,pairs]".',
            )
        if not options.always and _has_gpu():
            raise NoGraphError(f"{bundle}: llama.cpp runs on this machine's GPU.")
        if earlier is not None and _reused(bundle, earlier, digest):
            return "The encoder is the ONNX graph that was made of the same mmproj file before."
        ratio = _replaced(bundle, progress, options, digest)
    except EdgePrismError as error:
        # the base class itself: the child was ended, most often because memory ran out
        stays = isinstance(error, NoGraphError | ParityError) or type(error) is EdgePrismError
        if options.always or not stays:
            if manifest_digest(bundle) == digest:
                holds = f"{bundle} holds the pair without a graph: llama.cpp encodes its pictures."
                error.details = (*error.details, holds)
            raise
        require_unchanged(bundle, digest)
        reason = " ".join(filter(None, (error.summary, "; ".join(error.details))))
        return f"llama.cpp's own encoder stays: {reason}"
    share = f"{1 / ratio:.2f}" if ratio <= 100 else "less than a hundredth"
    return f"The encoder is an ONNX graph: a tile takes {share} of llama.cpp's time."


def _has_gpu() -> bool:
    """Return whether llama.cpp was built for a GPU: there its encoder is the faster one."""
    from edgeprism.language.llama import supports_offload

    return supports_offload()


def _reused(bundle: Path, earlier: Path, digest: str | None) -> bool:
    from edgeprism.bundle.open import open_bundle
    from edgeprism.convert.mmproj.reuse import reuse_graph
    from edgeprism.vision.trial import remember_captioner

    if not reuse_graph(bundle, earlier, digest):
        return False
    # the pair has just been tried, and the graph was when it was made
    remember_captioner(open_bundle(bundle))
    return True


def _replaced(bundle: Path, progress: Progress, options: PairOptions, digest: str | None) -> float:
    from edgeprism.bundle.gguf import read_gguf_header
    from edgeprism.bundle.open import open_bundle
    from edgeprism.convert.mmproj.reuse import remember_graph
    from edgeprism.convert.mmproj.shape import read_shape
    from edgeprism.convert.supervise import build_in_child
    from edgeprism.vision.pair import MMPROJ_FILE
    from edgeprism.vision.trial import remember_captioner

    # a look at the header alone: most encoders without a graph are told at once
    read_shape(bundle / MMPROJ_FILE, read_gguf_header(bundle / MMPROJ_FILE))
    ratio = build_in_child(bundle, bundle, options, progress, digest)
    # the conversion has just run every file of the bundle, so no caption waits for a trial
    remember_captioner(open_bundle(bundle))
    remember_graph(bundle)
    return ratio
