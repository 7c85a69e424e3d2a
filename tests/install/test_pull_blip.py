"""`pull blip-base` from the hub to a caption: a tiny BLIP in the published layout, the real family.

`test_pull_converted.py` has what is said beforehand, full disks and damaged files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.cli.main import run
from edgeprism.errors import PullError
from edgeprism.files.home import data_dir
from edgeprism.install import pull as pull_module
from edgeprism.install.pull import pull
from tests.helpers.hub import StandInHub
from tests.helpers.tiny_blip import BlipReference, write_blip
from tests.helpers.tiny_captioners import Case, pictures

NAME, REPO = "blip-base", "Salesforce/blip-image-captioning-base"
WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"
Captured = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("plain_client")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_blip(tmp_path_factory.mktemp("blip") / "c", width=128, seed=43)


@pytest.fixture
def hub(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """The published repository: weights in three formats, of which one is wanted."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with StandInHub({}) as hub:
        hub.add_folder(REPO, case.settings["captioner"])
        hub.repositories[REPO] |= {
            PICKLED: b"the same once more" * 1000,
            "tf_model.h5": b"and once more" * 1000,
            "README.md": b"---\nlicense: bsd-3-clause\n---\n",
        }
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def test_what_is_pulled_says_what_the_published_model_says(
    hub: StandInHub, case: Case, tmp_path: Path, capfd: Captured
) -> None:
    """In float32, which rounds nothing, and although the hub cuts the connection half way."""
    half = len(hub.repositories[REPO][WEIGHTS]) // 2
    hub.budgets = {WEIGHTS: [half]}
    assert run(["pull", NAME, "--vision-quant", "fp32", "--lm-quant", "F32"]) == 0
    whole, rest = hub.downloads(WEIGHTS)
    assert (whole, rest.startswith("bytes=")) == ("", True)
    assert not hub.downloads(PICKLED)
    assert not hub.downloads("tf_model.h5")
    manifest = manifest_from_bundle(data_dir() / "models" / NAME)
    assert (manifest.family, manifest.lm.quant) == ("blip", "F32")
    assert manifest.license == "bsd-3-clause"
    assert isinstance(case.reference, BlipReference)
    for number, picture in enumerate(pictures()[:2]):
        path = tmp_path / f"{number}.png"
        picture.save(path)
        capfd.readouterr()
        command = ["caption", str(path), "--model", NAME, "--max-tokens", "40", "--json"]
        assert run(command) == 0
        record = json.loads(capfd.readouterr().out)
        assert record["model"]["name"] == NAME
        assert record["caption"] == case.reference.caption(picture, "a picture of").strip()
        assert record["caption"]


def test_half_of_the_weights_are_not_converted(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the rest is fetched by the next `pull`."""

    def refuse(*_: object) -> None:
        raise AssertionError("half of the weights were converted")

    monkeypatch.setattr(pull_module, "convert_in_child", refuse)
    half = len(hub.repositories[REPO][WEIGHTS]) // 2
    hub.budgets = {WEIGHTS: [half, *[0] * 9]}
    with pytest.raises(PullError, match=REPO):
        pull(NAME)
    assert not list((data_dir() / "models").glob("*"))
    n_downloads = len(hub.downloads(WEIGHTS))
    hub.budgets = {}
    with pytest.raises(AssertionError, match="half of the weights"):
        pull(NAME)
    (rest,) = hub.downloads(WEIGHTS)[n_downloads:]
    assert int(rest.removeprefix("bytes=").rstrip("-")) > half // 2
