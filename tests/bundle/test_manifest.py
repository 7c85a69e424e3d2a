"""Manifests are read strictly: one error lists every fault, each with its field's path."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprism.bundle.manifest import FILE_NAME, FileEntry
from edgeprism.bundle.manifest_language import RowWeights
from edgeprism.bundle.read_manifest import (
    MAX_MANIFEST_BYTES,
    manifest_from_bundle,
    manifest_from_json,
)
from edgeprism.errors import ManifestError
from edgeprism.picture.layout import NEWLINE, most_visual_tokens, picture_to_layout
from tests.helpers import bundles

FILES = {name: FileEntry("0" * 64, 1) for name in ("lm.gguf", "vision.fp32.onnx")}


def good() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(bundles.make_manifest(FILES).to_json())
    data["parity"]["figures"] = {"vision": {"relative_error": 0.01}}
    return data


def tiled() -> dict[str, Any]:
    """A manifest that uses every optional mechanism."""
    data = good()
    data["image"] |= {"max_tiles": 5, "tiling": {
        "choose": "best-fit", "grids": [[1, 2], [2, 1], [2, 2]], "longest_edge": 0,
        "overview": "first", "order": "rows-unpadded"}}  # fmt: skip
    data["vision"]["newline"] = "newline"
    names = ("begin", "before_overview", "before_tile", "after_row", "between", "end")
    data["prompts"]["markers"] = dict.fromkeys(names, "<x>") | {"before_tile": "", "after_row": ""}
    data["prompts"]["several"] = {"before": "<x>{number}", "between": "\n"}
    return data


def free() -> dict[str, Any]:
    """A manifest of a graph whose tiles have a shape of their own."""
    data = good()
    shape = {"choose": "smart-resize", "unit": 14, "least_pixels": 196, "most_pixels": 40 * 196}
    data["image"] |= {"mode": "free", "size": 84, "free": shape}
    data["vision"] |= {"grid": [6, 6], "tokens_per_tile": 40}
    data["lm"]["image_positions"] = "down-across"
    return data


def shrunk() -> dict[str, Any]:
    """A manifest of pictures that are shrunk to fit, whose lines of patches a row ends."""
    data = free()
    shape = {"choose": "shrink-to-fit", "unit": 14, "least_pixels": 196, "most_pixels": 140 * 84}
    data["image"]["free"] = {**shape, "canvas": [140, 84]}
    data["vision"] |= {"grid": [6, 6], "tokens_per_tile": 60, "newline": "newline"}
    del data["lm"]["image_positions"]
    return data


def expert() -> dict[str, Any]:
    """A manifest of a model whose image rows go through a second one."""
    data = good()
    data["files"]["lm.rows.gguf"] = data["files"]["lm.gguf"]
    data["vision"] |= {"grid": [1, 16], "constant_rows": [1, 1]}
    rows = {"by": "expert", "file": "lm.rows.gguf", "own_last": 1}
    data["lm"] |= {"image_positions": "shared", "rows": rows}
    return data


def sliced() -> dict[str, Any]:
    """A manifest of a graph with queries, whose pictures are cut into tiles of a free shape."""
    data = free()
    shape = {"choose": "equal-area", "unit": 14, "least_pixels": 84 * 84, "most_pixels": 54 * 196}
    data["image"] |= {"free": {**shape, "tokens": 8}, "max_tiles": 4, "tiling": {
        "choose": "by-pixels", "grids": [[2, 1], [1, 2], [3, 1], [1, 3]], "longest_edge": 0,
        "overview": "first", "order": "tiles",
    }}  # fmt: skip
    data["vision"] |= {"grid": [1, 8], "tokens_per_tile": 8}
    del data["lm"]["image_positions"]
    data["prompts"]["several"] = {"before": "", "between": "", "index": "<{index}>"}
    names = ("begin", "before_overview", "before_tile", "after_row", "between", "end",
             "after_overview", "after_tile", "between_rows", "after_tiles")  # fmt: skip
    data["prompts"]["markers"] = {name: f"<{name}>" for name in names}
    return data


OPTIONAL = (
    "image/tiling",
    "image/second_fill",
    "image/free",
    "image/free/tokens",
    "lm/image_positions",
    "lm/encodes",
    "lm/rows",
    "lm/rows/own_last",
    "vision/constant_rows",
    "vision/mmproj",
    "vision/newline",
    "prompts/markers",
    "prompts/markers/after_overview",
    "prompts/markers/after_tile",
    "prompts/markers/after_tiles",
    "prompts/markers/between_rows",
    "prompts/after_instruction",
    "prompts/several",
    "prompts/several/index",
)


def faults_of(data: Any) -> list[str]:
    text = data if isinstance(data, (str, bytes)) else json.dumps(data)
    with pytest.raises(ManifestError) as caught:
        manifest_from_json(text, "here/manifest.json")
    assert caught.value.exit_code == 4
    assert "here/manifest.json" in caught.value.message
    for fault in caught.value.faults:
        assert fault in caught.value.message
    return caught.value.faults


def put(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of `data` with `value` at a path such as `image/tiling/grids/0`."""
    data = copy.deepcopy(data)
    parent: Any = data
    *lead, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    for step in lead:
        parent = parent[step]
    parent[last] = value
    return data


