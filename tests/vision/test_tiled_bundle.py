"""Bundles that cut pictures: tiles, newline rows, markers, costs, folders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgeprism.bundle.manifest import ImagePolicy, Markers
from edgeprism.cli.main import run
from edgeprism.errors import ModelError
from edgeprism.folder.batch import Batch
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.find import PictureFile
from edgeprism.picture.layout import picture_to_layout
from edgeprism.picture.read import read_picture
from edgeprism.segments import Text
from edgeprism.vision import onnx as onnx_engine
from edgeprism.vision.onnx import VisionEncoder
from tests.helpers import bundles
from tests.helpers.captions import caption_ids
from tests.helpers.tiles import picture_to_tiles
from tests.picture.test_layout import BEST_FIT_POLICY, CLOSEST_POLICY, LONGEST_POLICY, picture

SEED = 1
NEWLINE = np.random.default_rng(9).standard_normal((1, bundles.N_EMBD)).astype(np.float32)
MARKERS = Markers(
    begin="<|im_start|>",
    before_overview="the picture",
    before_tile="<|im_start|>{row} {column}",
    after_row="\n",
    between="\n",
    end="<|im_end|>",
)
SIZES = [(56, 56), (300, 90), (61, 400), (3, 200), (28, 28)]


def graph_with_newline(newline: np.ndarray = NEWLINE) -> onnx.ModelProto:
    model = bundles.vision_graph(SEED)
    model.graph.initializer.append(numpy_helper.from_array(newline, "newline_weight"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "one_row"))
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["pixels"], ["batch"], end=1),
            helper.make_node("Concat", ["batch", "one_row"], ["rows_of_newline"], axis=0),
            helper.make_node("Expand", ["newline_weight", "rows_of_newline"], ["newline"]),
        ]
    )
    shape = ["n", newline.shape[1]]
    model.graph.output.append(helper.make_tensor_value_info("newline", TensorProto.FLOAT, shape))
    return model


def write(folder: Path, image: ImagePolicy, *, newline: bool = False, **settings: Any) -> Path:
    base = bundles.make_manifest({})
    output, markers = "newline" if newline else "", MARKERS
    if image.tiling is not None and image.tiling.order != "tiles":
        markers = dataclasses.replace(MARKERS, before_tile="", after_row="")
    return bundles.write_bundle(
        folder,
        SEED,
        graph=settings.pop("graph", graph_with_newline() if newline else None),
        image=image,
        vision=dataclasses.replace(base.vision, newline=output),
        prompts=dataclasses.replace(base.prompts, markers=markers),
    )


@pytest.fixture(scope="module", params=["best-fit", "closest-ratio", "longest-edge"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    policies = {"best-fit": BEST_FIT_POLICY, "closest-ratio": CLOSEST_POLICY}
    policy = policies.get(request.param, LONGEST_POLICY)
    return write(tmp_path_factory.mktemp("tiled"), policy, newline=request.param == "best-fit")


@pytest.fixture
def captioner(bundle: Path) -> Iterator[Captioner]:
    with Captioner.load(bundle, threads=1, kv_type="f32", flash_attention=False) as it:
        yield it


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_the_tiles_tokens_in_the_layouts_order(
    captioner: Captioner, size: tuple[int, int]
) -> None:
    manifest = captioner.bundle.manifest
    encoded = captioner.encode(picture(size))
    tiles = picture_to_tiles(read_picture(picture(size)), manifest.image)
    tokens = bundles.vision_reference(tiles, SEED).reshape(-1, bundles.N_EMBD)
    layout = picture_to_layout(size, manifest)
    expected = [tokens[i] if i >= 0 else NEWLINE[0] for i in layout.rows]
    np.testing.assert_allclose(encoded.visual_tokens, expected, rtol=1e-4, atol=1e-4)
    assert encoded.layout == layout.segments
    first, last = encoded.layout[0], encoded.layout[-1]
    assert isinstance(first, Text)
    assert first.text.startswith(MARKERS.begin)
    assert last == Text(MARKERS.end, True)


@pytest.mark.parametrize("size", SIZES)
def test_the_cost_is_known_before(captioner: Captioner, size: tuple[int, int]) -> None:
    cost = captioner.cost(size)
    caption = captioner.caption(picture(size))
    assert cost.visual_tokens == caption.tokens.visual
    assert cost.prompt_tokens == caption.tokens.visual + caption.tokens.prompt
    assert cost.tiles == max(1, cost.grid[0] * cost.grid[1] + 1 if cost.grid != (0, 0) else 1)
    assert cost.left_for_caption == captioner.bundle.manifest.prompts.max_tokens


def test_every_tile_moves_the_caption(captioner: Captioner) -> None:
    pixels = picture((300, 90))
    ids = caption_ids(captioner, pixels, stop_at_end=False)
    for x in range(0, 300, 100):
        changed = pixels.copy()
        changed[:, x : x + 60] = 255 - changed[:, x : x + 60]
        assert caption_ids(captioner, changed, stop_at_end=False) != ids


def test_a_folder_says_what_single_pictures_do(captioner: Captioner, tmp_path: Path) -> None:
    paths = []
    for i, size in enumerate(SIZES):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(picture(size)).save(paths[-1])
    expected = [captioner.caption(path) for path in paths]
    batch = Batch(captioner, captioner.plan(), parallel=2)
    outcomes = list(batch.run(PictureFile(path, Path(path.name), path.name) for path in paths))
    for outcome, caption in zip(outcomes, expected, strict=True):
        assert outcome.record is not None
        assert outcome.record["caption"] == caption.text
        assert outcome.record["tokens"]["visual"] == caption.tokens.visual


def test_tiles_go_through_the_graph_one_at_a_time(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture with many tiles must not take more memory than one tile."""
    encoder = captioner.engines.vision()
    assert isinstance(encoder, VisionEncoder)
    counts = []
    session = encoder._session._session

    class Spy:
        def run(self, names: Any, inputs: dict[str, np.ndarray], options: Any) -> Any:
            counts.append(len(inputs["pixels"]))
            return session.run(names, inputs, options)

    monkeypatch.setattr(encoder._session, "_session", Spy())
    captioner.encode(picture((300, 90)))
    assert len(counts) > 1
    assert set(counts) == {1}


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (bundles.vision_graph(SEED), "newline"),
        (graph_with_newline(NEWLINE[:, :64]), "64"),
    ],
)
def test_a_graph_without_its_newline_is_refused(
    tmp_path: Path, graph: onnx.ModelProto, words: str
) -> None:
    folder = write(tmp_path / "b", BEST_FIT_POLICY, newline=True, graph=graph)
    with Captioner.load(folder) as it, pytest.raises(ModelError, match="its output is") as caught:
        it.encode(picture((30, 40)))
    assert words in caught.value.message


