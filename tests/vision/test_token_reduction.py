"""Fewer visual tokens: which rows stay, and that everything that depends on them knows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeprism.bench.measure import Order
from edgeprism.bundle.manifest import FreeShape, Mmproj, Several
from edgeprism.cli.main import run
from edgeprism.errors import UsageError
from edgeprism.evaluation.matrix import Matrix
from edgeprism.folder.run import caption_folder
from edgeprism.folder.tuning import machine_key
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.layout import NEWLINE, PictureLayout, picture_to_layout
from edgeprism.segments import ImageRows, Segment, Text
from edgeprism.store.caption_store import CaptionStore, default_path
from edgeprism.store.stored_captioner import StoredCaptioner, request_key
from edgeprism.store.stored_record import record_to_caption
from edgeprism.vision.token_reduction import (
    CONSTANT,
    METHOD,
    TokenLimit,
    diverse_rows,
    limit_for,
    most_rows,
    reduce_rows,
    reduce_segments,
    rows_to_tiles,
)
from tests.helpers import bundles
from tests.picture.test_layout import BEST_FIT_POLICY, CLOSEST_POLICY, LONGEST_POLICY, picture
from tests.vision.test_tiled_bundle import write

Captured = pytest.CaptureFixture[str]
POLICIES = {"best-fit": BEST_FIT_POLICY, "closest-ratio": CLOSEST_POLICY, "marks": LONGEST_POLICY}
SIZES = [(300, 90), (61, 400), (28, 28)]


# ---- which rows stay


def by_the_paper(rows: np.ndarray, count: int) -> list[int]:
    """Choose rows as DivPrune's algorithm 1 does, one distance at a time."""

    def distance(a: int, b: int) -> float:
        lengths = np.linalg.norm(rows[a]) * np.linalg.norm(rows[b])
        return float(1 - rows[a] @ rows[b] / lengths)

    everyone = range(len(rows))
    first = max(everyone, key=lambda a: min(distance(a, b) for b in everyone if b != a))
    chosen = [first]
    while len(chosen) < count:
        rest = [a for a in everyone if a not in chosen]
        chosen.append(max(rest, key=lambda a: min(distance(a, b) for b in chosen)))
    return sorted(chosen)


@pytest.mark.parametrize("count", [1, 2, 7, 29, 30])
def test_the_rows_are_those_of_the_paper(count: int) -> None:
    rows = np.random.default_rng(count).standard_normal((30, 12), dtype=np.float32)
    assert diverse_rows(rows, count).tolist() == by_the_paper(rows.astype(np.float64), count)


def test_one_of_each_kind_stays() -> None:
    """Of six kinds of rows, some of them rare, each has one row among six."""
    rng = np.random.default_rng(3)
    kinds = rng.standard_normal((6, 40))
    kind_of_row = np.array([0] * 60 + [1] * 30 + [2, 3, 4, 5, 5])
    rows = kinds[kind_of_row] + rng.normal(0, 0.01, (len(kind_of_row), 40))
    assert sorted(kind_of_row[diverse_rows(rows.astype(np.float32), 6)]) == list(range(6))


def test_rows_without_a_direction_do_no_harm() -> None:
    rows = np.zeros((5, 4), np.float32)
    rows[3] = 1
    assert len(set(diverse_rows(rows, 2).tolist())) == 2
    assert diverse_rows(rows, 9).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("n_rows", "limit", "stay"),
    [(728, 196, 196), (81, 196, 81), (728, "auto", 182), (832, "auto", 208), (81, "auto", 64),
     (16, "auto", 16), (729, "auto", 183), (728, None, 728)],
)  # fmt: skip
def test_how_many_stay(n_rows: int, limit: Any, stay: int) -> None:
    assert most_rows(n_rows, limit) == stay