def test_round_trip() -> None:
    manifest = bundles.make_manifest(FILES)
    assert manifest_from_json(manifest.to_json(), "m") == manifest
    assert json.loads(manifest_from_json(json.dumps(good()), "m").to_json()) == good()


def test_fields_that_earlier_versions_refuse_stand_only_where_they_are_needed() -> None:
    data = good()
    assert "photographs" not in data
    assert "unknown" not in data["prompts"]
    assert "free" not in data["image"]
    assert "image_positions" not in data["lm"]
    assert "repetition_penalty" not in data["prompts"]
    data["prompts"]["repetition_penalty"] = 1.5
    data["photographs"], data["prompts"]["unknown"] = False, ["I see nothing."]
    manifest = manifest_from_json(json.dumps(data), "m")
    assert json.loads(manifest.to_json()) == data
    assert manifest.says_nothing(" I see nothing.\n")
    assert manifest.says_nothing("")
    assert not manifest.says_nothing("I see nothing but a dog.")
    data["prompts"]["unknown"], data["prompts"]["repetition_penalty"] = [" "], 0.5
    with pytest.raises(ManifestError, match=r"(?s)prompts\.unknown.*prompts\.repetition_penalty"):
        manifest_from_json(json.dumps(data), "m")


def test_shapes_that_are_free() -> None:
    manifest = manifest_from_json(json.dumps(free()), "m")
    assert json.loads(manifest.to_json()) == free()
    for path, value, fault in (
        ("image/free", None, "image.free: is missing"),
        ("image/mode", "stretch", "image.free: is for the mode free"),
        ("image/free/choose", "any", "image.free.choose: 'any'"),
        ("image/tiling", EDGE, "image.tiling: needs the choice closest-ratio"),
        ("image/free/unit", 0, "image.free.unit"),
        ("image/free/unit", 400, "image.free.most_pixels: must have room for a unit"),
        ("image/free/most_pixels", 1 << 40, "image.free.most_pixels"),
        ("image/free/least_pixels", 0, "image.free.least_pixels"),
        ("image/free/least_pixels", 41 * 196, "image.free.least_pixels"),
        ("image/size", 98, "image.size: 98, but the largest square tile has 84"),
        ("vision/grid", [5, 8], "vision.grid: [5, 8], but the largest square"),
        ("vision/tokens_per_tile", 36, "vision.tokens_per_tile: 36, but the largest tile has 40"),
        ("vision/drop_first_patch", True, "vision.drop_first_patch: not for"),
        (
            "lm/image_positions",
            "up",
            "lm.image_positions: 'up'; known: one-by-one, down-across, shared",
        ),
    ):
        assert any(fault in each for each in faults_of(put(free(), path, value))), fault
    tiles = put(tiled(), "lm/image_positions", "down-across")
    (fault,) = faults_of(tiles)
    assert fault.startswith("lm.image_positions: down-across needs one tile, a graph, and")


def encoded() -> dict[str, Any]:
    """A manifest of a model with an encoder."""
    data = good()
    data["lm"] |= {"image_attention": "both-ways", "encodes": True}
    return data


