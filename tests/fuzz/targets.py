"""What the fuzzer attacks: for each kind of file, sound seeds, and what EdgePrism does with one."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.parsers import expat

import numpy as np
from PIL import Image

from tests.fuzz.models import mutate_gguf, mutate_graph
from tests.fuzz.mutate import mutate_bytes, mutate_json, with_png_checksums

EXAMPLE = Path("models/nano/examples/scene1.png")
BUNDLE = Path("models/nano/bundle")


@dataclass(frozen=True)
class Target:
    """One kind of file.

    `make` returns the mutated file of a seeded generator. `use` lets EdgePrism work on it, in an
    empty folder; it returns normally or raises an EdgePrismError, and nothing else may happen.
    """

    name: str
    make: Callable[[random.Random], bytes]
    use: Callable[[bytes, Path], None]
    share: float  # of the time


# ---- pictures


@cache
def _pictures() -> tuple[bytes, ...]:
    y, x = np.mgrid[0:48, 0:64]
    pixels = np.stack([x * 4, y * 5, (x * y) % 256], axis=-1).astype(np.uint8)
    rgb = Image.fromarray(pixels)
    rgba = Image.fromarray(np.dstack([pixels, (x * 4).astype(np.uint8)]))
    grey16 = Image.fromarray((x * 1000).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    made: list[tuple[Image.Image, str, dict[str, object]]] = [
        (rgb, "JPEG", {"exif": exif}), (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}), (rgb.convert("L"), "JPEG", {}),
        (rgb, "MPO", {"save_all": True, "append_images": [rgb]}),
        (rgb, "PNG", {}), (rgba, "PNG", {}), (grey16, "PNG", {}), (rgb.convert("P"), "PNG", {}),
        (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(90, expand=False)]}),
        (rgb, "WEBP", {}), (rgba, "WEBP", {"lossless": True}),
        (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        (rgb, "AVIF", {}), (rgb.convert("P"), "GIF", {"save_all": True, "append_images": [rgb]}),
        (rgb, "BMP", {}), (rgb, "PPM", {}), (rgb, "TIFF", {}), (grey16, "TIFF", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}), (rgb, "TIFF", {"compression": "jpeg"}),
        (rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (rgb.convert("1"), "TIFF", {"compression": "group4"}), (rgb.convert("CMYK"), "TIFF", {}),
        (rgba, "TIFF", {}),
    ]  # fmt: skip
    seeds = []
    for image, form, options in made:
        file = io.BytesIO()
        image.save(file, form, **options)
        seeds.append(file.getvalue())
    return tuple(seeds)


def _make_picture(rng: random.Random) -> bytes:
    data = mutate_bytes(rng, _pictures())
    return with_png_checksums(data) if rng.random() < 0.8 else data


def _use_picture(data: bytes, folder: Path) -> None:
    from edgeprism.picture.read import read_picture

    path = folder / "picture"
    path.write_bytes(data)
    read_picture(path)


# ---- sidecars

_XMP_WORDS = tuple(
    word.encode()
    for word in (
        "<rdf:li>", "</rdf:li>", "<rdf:Alt>", "</rdf:Alt>", "<dc:description>", "</dc:description>",
        "<dc:description/>", "<rdf:Description ", 'xmlns:dc="x"', 'xml:lang="x-default"', "<!--",
        "-->", "<![CDATA[", "]]>", "&amp;", "&#0;", "&x;", "<?xpacket?>", "<!DOCTYPE x [", " ",
        'rdf:parseType="Resource"', "\0", "\ufeff", 'encoding="UTF-16"', "<a:b", 'x="1" ',
    )
)  # fmt: skip


def _xmp(body: str, attributes: str = "") -> str:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"'
        f"{attributes}>{body}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
    )


@cache
def _sidecars() -> tuple[bytes, ...]:
    item = '<rdf:li xml:lang="{}">{}</rdf:li>'
    texts = [
        _xmp(""),
        _xmp("<dc:description><rdf:Alt>" + item.format("x-default", "Mine") + "</rdf:Alt>"
             "</dc:description>"),
        _xmp("<dc:description><rdf:Alt>" + item.format("de-DE", "Mein Text") + "</rdf:Alt>"
             "</dc:description><dc:subject><rdf:Bag><rdf:li>sea</rdf:li></rdf:Bag></dc:subject>"),
        _xmp("", ' dc:description="short"'),
        _xmp("<dc:description/>"),
        _xmp('<dc:description rdf:parseType="Resource"><rdf:value>Mine</rdf:value>'
             "</dc:description>"),
    ]  # fmt: skip
    return tuple(t.encode(e) for t in texts for e in ("utf-8", "utf-8-sig", "utf-16"))


def _make_sidecar(rng: random.Random) -> bytes:
    return mutate_bytes(rng, _sidecars(), _XMP_WORDS)


def _use_sidecar(data: bytes, folder: Path) -> None:
    from edgeprism.output.sidecar import XmpSidecar
    from edgeprism.picture.find import PictureFile

    photo, sidecar = folder / "photo.jpg", folder / "photo.xmp"
    photo.write_bytes(b"\xff\xd8")
    sidecar.write_bytes(data)
    model = {"name": "nano", "digest": "cd" * 32, "vision_quant": "int8", "lm_quant": "q8_0"}
    record = {"caption": "A machine's <words> & more.", "image": "photo.jpg", "version": "0",
              "image_sha256": "ab" * 32, "model": model, "instruction": "Describe."}  # fmt: skip
    overwrite = len(data) % 4 == 0
    try:
        XmpSidecar(overwrite=overwrite).write(record, PictureFile(photo, None, str(photo)))
    except Exception:
        assert sidecar.read_bytes() == data, "a refused sidecar was changed"
        raise
    # without namespaces: with them, Python's parser refuses a namespace whose name holds a brace
    expat.ParserCreate().Parse(sidecar.read_bytes(), True)
    for words in (b"Mine", b"Mein Text", b"short") if not overwrite else ():
        assert data.count(words) <= sidecar.read_bytes().count(words), "a person's text is gone"


# ---- models: a stranger's bundle, its digests right


@cache
def _sealed(name: str) -> bytes:
    return (BUNDLE / name).read_bytes()


def _use_bundle(folder: Path, changed: dict[str, bytes]) -> None:
    from edgeprism import Captioner
    from edgeprism.files.digests import sha256_of_file

    bundle = folder / "stranger"
    bundle.mkdir()
    manifest = json.loads(_sealed("manifest.json"))
    for name, entry in manifest["files"].items():
        if name in changed:
            (bundle / name).write_bytes(changed[name])
            entry["size"] = len(changed[name])
            entry["sha256"] = sha256_of_file(bundle / name)
        else:
            shutil.copyfile(BUNDLE / name, bundle / name)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with Captioner.load(bundle, device="cpu", threads=1) as captioner:
        captioner.caption(EXAMPLE, caption_tokens=4)


def _graph_names() -> list[str]:
    return [n for n in json.loads(_sealed("manifest.json"))["files"] if n.endswith(".onnx")]


def _make_graph(rng: random.Random) -> bytes:
    return mutate_graph(rng, _sealed(rng.choice(_graph_names())))


def _use_graph(data: bytes, folder: Path) -> None:
    _use_bundle(folder, dict.fromkeys(_graph_names(), data))


def _make_gguf(rng: random.Random) -> bytes:
    return mutate_gguf(rng, _sealed("lm.gguf"))


def _use_gguf(data: bytes, folder: Path) -> None:
    _use_bundle(folder, {"lm.gguf": data})


# ---- texts


def _make_manifest(rng: random.Random) -> bytes:
    whole = _sealed("manifest.json")
    return mutate_json(rng, whole) if rng.random() < 0.7 else mutate_bytes(rng, [whole])


def _use_manifest(data: bytes, folder: Path) -> None:
    from edgeprism.bundle.read_manifest import manifest_from_bundle

    (folder / "manifest.json").write_bytes(data)
    manifest_from_bundle(folder)


_TSV = (
    b'index\tquestion\thint\tA\tB\tanswer\timage\n0\t"What\tis it?"\t\tred\tblue\tA\t'
    b'iVBORw0KGgo=\n1\tWhere?\ta "b"\tx\ty\tB\t0\n',
    "index\tquestion\tanswer\timage_path\n5\tWie viele?\tzwei ü\tx.png\n".encode(),
)
_TSV_WORDS = (b"\t", b"\n", b"\r", b'"', b'""', b"\0", b"\xff", b"index", b"A", b"image", b"[")


def _make_tsv(rng: random.Random) -> bytes:
    return mutate_bytes(rng, _TSV, _TSV_WORDS)


def _use_tsv(data: bytes, folder: Path) -> None:
    from edgeprism.evaluation.tsv import TsvFile

    path = folder / "questions.tsv"
    path.write_bytes(data)
    for _ in TsvFile(path, max_row_bytes=1 << 20).rows():
        pass


TARGETS = (
    Target("pictures", _make_picture, _use_picture, 0.25),
    Target("sidecars", _make_sidecar, _use_sidecar, 0.15),
    Target("graphs", _make_graph, _use_graph, 0.2),
    Target("gguf", _make_gguf, _use_gguf, 0.2),
    Target("manifests", _make_manifest, _use_manifest, 0.1),
    Target("tables", _make_tsv, _use_tsv, 0.1),
)