def numbered(segments: tuple[Segment, ...]) -> list[str | int]:
    return [s.text if isinstance(s, Text) else s.stop - s.start for s in segments
            if isinstance(s, (Text, ImageRows))]  # fmt: skip


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("limit", [1, 3, 20, 41, 10_000])
def test_tiles_keep_their_share_their_order_and_their_marks(
    kind: str, limit: int, tmp_path: Path
) -> None:
    bundle = write(tmp_path / "b", POLICIES[kind], newline=kind == "best-fit")
    manifest = Captioner.load(bundle).bundle.manifest
    for size in SIZES:
        layout = picture_to_layout(size, manifest)
        tiles = rows_to_tiles(manifest, layout, layout.segments)
        rows = np.random.default_rng(5).standard_normal((len(tiles), 8), dtype=np.float32)
        rows[:, 0] = np.arange(len(rows))  # tells the rows apart
        kept, segments = reduce_rows(rows, layout.segments, tiles, limit)
        assert numbered(segments) == numbered(reduce_segments(layout.segments, tiles, limit))
        assert len(kept) == min(limit, len(rows))
        assert (np.diff(kept[:, 0]) > 0).all(), "the rows that stay keep their order"
        texts = [part for part in numbered(segments) if isinstance(part, str)]
        assert texts == [part for part in numbered(layout.segments) if isinstance(part, str)]
        counted = sum(part for part in numbered(segments) if isinstance(part, int))
        assert counted == len(kept)
        of_tiles = tiles[kept[:, 0].astype(int)]
        numbers = [tile for tile in np.unique(tiles) if tile != NEWLINE]
        if len(numbers) <= limit < len(rows):
            shares = [(of_tiles == n).sum() / (tiles == n).sum() for n in numbers]
            assert min(shares) > 0, "each tile is seen"
            whole = [(tiles == n).sum() for n in numbers]
            assert max(shares) - min(shares) <= 1.01 / min(whole) + 1 / limit


def test_tiles_of_shapes_of_their_own() -> None:
    manifest = bundles.make_manifest({})
    free = FreeShape("smart-resize", unit=14, least_pixels=1, most_pixels=10_000)
    manifest = dataclasses.replace(manifest, image=dataclasses.replace(manifest.image, free=free))
    shapes = ((28, 42), (14, 14), (28, 28))  # 6, 1 and 4 visual tokens
    layout = PictureLayout((1, 2), shapes, np.arange(11, dtype=np.int32), (ImageRows(0, 11),))
    tiles = rows_to_tiles(manifest, layout, layout.segments)
    assert tiles.tolist() == [0] * 6 + [1] + [2] * 4


@pytest.mark.parametrize("limit", [1, 3, 4, 5])
def test_learned_rows_stay_where_there_is_room(limit: int) -> None:
    manifest = bundles.make_manifest({})
    vision = dataclasses.replace(
        manifest.vision, grid=[1, 10], tokens_per_tile=10, constant_rows=[1, 2]
    )
    manifest = dataclasses.replace(manifest, vision=vision)
    layout = picture_to_layout((30, 20), manifest)
    tiles = rows_to_tiles(manifest, layout, layout.segments)
    assert tiles.tolist() == [CONSTANT, *[0] * 7, CONSTANT, CONSTANT]
    rows = np.random.default_rng(5).standard_normal((10, 8), dtype=np.float32)
    rows[[0, 8, 9]] = rows[3]  # by their likeness alone they would be left out
    chosen, segments = reduce_rows(rows, layout.segments, tiles, limit)
    alike = (chosen == rows[3]).all(axis=1)
    assert len(chosen) == limit
    assert bool(alike[0] and alike[-2:].all()) == (limit >= 4)
    assert numbered(segments) == numbered(reduce_segments(layout.segments, tiles, limit))