def test_a_model_with_an_encoder() -> None:
    manifest = manifest_from_json(json.dumps(encoded()), "m")
    assert json.loads(manifest.to_json()) == encoded()
    assert "encodes" not in good()["lm"]
    for path, value, fault in (
        ("lm/encodes", "yes", "lm.encodes"),
        ("lm/image_attention", "causal", "an encoder lets all rows look at each other"),
        ("lm/image_positions", "down-across", "an encoder counts its rows"),
    ):
        assert any(fault in each for each in faults_of(put(encoded(), path, value))), fault


def test_slices_with_a_fixed_number_of_visual_tokens() -> None:
    manifest = manifest_from_json(json.dumps(sliced()), "m")
    assert json.loads(manifest.to_json()) == sliced()
    without = sliced()
    for name in ("after_overview", "after_tile", "between_rows", "after_tiles"):
        del without["prompts"]["markers"][name]
    read = manifest_from_json(json.dumps(without), "m")
    assert json.loads(read.to_json()) == without  # as earlier versions write and read it
    for path, value, fault in (
        ("image/free/tokens", -1, "image.free.tokens: must lie in 0…1024"),
        ("image/free/tokens", 1025, "image.free.tokens: must lie in 0…1024"),
        ("image/free/tokens", 9, "vision.grid: [1, 8], but the largest square tile has [1, 9]"),
        ("image/free/choose", "smart-resize", "needs the choice closest-ratio"),
        ("image/tiling/choose", "closest-ratio", "needs the choice by-pixels"),
        ("image/tiling/order", "rows", "and the order tiles"),
        ("image/tiling/order", "rows", "between_rows need image.tiling.order tiles"),
        ("image/tiling/uncut_pixels", 1, "image.tiling.choose: by-pixels needs"),
        ("image/size", 98, "image.size: 98, but the largest square tile has 84"),
        ("image/max_tiles", 5, "image.max_tiles: 5, but the tiling makes 4"),
        ("vision/tokens_per_tile", 36, "vision.tokens_per_tile: 36, but the largest tile has 8"),
        ("lm/image_positions", "down-across", "and a place for each visual token"),
        ("prompts/markers/after_tiles", "x" * 1001, "after_tiles: longer than"),
    ):
        assert any(fault in each for each in faults_of(put(sliced(), path, value))), fault
    squares = put(tiled(), "image/tiling/choose", "by-pixels")
    assert any("by-pixels needs image.free" in fault for fault in faults_of(squares))


