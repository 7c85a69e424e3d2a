"""Several pictures in one prompt: rows, text between them, record, command line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprism.bundle.manifest import Several
from edgeprism.cli.main import run
from edgeprism.errors import ImageError, UsageError
from edgeprism.perceive.captioner import Captioner
from edgeprism.segments import ImageRows, Text
from edgeprism.store.stored_record import record_to_caption
from tests.helpers import bundles

SEED = 1


def write(folder: Path, several: Several | None) -> Path:
    prompts = dataclasses.replace(bundles.make_manifest({}).prompts, several=several)
    return bundles.write_bundle(folder, SEED, prompts=prompts)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("several") / "b", Several("Image-{number}: ", "\n"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = []
    for seed, size in enumerate(((30, 20), (17, 40), (28, 28))):
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        paths.append(tmp_path_factory.mktemp("photos") / f"{seed}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture
def captioner(bundle: Path) -> Iterator[Captioner]:
    with Captioner.load(bundle, device="cpu", threads=1) as it:
        yield it


def test_rows_stand_in_order_with_text_between(captioner: Captioner, photos: list[Path]) -> None:
    each = [captioner.encode(photo) for photo in photos]
    together = captioner.encode_together(photos)
    n = bundles.N_TOKENS
    expected = np.concatenate([seen.visual_tokens for seen in each])
    np.testing.assert_array_equal(together.visual_tokens, expected)
    assert together.layout == (
        Text("Image-1: ", template=True), ImageRows(0, n),
        Text("\nImage-2: ", template=True), ImageRows(n, 2 * n),
        Text("\nImage-3: ", template=True), ImageRows(2 * n, 3 * n),
    )  # fmt: skip
    first, *_ = captioner.request(each[0], captioner.plan()).prompt
    parts = captioner.request(together, captioner.plan()).prompt
    # the short texts between the pictures are rows, too
    assert [type(part) is list for part in parts] == [True, False, True]
    before = parts[0]
    assert isinstance(first, list)
    assert isinstance(before, list)
    assert before[: len(first)] == first, "what stands before one picture stands before all"


def test_the_record_lists_each_picture(captioner: Captioner, photos: list[Path]) -> None:
    caption = captioner.caption(photos[:2], instruction="What changed?")
    record = caption.to_dict()
    digests = [hashlib.sha256(photo.read_bytes()).hexdigest() for photo in photos[:2]]
    assert record["together"] == [
        {"image": str(photos[0]), "image_sha256": digests[0], "image_size": [30, 20]},
        {"image": str(photos[1]), "image_sha256": digests[1], "image_size": [17, 40]},
    ]
    assert record["image"] == f"{photos[0]}, {photos[1]}"
    assert record["image_sha256"] not in digests
    assert record["tokens"]["visual"] == 2 * bundles.N_TOKENS
    assert record["timings_ms"]["encode"] > 0
    assert record_to_caption(json.loads(json.dumps(record))).together == caption.together
    assert captioner.caption(photos[1::-1]).to_dict()["image_sha256"] != record["image_sha256"]


def test_one_picture_is_no_several(captioner: Captioner, photos: list[Path]) -> None:
    alone = captioner.caption(photos[0])
    assert alone.together == ()
    assert captioner.caption([photos[0]]).text == alone.text
    with pytest.raises(UsageError, match="No picture"):
        captioner.caption([])


def test_a_model_made_for_one_refuses(tmp_path: Path, photos: list[Path]) -> None:
    with (
        Captioner.load(write(tmp_path / "b", None), device="cpu") as it,
        pytest.raises(UsageError, match="tiny takes one picture at a time"),
    ):
        it.caption(photos)


def test_what_is_wrong_with_one_names_it(captioner: Captioner, photos: list[Path]) -> None:
    with pytest.raises(ImageError, match=r"nosuch\.png"):
        captioner.caption([photos[0], photos[0].parent / "nosuch.png"])


def test_from_the_shell(
    bundle: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(photo) for photo in photos]
    assert run(["caption", *names, "--together", "--model", str(bundle), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [p["image"] for p in json.loads(out)["together"]] == names
    assert run(["caption", *names, "--together", "--model", str(bundle), "--csv", "--txt"]) == 2
    assert "--csv and --txt are for many" in capsys.readouterr().err
    assert run(["caption", "-", "-", "--together", "--model", str(bundle)]) == 2
    assert "one picture" in capsys.readouterr().err
    assert run(["caption", *names, "--together"]) == 2, "nano was made for one at a time"
    out, err = capsys.readouterr()
    assert out == ""
    assert "nano takes one picture at a time" in err


def test_all_their_rows_count(
    bundle: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures that exceed the context are refused before prefill."""
    many = [str(photos[0])] * (bundles.CONTEXT // bundles.N_TOKENS + 1)
    assert run(["caption", *many, "--together", "--model", str(bundle)]) == 1
    assert "the model reads at most 2048" in capsys.readouterr().err


def test_what_several_cost_is_known_before(
    bundle: Path, photos: list[Path], captioner: Captioner, capsys: pytest.CaptureFixture[str]
) -> None:
    together = captioner.request(captioner.encode_together(photos), captioner.plan())
    images = [word for photo in photos for word in ("--image", str(photo))]
    assert run(["models", "show", str(bundle), *images, "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert (cost["pictures"], cost["tiles"]) == (3, 3)
    assert cost["visual_tokens"] == 3 * bundles.N_TOKENS
    assert cost["prompt_tokens"] == together.count()
    assert run(["models", "show", str(bundle), "--size", "30x20", "--size", "17x40"]) == 0
    assert "pictures: 2" in capsys.readouterr().out
    assert run(["models", "show", "nano", "--size", "30x20", "--size", "17x40"]) == 2
    assert "nano takes one picture at a time" in capsys.readouterr().err
