"""The same random weights, at true dimensions, in the files that each engine reads.

What makes the files (torch and others) is imported when one is made, so that the memory of an
engine's process is the engine's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprism.bundle.manifest import Manifest
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.machine.facts import has_int8_dot

if TYPE_CHECKING:
    from tests.helpers import bundles

# int8-full is for processors with 8-bit dot products
GRAPH_QUANTS = ("fp32", "int8", *(["int8-full"] if has_int8_dot() else []))
MMPROJ_QUANTS = ("F16", "Q8_0")
# of each size: the language model's quantization, and how many of its layers are made, 0 for all
LANGUAGE = {
    "prismcaptioner-2b": ("Q4_K_M", 0),
    "smolvlm-256m": ("Q8_0", 0),
    "smolvlm-500m": ("Q8_0", 0),
    "internvl-2b": ("Q4_K_M", 0),
    "llava-1.5-7b": ("Q4_K_M", 4),
}
Size = tuple[int, int]  # (width, height) of a picture in pixels
_VISION_SIDE = ("vision", "mm_projector", "mlp1", "connector")  # in names of vision tensors


@dataclass(frozen=True)
class Weights:
    """One captioner's files in `work`; each is made when it is first asked for, and kept."""

    work: Path
    size: str

    @property
    def family(self) -> str:
        from benchmarks.checkpoints.true_dimensions import SIZES

        return SIZES[self.size].family

    @property
    def n_layers(self) -> int:
        """The layers of the language model that are made."""
        from benchmarks.checkpoints.true_dimensions import SIZES

        return LANGUAGE[self.size][1] or SIZES[self.size].lm_layers

    def checkpoint(self) -> dict[str, Path]:
        """Return the published layout's folders."""
        from benchmarks.checkpoints.true_dimensions import checkpoint_folders

        return checkpoint_folders(self.work, self.size, self.n_layers)

    def bundle(self) -> Path:
        """Return EdgePrism's bundle, whose lm.gguf llama.cpp reads too."""
        bundle = self.work / f"bundle-{self.size}"
        if not bundle.exists():
            from edgeprism.cli.terminal import StderrProgress
            from edgeprism.convert.options import ConvertOptions
            from edgeprism.convert.supervise import convert_in_child

            options = ConvertOptions(vision_quants=GRAPH_QUANTS, lm_quant=LANGUAGE[self.size][0])
            with StderrProgress().shown() as progress:
                convert_in_child(self.family, bundle, options, self.checkpoint(), progress)
        return bundle

    def manifest(self) -> Manifest:
        return manifest_from_bundle(self.bundle())

    def language_model(self) -> Path:
        return self.bundle() / self.manifest().lm.file

    def graph(self, quant: str) -> Path:
        """Return the bundle's vision graph in `quant`."""
        variants = {variant.quant: variant.file for variant in self.manifest().vision.variants}
        return self.bundle() / variants[quant]

    def mmproj(self, quant: str) -> Path:
        """Return the tower and projector as libmtmd's converters would write them."""
        path = self.work / f"mmproj-{self.size}-{quant}.gguf"
        if not path.exists():
            from tests.helpers import peer_mmproj

            parts = _MMPROJS[self.family](self.checkpoint())
            unfinished = path.with_suffix(".partial")
            peer_mmproj.quantized(parts, quant).write(unfinished)
            unfinished.rename(path)
        return path


# ---- mmproj files


def _prismcaptioner(folders: dict[str, Path]) -> bundles.GgufParts:
    from tests.helpers import peer_mmproj

    config = _json(folders["vision"])["vision_config"]
    projector = _tensors([folders["captioner"] / "projector"], "")
    tower = _tensors([folders["vision"]], "vision_model.")
    return peer_mmproj.siglip_mmproj(tower, projector, config)


def _llava(folders: dict[str, Path]) -> bundles.GgufParts:
    from tests.helpers import peer_mmproj

    vision, captioner = _json(folders["vision"]), _json(folders["captioner"])
    config = {"vision_config": vision, "vision_feature_layer": captioner["mm_vision_select_layer"]}
    tensors = _tensors(folders.values(), *_VISION_SIDE)
    return peer_mmproj.with_positions_turned(
        peer_mmproj.llava_mmproj(tensors, config, vision["image_size"])
    )


def _internvl(folders: dict[str, Path]) -> bundles.GgufParts:
    from tests.helpers import peer_mmproj

    tensors = _tensors(folders.values(), *_VISION_SIDE)
    return peer_mmproj.with_positions_turned(
        peer_mmproj.internvl_mmproj(tensors, _json(folders["captioner"]))
    )


def _smolvlm(folders: dict[str, Path]) -> bundles.GgufParts:
    from tests.helpers import peer_mmproj

    captioner = folders["captioner"]
    prepare = _json(captioner, "preprocessor_config.json")
    tensors = _tensors(folders.values(), *_VISION_SIDE)
    return peer_mmproj.smolvlm_mmproj(tensors, _json(captioner), prepare)


_MMPROJS: dict[str, Callable[[dict[str, Path]], bundles.GgufParts]] = {
    "prismcaptioner": _prismcaptioner, "llava": _llava, "internvl": _internvl, "smolvlm": _smolvlm,
}  # fmt: skip


def _json(folder: Path, name: str = "config.json") -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / name).read_text())
    return data


def _tensors(folders: Iterable[Path], *words: str) -> dict[str, Any]:
    """Return the tensors in `folders` whose names hold one of `words`."""
    from safetensors import safe_open

    tensors = {}
    for path in chain.from_iterable(sorted(folder.glob("*.safetensors")) for folder in folders):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - `file` is not a mapping
                if any(word in name for word in words):
                    tensors[name] = file.get_tensor(name)
    return tensors


# ---- pictures


def noise(seed: int, size: Size) -> np.ndarray:
    """Return a picture of noise, uint8 [height, width, 3]; time does not depend on its content."""
    width, height = size
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def calibration_tiles(manifest: Manifest, count: int) -> Iterator[np.ndarray]:
    """Yield tiles [1, edge, edge, 3] of smooth noise, as quantizers of other engines need them.

    Photographs are smooth, and white noise would calibrate a quantizer for nothing else.
    """
    from PIL import Image

    edge = manifest.image.size
    for seed in range(count):
        coarse = noise(1000 + seed, (edge // 16, edge // 16))
        smooth = Image.fromarray(coarse).resize((edge, edge), Image.Resampling.BICUBIC)
        yield np.asarray(smooth)[None]