def test_pictures_that_are_shrunk_to_fit() -> None:
    manifest = manifest_from_json(json.dumps(shrunk()), "m")
    assert json.loads(manifest.to_json()) == shrunk()
    other = manifest_from_json(json.dumps(free()), "m").to_json()
    assert '"canvas"' not in other  # as earlier versions read it
    for size, tile, n_rows in (
        ((14, 14), (14, 14), 2), ((15, 13), (28, 14), 3), ((140, 84), (140, 84), 66),
        ((1400, 84), (140, 14), 11), ((10, 900), (14, 84), 12), ((9000, 1), (140, 14), 11),
    ):  # fmt: skip
        made = picture_to_layout(size, manifest)
        assert made.shapes == ((tile[1], tile[0]),)
        assert len(made.rows) == n_rows <= most_visual_tokens(manifest) == 66
        lines = made.rows.reshape(tile[1] // 14, -1)
        assert (lines[:, -1] == NEWLINE).all()
        assert lines[:, :-1].ravel().tolist() == list(range(n_rows - len(lines)))
    for path, value, fault in (
        ("image/free/canvas", [], "image.free.canvas: must be a width and a height"),
        ("image/free/canvas", [140], "image.free.canvas: must be"),
        ("image/free/canvas", [84, 140, 1], "image.free.canvas: must be"),
        ("image/free/canvas", [147, 80], "image.free.canvas: must be"),
        ("image/free/canvas", [140, 0], "image.free.canvas: must be"),
        ("image/free/canvas", [140 * 84, 1 << 40], "image.free.canvas: must be"),
        ("image/free/most_pixels", 140 * 98, "image.free.canvas: must be"),
        ("image/free/choose", "smart-resize", "image.free.canvas: must be"),
        ("image/size", 98, "image.size: 98, but the largest square tile has 84"),
        ("image/free/tokens", 6, "vision.newline: needs whole rows"),
        ("lm/image_positions", "down-across", "vision.newline: needs whole rows"),
        ("vision/tokens_per_tile", 36, "vision.tokens_per_tile: 36, but the largest tile has 60"),
    ):
        assert any(fault in each for each in faults_of(put(shrunk(), path, value))), (path, value)
    tiling = tiled()["image"]["tiling"]
    assert any("image.tiling" in each for each in faults_of(put(shrunk(), "image/tiling", tiling)))


def test_a_decoder_among_whose_tokens_the_rows_stand() -> None:
    data = good()
    data["files"]["lm.onnx"] = data["files"]["lm.gguf"]
    data["lm"]["decoder"] = {"file": "lm.onnx", "cross": "", "n_layers": 2, "n_heads": 2,
                             "head_dim": 8, "clean_up": ""}  # fmt: skip
    assert json.loads(manifest_from_json(json.dumps(data), "m").to_json()) == data
    for path, value, fault in (
        ("lm/decoder/cross", "lm.cross.onnx", "'lm.cross.onnx' is not among files"),
        ("vision/n_embd", 7, "vision.n_embd: differs from lm.n_embd, without lm.decoder.cross"),
        ("lm/image_attention", "both-ways", "must be causal"),
    ):
        assert any(fault in each for each in faults_of(put(data, path, value))), path


def test_rows_that_go_through_an_expert() -> None:
    assert "rows" not in good()["lm"]
    manifest = manifest_from_json(json.dumps(expert()), "m")
    assert json.loads(manifest.to_json()) == expert()
    without = expert()
    del without["lm"]["rows"]["own_last"]
    read = manifest_from_json(json.dumps(without), "m")
    assert read.lm.rows == RowWeights("expert", "lm.rows.gguf", own_last=0)
    assert json.loads(read.to_json()) == without
    tiling = tiled()["image"]["tiling"]
    for path, value, fault in (
        ("lm/rows/by", "magic", "lm.rows.by: 'magic'; known: adapter, expert"),
        ("lm/rows/file", "rows.gguf", "lm.rows.file: 'rows.gguf' is not among files"),
        ("lm/rows/file", "lm.gguf", "lm.rows.file: 'lm.gguf' is the language model itself"),
        ("lm/rows/file", "x-00001-of-00002.gguf", "lm.rows.file: must be in one part"),
        ("lm/rows/own_last", 16, "lm.rows.own_last: must be less than vision.tokens_per_tile"),
        ("lm/rows/own_last", -1, "lm.rows.own_last: must be less than vision.tokens_per_tile"),
        ("lm/image_attention", "both-ways", "lm.rows.by: expert needs causal attention"),
        ("image/tiling", tiling, "lm.rows.by: expert needs pictures of one tile, and no video"),
        ("image/tiling", tiling, "lm.image_positions: shared needs one tile and a graph"),
    ):
        assert any(fault in each for each in faults_of(put(expert(), path, value))), fault


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        inner = [leaf for k, v in value.items() for leaf in leaves(v, f"{path}/{k}")]
        return [(path, value), *inner]
    if isinstance(value, list):
        inner = [leaf for i, v in enumerate(value) for leaf in leaves(v, f"{path}/{i}")]
        return [(path, value), *inner]
    return [(path, value)]


def fields() -> list[tuple[dict[str, Any], str, Any]]:
    """Return each field of manifests that use every mechanism: manifest, path, value."""
    return [
        (data, *leaf) for data in (tiled(), free(), sliced(), expert()) for leaf in leaves(data)
    ]


def dotted(path: str) -> str:
    steps = path.strip("/").split("/")
    return "".join(f"[{s}]" if s.isdigit() else f".{s}" for s in steps).lstrip(".")


def test_every_field_refuses_every_other_type() -> None:
    samples: list[Any] = [None, True, 3, 2.5, "text", [], {}, [None], {"x": None}]
    for manifest, path, value in fields():
        for wrong in samples:
            if wrong is None and path.strip("/") in (
                "image/tiling",
                "prompts/markers",
                "prompts/several",
                "lm/rows",
            ):
                continue  # null is valid: the model does not use the mechanism
            whole_number_for_a_figure = isinstance(value, float) and type(wrong) is int
            holds_anything = type(wrong) is type(value) and value not in ([], {})
            if type(wrong) is type(value) or whole_number_for_a_figure or not path:
                continue
            assert not holds_anything
            faults = faults_of(put(manifest, path.strip("/"), wrong))
            lead = dotted(path)
            if path != "/schema":
                assert any(f.startswith((f"{lead}: ", f"{lead}.")) for f in faults), (
                    path,
                    wrong,
                    faults,
                )


def test_every_missing_field_is_named() -> None:
    for manifest, path, value in fields():
        any_names = ("/files", "/parity/figures")  # objects with any field names
        if not isinstance(value, dict) or path.startswith(any_names):
            continue
        for name in value:
            if f"{path}/{name}".strip("/") in OPTIONAL:
                continue
            data = put(manifest, f"{path}/x".strip("/"), 0) if path else copy.deepcopy(manifest)
            parent: Any = data
            for step in filter(None, path.split("/")):
                parent = parent[int(step) if step.isdigit() else step]
            parent.pop("x", None)
            del parent[name]
            expected = f"{dotted(f'{path}/{name}')}: missing"
            if (path, name) == ("", "schema"):
                expected = "schema: 'none' is not supported; known: 1"
            assert expected in faults_of(data)


def test_learned_rows_of_a_tile() -> None:
    data = good()
    assert "constant_rows" not in data["vision"]
    data["vision"]["grid"] = [1, data["vision"]["tokens_per_tile"]]
    data["vision"]["constant_rows"] = [1, 1]
    assert json.loads(manifest_from_json(json.dumps(data), "m").to_json()) == data
    for rows in ([1], [-1, 1], [1, data["vision"]["tokens_per_tile"]]):
        data["vision"]["constant_rows"] = rows
        assert [f.split(":")[0] for f in faults_of(data)] == ["vision.constant_rows"]
    data["vision"] |= {"constant_rows": [0, 1], "grid": good()["vision"]["grid"]}
    assert [f.split(":")[0] for f in faults_of(data)] == ["vision.constant_rows"]


def test_every_unknown_field_is_named() -> None:
    for manifest, path, value in fields():
        if isinstance(value, dict) and not path.startswith(("/files", "/parity/figures")):
            data = put(manifest, f"{path}/surplus".strip("/"), 1)
            assert faults_of(data) == [f"{dotted(f'{path}/surplus')}: unknown field"]


def test_all_faults_are_told_at_once() -> None:
    data = good()
    data["colour"] = "red"
    del data["license"]
    data["image"]["size"] = "large"
    data["vision"]["variants"][0]["quant"] = 8
    data["files"]["lm.gguf"]["size"] = True
    assert sorted(faults_of(data)) == [
        "colour: unknown field",
        "files.lm.gguf.size: int is expected, not bool",
        "image.size: int is expected, not str",
        "license: missing",
        "vision.variants[0].quant: str is expected, not int",
    ]


def test_all_wrong_values_are_told_at_once() -> None:
    data = good()
    data["image"]["mode"] = "mirror"
    data["image"]["fill"] = [1, 2, 300]
    data["prompts"]["focus_instruction"] = "nothing to fill in"
    data["lm"]["image_attention"] = "full"
    leads = sorted(fault.partition(":")[0] for fault in faults_of(data))
    assert leads == ["image.fill", "image.mode", "lm.image_attention", "prompts.focus_instruction"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "  "),
        ("image/size", 0),
        ("image/size", 4097),
        ("image/size", 10**400),
        ("image/fill", [1, 2]),
        ("image/fill", [-1, 2, 3]),
        ("image/second_fill", [1, 2]),
        ("image/second_fill", [1, 2, 256]),
        ("image/resample", "sinc"),
        ("image/max_tiles", 2),
        ("vision/variants", []),
        ("vision/variants/0/quant", "int3"),
        ("vision/variants/0/file", "elsewhere.onnx"),
        ("vision/grid", [4]),
        ("vision/grid", [0, 4]),
        ("vision/tokens_per_tile", 15),
        ("vision/n_embd", 64),
        ("lm/n_embd", 0),
        ("lm/n_vocab", 0),
        ("lm/context_length", 0),
        ("lm/file", "other.gguf"),
        ("prompts/focus_instruction", "{focus} and {focus}"),
        ("prompts/stop", ["x", ""]),
        ("prompts/max_tokens", 0),
        ("prompts/max_tokens", 65537),
        ("files/lm.gguf/sha256", "0" * 63),
        ("files/lm.gguf/sha256", "A" * 64),
        ("files/lm.gguf/sha256", "０" * 64),
        ("files/lm.gguf/size", -1),
    ],
)
def test_values_that_cannot_be_meant(path: str, value: Any) -> None:
    lead = dotted(path)
    assert any(lead in fault for fault in faults_of(put(good(), path, value)))


