"""Try a captioner's files once in a child process: what a caption needs, in small.

The child is `main`, which `edgeprism.bundle.trial` starts. It encodes pictures of several shapes
and lets the language model caption the first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.bundle.gguf_parts import model_bytes
from edgeprism.bundle.manifest import MAX_EDGE, VisionVariant
from edgeprism.bundle.open import Bundle
from edgeprism.bundle.read_manifest import manifest_from_json
from edgeprism.bundle.trial import (
    SMALL_MODEL_BYTES,
    Trial,
    answer_trial,
    comes_with_package,
    remember_trial,
    try_once,
)
from edgeprism.errors import ModelError
from edgeprism.language.open_language import decoder_graphs, language_files
from edgeprism.language.trial import exercise
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.device import CPU_PROVIDER

if TYPE_CHECKING:
    import numpy as np

    from edgeprism.bundle.manifest import Manifest
    from edgeprism.language.engine import LanguageEngine
    from edgeprism.language.model import LanguageModel
    from edgeprism.language.request import Part
    from edgeprism.segments import Segment
    from edgeprism.vision.connector import Connector

_TILES_AT_ONCE = 8  # an accelerator takes up to so many
_TEXTS = ("Describe the", " picture.")
_FEW_ROWS = 32  # that a large language model takes in
# pictures that libmtmd encodes, and those that it only lays out; (width, height). The first is
# flat: a model that enlarges every picture makes 5 tiles of it, and 13 of a nearly square one.
_ENCODED = ((64, 16), (40, 90))
# pictures whose tiles a graph encodes where each has a shape of its own
_FREE = ((1024, 16), (16, 1024), (200, 150))
_LAID_OUT = ((1024, 768), (768, 1024), (4096, 256), (256, 4096), (4096, 4096), (32, 32))


@dataclass(frozen=True)
class Settings:
    """How a captioner's engines run; the result of a trial holds for these settings alone."""

    provider: str = CPU_PROVIDER
    gpu_layers: int = 0
    kv_type: str = "f16"
    flash_attention: bool | None = None


def try_captioner(
    bundle: Bundle, variant: VisionVariant, settings: Settings, cancel: Cancel
) -> None:
    """Check the digests of the files that `variant` needs, and run them once in a child process.

    It does not run what came with the package or went well before. Raises ModelError if a file is
    damaged or cannot be run, or Interrupted if `cancel` is set meanwhile.
    """
    paths = [bundle.file(name) for name in _files(bundle.manifest, variant)]
    if not all(comes_with_package(path) for path in paths):
        try_once(_trial(bundle, variant, settings), cancel)


def remember_captioner(bundle: Bundle) -> None:
    """Note that a bundle runs well, because all its files have just been run."""
    for variant in bundle.manifest.vision.variants:
        remember_trial(_trial(bundle, variant, Settings()), None)


def _files(manifest: Manifest, variant: VisionVariant) -> list[str]:
    """Return the names of all files that the engines open for `variant`."""
    graphs = [variant.file, *filter(None, [variant.connector]), *decoder_graphs(manifest.lm)]
    weights = [name for graph in graphs if (name := f"{graph}.data") in manifest.files]
    vocabulary = [manifest.vision.text.vocabulary] if manifest.vision.text else []
    return [*graphs, *weights, *vocabulary, *manifest.lm.files]


def _trial(bundle: Bundle, variant: VisionVariant, settings: Settings) -> Trial:
    manifest, names = bundle.manifest, _files(bundle.manifest, variant)
    text = manifest.vision.text
    places = {name: str(bundle.places.get(name, bundle.path / name)) for name in names}
    files = [manifest.files[name] for name in names]
    # a pair's manifest is made of facts that a trial showed, so the files alone identify it
    identity = [file.sha256 for file in files] if manifest.vision.mmproj else [bundle.digest]
    return Trial(
        subject=str(bundle.path if not bundle.places else places[variant.file]),
        module="edgeprism.vision.trial",
        request={
            "manifest": manifest.to_json(),
            "vision": places[variant.file],
            "connector": places.get(variant.connector, ""),
            "vocabulary": places.get(text.vocabulary, "") if text else "",
            "language": {name: places[name] for name in language_files(manifest)},
            "settings": asdict(settings),
        },
        identity=[*identity, variant.file, asdict(settings)],
        n_bytes=sum(file.size for file in files),
        on_gpu=settings.provider != CPU_PROVIDER or settings.gpu_layers > 0,
    )


# ---- inside the child


def main() -> None:
    """Run the trial in the child process."""
    answer_trial(_run)


def _run(request: dict[str, Any]) -> None:
    from edgeprism.language.model import LanguageModel
    from edgeprism.language.open_language import open_language
    from edgeprism.vision.graph_checks import check_graph
    from edgeprism.vision.operators import DECODER_OPERATORS, OPERATORS

    manifest = manifest_from_json(request["manifest"], "manifest.json")
    settings = Settings(**request["settings"])
    path, language = Path(request["vision"]), request["language"]
    graphs = [request["vision"], request["connector"]] if manifest.vision.mmproj is None else []
    checked = [(graph, OPERATORS) for graph in filter(None, graphs)]
    written = decoder_graphs(manifest.lm)
    checked += [(language[name], DECODER_OPERATORS) for name in written]
    for graph, operators in checked:
        weights = f"{Path(graph).name}.data"
        known = [weights] if weights in manifest.files else []
        check_graph(Path(graph), known, operators=operators)
    threads = request["threads"]
    lm = open_language(
        manifest, lambda name: Path(language[name]), gpu_layers=settings.gpu_layers, threads=threads
    )
    if isinstance(lm, LanguageModel) and manifest.vision.mmproj is not None:
        prompt = prompt_of_mmproj(path, lm, settings)
    else:
        connector = _open_connector(request, manifest, settings, threads)
        prompt = _prompt_of_graph(path, manifest, lm, settings, connector, threads)
    exercise(lm, prompt, kv_type=settings.kv_type, flash_attention=settings.flash_attention)