def test_newline_rows_stay_in_the_square_root_of_the_share(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", BEST_FIT_POLICY, newline=True)
    manifest = Captioner.load(bundle).bundle.manifest
    layout = picture_to_layout((300, 300), manifest)
    tiles = rows_to_tiles(manifest, layout, layout.segments)
    newlines = int((tiles == NEWLINE).sum())
    assert newlines == 8  # 2 × 2 tiles of 4 × 4 patches
    rows = np.random.default_rng(0).standard_normal((len(tiles), 8), dtype=np.float32)
    rows[:, 0] = tiles
    kept, _ = reduce_rows(rows, layout.segments, tiles, len(tiles) // 4)
    assert (kept[:, 0] == NEWLINE).sum() == 4
    assert kept[-1, 0] == NEWLINE, "the last row of patches has its end"


# ---- captions


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a mark before each tile."""
    return write(tmp_path_factory.mktemp("marked") / "b", LONGEST_POLICY)


@pytest.fixture
def fewer(marked: Path) -> Iterator[Captioner]:
    with Captioner.load(marked, threads=1, visual_tokens=40) as it:
        yield it


@pytest.fixture
def whole(marked: Path) -> Iterator[Captioner]:
    with Captioner.load(marked, threads=1) as it:
        yield it


def test_a_caption_from_fewer_rows(fewer: Captioner, whole: Captioner) -> None:
    pixels = picture((300, 90))
    every, some = whole.encode(pixels), fewer.encode(pixels)
    positions = [np.flatnonzero((every.visual_tokens == row).all(axis=1)) for row in
                 some.visual_tokens]  # fmt: skip
    assert len(positions) == 40
    assert all(len(position) == 1 for position in positions), "rows of the whole picture"
    caption = fewer.caption(some)
    assert caption.tokens.visual == 40 == fewer.cost((300, 90)).visual_tokens
    assert caption.reduction is not None
    record = json.loads(json.dumps(caption.to_dict()))
    encoded = len(every.visual_tokens)
    assert record["reduction"] == {"limit": 40, "encoded": encoded, "method": METHOD}
    assert record_to_caption(record).reduction == caption.reduction
    plain = whole.caption(every)
    assert plain.text != caption.text, "random weights say something else of other rows"
    assert "reduction" not in plain.to_dict()


def test_a_limit_that_is_never_reached(marked: Path, whole: Captioner) -> None:
    pixels = picture((300, 90))
    with Captioner.load(marked, threads=1, visual_tokens=np.int64(10_000)) as it:  # type: ignore[arg-type]
        caption = it.caption(pixels)
    assert caption.text == whole.caption(pixels).text
    assert json.loads(json.dumps(caption.to_dict()))["reduction"]["limit"] == 10_000


def test_rows_of_another_limit_are_refused(fewer: Captioner, whole: Captioner) -> None:
    pixels = picture((61, 90))
    for captioner, encoded in ((fewer, whole.encode(pixels)), (whole, fewer.encode(pixels))):
        with pytest.raises(UsageError, match="visual_tokens=40"):
            captioner.caption(encoded)


def test_a_limit_of_one_caption(marked: Path, fewer: Captioner, whole: Captioner) -> None:
    pixels = picture((300, 90))
    each: list[tuple[TokenLimit | None, Captioner]] = [(40, fewer), ("all", whole), (None, whole)]
    for limit, same in each:
        caption = whole.caption(pixels, visual_tokens=limit)
        plain = same.caption(pixels)
        assert (caption.text, caption.reduction) == (plain.text, plain.reduction)
        cost = whole.cost((300, 90), visual_tokens=limit)
        assert cost.visual_tokens == caption.tokens.visual
    assert fewer.caption(pixels, visual_tokens="all").text == whole.caption(pixels).text
    limited = whole.plan(visual_tokens=40)
    assert request_key(whole, limited) == request_key(fewer, fewer.plan())
    assert request_key(fewer, fewer.plan(visual_tokens="all")) == request_key(whole, whole.plan())
    with pytest.raises(UsageError, match="encoded with visual_tokens=None"):
        whole.caption(whole.encode(pixels), visual_tokens=40)


@pytest.mark.parametrize("limit", [0, -3, 1.5, "every", "12", True, [4]], ids=str)
def test_no_number_of_rows(limit: Any, scripted_bundle: Path) -> None:
    with pytest.raises(UsageError, match="visual_tokens"):
        Captioner.load(scripted_bundle, visual_tokens=limit)
    with Captioner.load(scripted_bundle) as it, pytest.raises(UsageError, match="visual_tokens"):
        it.plan(visual_tokens=limit)


def test_several_pictures_are_reduced_one_by_one(tmp_path: Path) -> None:
    prompts = dataclasses.replace(
        bundles.make_manifest({}).prompts, several=Several("Image-{number}: ", "\n")
    )
    bundle = bundles.write_bundle(tmp_path / "b", 1, prompts=prompts)
    sizes = ((30, 20), (20, 40))
    with Captioner.load(bundle, threads=1, visual_tokens=5) as it:
        caption = it.caption([picture(size) for size in sizes])
        assert caption.tokens.visual == 10 == it.cost(*sizes).visual_tokens
    assert caption.reduction is not None
    assert caption.reduction.encoded == 2 * bundles.N_TOKENS


# ---- rows with places down and across


def test_places_down_and_across_are_refused() -> None:
    manifest = bundles.make_manifest({})
    multi = Mmproj("qwen2vl_merger", multi_axis=True, tiles_together=False)
    vision = dataclasses.replace(manifest.vision, mmproj=multi)
    bound = dataclasses.replace(manifest, vision=vision)
    assert limit_for(bound, None) is limit_for(bound, "all") is None
    with pytest.raises(UsageError, match="M-RoPE") as caught:
        limit_for(bound, 9)
    assert "`visual_tokens`" in caught.value.hint
    lm = dataclasses.replace(manifest.lm, image_positions="down-across")  # the same, of a graph
    with pytest.raises(UsageError, match="M-RoPE"):
        limit_for(dataclasses.replace(manifest, lm=lm), "auto")
    placed = ImageRows(0, 6, positions=np.zeros((4, 6), np.int32))
    with pytest.raises(UsageError, match="M-RoPE"):
        reduce_rows(np.eye(6, dtype=np.float32), [placed], np.zeros(6, int), 3)


# ---- what must tell such captions from others


def test_the_store_keeps_them_apart(
    fewer: Captioner, whole: Captioner, photo: Path, tmp_path: Path
) -> None:
    keys = {request_key(it, it.plan()).key("aa") for it in (fewer, whole)}
    assert len(keys) == 2
    assert machine_key(fewer) != machine_key(whole)
    matrices = [Matrix([it], []) for it in (fewer, whole)]
    assert len({json.dumps(m.captioner_id(fewer.bundle.name)) for m in matrices}) == 2
    with CaptionStore(tmp_path / "store.sqlite3") as store:
        captions = [StoredCaptioner(it, store).caption(str(photo)) for it in (fewer, whole)]
        again = [StoredCaptioner(it, store).caption(str(photo)) for it in (fewer, whole)]
    assert captions[0].text != captions[1].text
    assert [caption.text for caption in again] == [caption.text for caption in captions]
    assert [c.tokens.visual < d.tokens.visual for c, d in [captions, again]] == [True, True]


def test_keys_of_earlier_versions_stay(whole: Captioner) -> None:
    settings = json.loads(request_key(whole, whole.plan()).settings())
    assert "visual_tokens" not in settings
    assert "reduction" not in settings


def test_a_folder_with_another_limit_begins_anew(
    fewer: Captioner, whole: Captioner, tmp_path: Path
) -> None:
    for number, size in enumerate(SIZES):
        Image.fromarray(picture(size)).save(tmp_path / f"{number}.png")
    for captioner, known in ((fewer, 0), (whole, 0), (fewer, 3)):
        result = caption_folder(tmp_path, captioner, sidecars=("xmp",), overwrite=True)
        assert (result.known, result.captioned + result.known) == (known, 3)
        xmp = (tmp_path / "0.xmp").read_text()
        assert ("visualTokens" in xmp) == (captioner is fewer)
    with CaptionStore(default_path()) as store:
        visual = sorted(record["tokens"]["visual"] for record in store.records())
    assert visual[:3] == [40, 40, 40]
    assert len(visual) == 6
    assert min(visual[3:]) > 40


def test_the_memory_plan_counts_fewer(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", LONGEST_POLICY)

    def cells(limit: int | None) -> int:
        with Captioner.load(bundle, threads=1, device="cpu", visual_tokens=limit) as it:
            parts = it.engines.memory_parts().parts
        return sum(part.size for part in parts if part.what == "KV cache")

    assert cells(8) < cells(None)


# ---- the command line


def test_the_option(marked: Path, photo: Path, capsys: Captured) -> None:
    command = ["caption", str(photo), "-m", str(marked), "--max-tokens", "3", "--json"]
    assert run([*command, "--visual-tokens", "7"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["tokens"]["visual"] == 7
    assert record["reduction"]["limit"] == 7
    assert run([*command, "--visual-tokens", "auto"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"]["visual"] == 64
    assert run([*command, "--visual-tokens", "all"]) == 0
    assert "reduction" not in json.loads(capsys.readouterr().out)
    for wrong in ("0", "-1", "every", "2.5", "9" * 5000):
        assert run([*command, "--visual-tokens", wrong]) == 2
        assert "neither a number of at least 1 nor auto" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["caption", "ask", "chat", "serve", "bench", "eval", "doctor"])
def test_every_command_that_captions_has_it(command: str, capsys: Captured) -> None:
    assert run([command, "--help"]) == 0
    assert "--visual-tokens N|auto" in capsys.readouterr().out


def test_bench_passes_it_on() -> None:
    order = Order("nano", None, ["a.png"], 1, visual_tokens="auto")
    command = order.command("a.png")
    assert command[command.index("--visual-tokens") + 1] == "auto"