@pytest.mark.parametrize("mode", ["crop", "center-crop", "stretch"])
def test_a_second_fill_needs_a_mode_that_fills(mode: str) -> None:
    data = put(good(), "image/second_fill", [1, 2, 3])
    assert manifest_from_json(json.dumps(data), "m").image.fills == [[127, 127, 127], [1, 2, 3]]
    for wrong in (put(data, "image/mode", mode), put(tiled(), "image/second_fill", [1, 2, 3])):
        assert any(fault.startswith("image.second_fill") for fault in faults_of(wrong))


def test_mechanisms_that_are_not_used_may_be_left_out() -> None:
    data = tiled()
    assert manifest_from_json(json.dumps(data), "m").image.tiling is not None
    for path in OPTIONAL:
        *lead, name = path.split("/")
        parent = data
        for step in lead:
            parent = parent.get(step) or {}
        parent.pop(name, None)
    data["image"]["max_tiles"] = 1
    assert manifest_from_json(json.dumps(data), "m") == bundles.make_manifest(
        FILES, parity=manifest_from_json(json.dumps(good()), "m").parity
    )


EDGE = {"choose": "longest-edge", "grids": [], "longest_edge": 100, "overview": "last",
        "order": "tiles"}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "lead"),
    [
        ({"image/tiling/choose": "guess"}, "image.tiling.choose"),
        ({"image/tiling/overview": "none"}, "image.tiling.overview"),
        ({"image/tiling/order": "columns"}, "image.tiling.order"),
        ({"image/tiling/grids": []}, "image.tiling.grids"),
        ({"image/tiling/grids": [[1, 2, 3]]}, "image.tiling.grids"),
        ({"image/tiling/grids": [[0, 2]]}, "image.tiling.grids"),
        ({"image/tiling/grids": [[1, 257]]}, "image.tiling.grids"),
        ({"image/tiling/longest_edge": 100}, "image.tiling.longest_edge"),
        # "closest-ratio" stretches, so there is no padding that an order could leave out
        ({"image/tiling/choose": "closest-ratio"}, "image.tiling.order"),
        ({"image/max_tiles": 4}, "image.max_tiles"),
        ({"image/max_tiles": 6}, "image.max_tiles"),
        ({"image/tiling/grids": [[17, 17]], "image/max_tiles": 290}, "image.max_tiles"),
        ({"image/tiling/order": "tiles"}, "vision.newline"),
        ({"prompts/markers/before_tile": "x"}, "prompts.markers"),
        ({"prompts/markers/after_row": "x"}, "prompts.markers"),
        ({"vision/newline": "visual_tokens"}, "vision.newline"),
        ({"image/tiling": None, "image/max_tiles": 1, "vision/separator": "s"}, "vision.separator"),
        (
            {"image/tiling": None, "image/max_tiles": 1, "vision/newline": "visual_tokens"},
            "vision.newline",
        ),
        (
            {"image/tiling": None, "image/max_tiles": 1, "vision/drop_first_patch": True},
            "vision.newline",
        ),
        ({"vision/newline": "", "image/tiling": None}, "image.max_tiles"),
        ({"vision/drop_first_patch": True, "vision/tokens_per_tile": 15}, "vision.drop_first"),
        ({"image/tiling": EDGE, "vision/newline": "", "image/max_tiles": 16}, "image.max_tiles"),
        ({"image/tiling": {**EDGE, "longest_edge": 28}}, "image.tiling.longest_edge"),
        ({"image/tiling": {**EDGE, "longest_edge": 4097}}, "image.tiling.longest_edge"),
        ({"image/tiling": {**EDGE, "grids": [[1, 1]]}}, "image.tiling.grids"),
    ],
)
def test_tilings_that_cannot_be_meant(changes: dict[str, Any], lead: str) -> None:
    data = tiled()
    for path, value in changes.items():
        data = put(data, path, value)
    assert any(fault.startswith(lead) for fault in faults_of(data)), faults_of(data)