def _open_connector(
    request: dict[str, Any], manifest: Manifest, settings: Settings, threads: int
) -> Connector | None:
    from edgeprism.vision.connector import Connector, ConnectorFiles

    if not request["connector"]:
        return None
    files = ConnectorFiles(Path(request["connector"]), Path(request["vocabulary"]))
    return Connector(files, manifest, provider=settings.provider, threads=threads)


def _connected(connector: Connector, features: np.ndarray, manifest: Manifest) -> np.ndarray:
    """Make visual tokens of features with short and long texts; return those of the last.

    The longest has the vocabulary's last piece everywhere, so a table with fewer rows fails here.
    """
    most = manifest.vision.text.max_ids if manifest.vision.text else 0
    last = connector.tokenizer.n_pieces - 1
    texts = [connector.tokenizer.ids(""), connector.tokenizer.ids(_TEXTS[0]), [last] * most]
    return [connector.rows_of_ids(features, ids) for ids in texts][-1]


def _prompt_of_graph(
    path: Path,
    manifest: Manifest,
    lm: LanguageEngine,
    settings: Settings,
    connector: Connector | None,
    threads: int,
) -> tuple[Part, ...]:
    """Encode tiles of noise; return a prompt with rows of the last one."""
    import numpy as np

    from edgeprism.language.request import segments_to_parts
    from edgeprism.segments import ImageRows, Text
    from edgeprism.vision.onnx import VisionEncoder

    engine = VisionEncoder(path, manifest, provider=settings.provider, threads=threads)
    on_cpu = settings.provider == CPU_PROVIDER
    rows = np.empty((0, manifest.vision.n_embd), np.float32)
    for shape in _tile_shapes(manifest, is_small=_is_small(path), together=not on_cpu):
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        made = engine.encode(pixels)
        rows = (made if connector is None else _connected(connector, made, manifest))[0]
        if manifest.video is not None:
            engine.encode_frames(pixels)
    if not lm.rows_apart:  # else they take no room in the context, and little time
        most = len(rows) if _is_small(lm.path) else _FEW_ROWS
        rows = rows[: max(1, min(most, lm.n_ctx_train // 2))]
    causal = manifest.lm.image_attention == "causal"
    before, after = (Text(text) for text in _TEXTS)
    segments: list[Segment] = [before, ImageRows(0, len(rows), causal), after]
    return segments_to_parts(lm, segments, rows, add_bos=True)


def _tile_shapes(
    manifest: Manifest, *, is_small: bool, together: bool
) -> list[tuple[int, int, int, int]]:
    """Return shapes [n, height, width, channels] of tiles to encode.

    Parameters:
        is_small: whether the largest tile takes no long time either, where shapes are free.
        together: whether several tiles are encoded at once.
    """
    from edgeprism.picture.layout import tile_size

    image = manifest.image
    if image.free is None:
        fixed = (image.size, image.size, image.channels)
        return [*([(_TILES_AT_ONCE, *fixed)] if together else []), (1, *fixed)]
    pictures = [*_FREE, *([(MAX_EDGE, MAX_EDGE)] if is_small else [])]
    sizes = [tile_size(size, image) for size in pictures]
    sizes += [(image.size, image.size)] if image.tiling is not None else []
    return [(1, height, width, 3) for width, height in dict.fromkeys(sizes)]


def prompt_of_mmproj(path: Path, lm: LanguageModel, settings: Settings) -> tuple[Part, ...]:
    """Lay out and encode pictures of several shapes; return a prompt with the last one's rows.

    Raises ModelError if no picture can be encoded.
    """
    import contextlib

    import numpy as np

    from edgeprism.errors import ImageError
    from edgeprism.language.request import segments_to_parts
    from edgeprism.segments import Text
    from edgeprism.vision.mtmd import MtmdEncoder

    encoder = MtmdEncoder(
        path,
        lm,
        gpu=settings.provider != CPU_PROVIDER,
        threads=lm.threads,
        flash_attention=settings.flash_attention,
    )
    for size in _LAID_OUT:
        with contextlib.suppress(ImageError):  # a shape that the model cannot take
            encoder.layout(size)
    prompt: tuple[Part, ...] = ()
    for width, height in _ENCODED if _is_small(path) else _ENCODED[:1]:
        shape = (1, height, width, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        with contextlib.suppress(ImageError):
            rows, segments = encoder.encode_picture(pixels)
            before, after = (Text(text) for text in _TEXTS)
            if not _is_small(lm.path):
                segments = tuple(map(_shortened, segments))
            prompt = segments_to_parts(lm, [before, *segments, after], rows, add_bos=True)
    if not prompt:
        raise ModelError(f"{path}: encodes no picture.", "Use another mmproj file.")
    encoder.close()
    return prompt


def _is_small(path: Path) -> bool:
    return model_bytes(path) < SMALL_MODEL_BYTES


def _shortened(segment: Segment) -> Segment:
    """Return an image's first rows alone; other segments as they are."""
    from edgeprism.segments import ImageRows

    if not isinstance(segment, ImageRows):
        return segment
    stop = min(segment.stop, segment.start + _FEW_ROWS)
    positions = segment.positions
    if positions is not None:
        positions = positions[:, : stop - segment.start]
    return ImageRows(segment.start, stop, segment.causal, positions)