def test_a_newline_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    graph = graph_with_newline(NEWLINE * np.float32("nan"))
    folder = write(tmp_path / "b", BEST_FIT_POLICY, newline=True, graph=graph)
    with Captioner.load(folder) as it, pytest.raises(ModelError, match="not finite"):
        it.encode(picture((30, 40)))


def test_a_newline_that_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", CLOSEST_POLICY, graph=graph_with_newline())
    with Captioner.load(folder) as it, pytest.raises(ModelError, match="its output is"):
        it.encode(picture((30, 40)))


def test_tiles_on_an_accelerator_go_a_few_at_a_time(bundle: Path) -> None:
    manifest = Captioner.load(bundle).bundle.manifest
    it = onnx_engine.VisionEncoder(bundle / "vision.fp32.onnx", manifest, threads=1)
    pixels = np.random.default_rng(1).integers(0, 256, (11, 28, 28, 3), dtype=np.uint8)
    one_by_one = it.encode(pixels)
    it._session.tiles_at_once = 8
    np.testing.assert_allclose(it.encode(pixels), one_by_one, rtol=1e-5, atol=1e-5)


# ---- models show


def test_show_says_what_a_picture_costs(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wide.png"
    Image.fromarray(picture((300, 90))).save(path)
    answers = []
    for arguments in (["--size", "300x90"], ["--image", str(path)]):
        assert run(["models", "show", str(bundle), *arguments, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    with Captioner.load(bundle) as it:
        caption = it.caption(path)
    assert answers[0]["size"] == [300, 90]
    assert answers[0]["visual_tokens"] == caption.tokens.visual
    assert answers[0]["prompt_tokens"] == caption.tokens.visual + caption.tokens.prompt
    assert run(["models", "show", str(bundle), "--size", "300x90"]) == 0
    out = capsys.readouterr().out
    assert f"visual_tokens: {caption.tokens.visual}\n" in out
    down, across = answers[0]["grid"]
    assert f"size: 300 × 90\ngrid: {down} down, {across} across, and the whole picture\n" in out


@pytest.mark.parametrize("size", ["", "3", "3x", "x3", "0x5", "5x0", "-1x5", "1.5x2", "3x4x5",
                                  "70000x3", "٣x٣", "99999999x1"])  # fmt: skip
def test_what_is_no_size(bundle: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "show", str(bundle), f"--size={size}"]) == 2
    assert "not the size of a picture" in capsys.readouterr().err


def test_one_picture_at_a_time(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "show", str(bundle), "--size", "3x4", "--image", "a.png"]) == 2
    assert run(["models", "show", str(bundle), "--image", "there-is-none.png"]) == 1
    assert "there-is-none.png" in capsys.readouterr().err