def test_tilings_that_can() -> None:
    data = put(put(put(tiled(), "image/tiling", EDGE), "vision/newline", ""), "image/max_tiles", 17)
    assert manifest_from_json(json.dumps(data), "m").image.max_tiles == 17
    data = put(tiled(), "image/tiling", {**EDGE, "choose": "closest-ratio", "longest_edge": 0,
                                         "grids": [[1, 1], [3, 4]]})  # fmt: skip
    data = put(put(data, "vision/newline", ""), "image/max_tiles", 13)
    assert manifest_from_json(json.dumps(data), "m").image.max_tiles == 13


def lined() -> dict[str, Any]:
    """A manifest of tiles across, with an overview of fractions and learned rows between."""
    data = tiled()
    data["image"] |= {"tiling": {
        "choose": "most-across", "grids": [[1, 1], [1, 2], [2, 1], [2, 2]], "longest_edge": 0,
        "overview": "first", "order": "rows", "overview_filter": "bicubic", "overview_lines": True,
    }}  # fmt: skip
    data["vision"]["separator"] = "separator"
    return data


def test_lines_of_an_overview() -> None:
    manifest = manifest_from_json(json.dumps(lined()), "m")
    assert json.loads(manifest.to_json()) == lined()
    assert manifest.image.channels == 6
    assert manifest_from_json(json.dumps(good()), "m").image.channels == 3
    for path, value, fault in (
        ("image/tiling/grids", [[1, 2], [2, 1], [2, 2]], "choose: most-across needs [1, 1]"),
        ("image/tiling/overview_filter", "lanczos", "overview_filter: 'lanczos'; known: bicubic"),
        ("image/second_fill", [0, 0, 0], "overview_filter: not with image.free or image.second"),
        ("vision/newline", "", "overview_lines: needs vision.newline"),
        ("image/tiling/order", "tiles", "vision.separator: needs image.tiling.order rows"),
        ("vision/separator", "newline", "vision.separator: is vision.newline"),
        ("vision/separator", "visual_tokens", "vision.separator: is vision.output"),
        ("image/tiling", None, "vision.separator: needs image.tiling"),
    ):
        assert any(fault in each for each in faults_of(put(lined(), path, value))), fault
    for path in ("image/tiling/overview_filter", "image/tiling/overview_lines", "vision/separator"):
        whole = lined()
        part = whole["vision"] if path.startswith("vision") else whole["image"]["tiling"]
        del part[path.rsplit("/", 1)[1]]
        read = manifest_from_json(json.dumps(whole), "m")
        assert json.loads(read.to_json()) == whole  # as earlier versions write and read it


@pytest.mark.parametrize(
    ("path", "value", "count"), [("vision/grid", [4, 5], 20), ("vision/drop_first_patch", True, 15)]
)
def test_grid_and_count_of_tokens_must_agree(path: str, value: Any, count: int) -> None:
    expected = f"vision.tokens_per_tile: 16, but the grid makes {count}"
    assert faults_of(put(good(), path, value)) == [expected]


@pytest.mark.parametrize(
    "name",
    ["../lm.gguf", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "C:lm.gguf", "lm.gguf/",
     "a\0b", "\ud800", "manifest.json"],
)  # fmt: skip
def test_no_way_out_of_the_bundle(name: str) -> None:
    data = good()
    data["files"][name] = data["files"]["lm.gguf"]
    assert any("plain file name" in fault for fault in faults_of(data))


@pytest.mark.parametrize("name", ["écriture.gguf", "模型.gguf", "a b.gguf", ".hidden"])
def test_plain_names_of_any_script(name: str) -> None:
    data = good()
    data["files"][name] = data["files"]["lm.gguf"]
    assert name in manifest_from_json(json.dumps(data), "m").files


def test_one_variant_of_a_kind() -> None:
    data = good()
    data["vision"]["variants"] *= 2
    assert faults_of(data) == ["vision.variants[1].quant: 'fp32' is listed twice"]


def test_a_field_given_twice() -> None:
    text = json.dumps(good())
    assert "field given twice: name" in faults_of(text[:-1] + ', "name": "other"}')[0]
    inner = text.replace('"mode": "pad"', '"mode": "pad", "mode": "stretch"')
    assert "field given twice: mode" in faults_of(inner)[0]


@pytest.mark.parametrize("schema", [0, 2, 99, "1", None, [1]])
def test_another_schema_is_refused_before_its_fields(schema: Any) -> None:
    data = {"schema": schema, "whatever": 1}
    assert faults_of(data) == [f"schema: {schema!r} is not supported; known: 1"]


def test_true_is_not_schema_1() -> None:
    assert faults_of(put(good(), "schema", True)) == ["schema: int is expected, not bool"]


@pytest.mark.parametrize(
    "text",
    ["", "[", "null", "[]", "1", '"x"', "{", "{}", "\ufeff{}", b"\xff\xfe", b"\x80", "[" * 100_000,
     '{"a":' * 50_000, "NaN", "9" * 5000, "{'schema': 1}"],
    ids=range(16),
)  # fmt: skip
def test_what_is_not_a_manifest_at_all(text: str | bytes) -> None:
    assert faults_of(text)


def test_a_figure_beyond_all_floats() -> None:
    data = put(good(), "parity/figures/vision/relative_error", 10**400)
    assert faults_of(data) == ["parity.figures.vision.relative_error: too large a number"]


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / FILE_NAME, "wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(ManifestError, match="larger than"):
        manifest_from_bundle(tmp_path)


def test_random_damage_raises_nothing_else() -> None:
    rng = np.random.default_rng(5)
    text = json.dumps(good()).encode()
    kinds: list[Callable[[bytearray, int], None]] = [
        lambda d, i: d.__setitem__(i, int(rng.integers(0, 256))),
        lambda d, i: d.__delitem__(slice(i, i + int(rng.integers(1, 20)))),
        lambda d, i: d.insert(i, int(rng.choice(list(b'{}[]",:0-e.tn')))),
    ]
    for _ in range(1500):
        data = bytearray(text)
        for _ in range(int(rng.integers(1, 4))):
            kinds[int(rng.integers(0, 3))](data, int(rng.integers(0, len(data))))
        try:
            manifest_from_json(bytes(data), "m")
        except ManifestError as error:
            assert error.faults  # noqa: PT017 - either outcome is right


# ---- numbers that JSON has not, other encodings, sizes


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e999"])
def test_numbers_that_are_not_finite(number: str) -> None:
    text = json.dumps(good()).replace("0.01", number)
    assert number in text
    (fault,) = faults_of(text)
    assert number in fault


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings(encoding: str) -> None:
    (fault,) = faults_of(json.dumps(good()).encode(encoding))
    assert "not JSON" in fault


def test_a_mark_before_utf_8_does_no_harm() -> None:
    assert manifest_from_json(b"\xef\xbb\xbf" + json.dumps(good()).encode(), "here")


def test_many_fields_given_twice_are_told_at_once() -> None:
    names = ",".join(f'"f{i}":0,"f{i}":0' for i in range(40_000))
    began = time.monotonic()
    (fault,) = faults_of("{" + names + "}")
    assert time.monotonic() - began < 5
    assert "given twice: f0, f1," in fault
    assert "39990 more" in fault


@pytest.mark.parametrize("path", ["markers/before_tile", "markers/end", "several/before"])
def test_markers_are_short(path: str) -> None:
    data = tiled()
    data["image"]["tiling"]["order"] = "tiles"
    data["vision"]["newline"] = ""
    part, name = path.split("/")
    data["prompts"][part][name] = "<|im_start|>" * 20_000
    assert any(path.replace("/", ".") in fault for fault in faults_of(data))


def test_a_graph_under_a_name_of_another_format() -> None:
    data = good()
    data["files"]["vision.ORT"] = data["files"].pop("vision.fp32.onnx")
    data["vision"]["variants"][0]["file"] = "vision.ORT"
    (fault,) = faults_of(data)
    assert "vision.variants[0].file" in fault


def test_parts_of_a_language_model_are_listed_from_the_first_on() -> None:
    data = good()
    data["files"]["lm-00002-of-00003.gguf"] = data["files"].pop("lm.gguf")
    data["lm"]["file"] = "lm-00002-of-00003.gguf"
    (fault,) = faults_of(data)
    assert "not the first part" in fault
    data["files"]["lm-00001-of-00003.gguf"] = data["files"]["vision.fp32.onnx"]
    data["lm"]["file"] = "lm-00001-of-00003.gguf"
    (fault,) = faults_of(data)
    assert "lm-00003-of-00003.gguf" in fault
