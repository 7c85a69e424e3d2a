"""What every test shares: an empty data folder, and tiny models made once."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprism.language.model import LanguageModel
from edgeprism.perceive.captioner import Captioner
from tests.helpers import bundles

# The tests are the CPU's: what they expect is exact, and forked children cannot use a GPU that
# their parent has begun with. tests/machine/test_cuda.py is for the GPU: EDGEPRISM_TEST_CUDA=1.
if not os.environ.get("EDGEPRISM_TEST_CUDA"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before an engine loads

# A shell that runs the tests in the background has Ctrl-C ignored, and what the tests start would
# inherit that: the tests of Ctrl-C need it to arrive.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def _trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests leave for each other which models were tried."""
    return tmp_path_factory.mktemp("trials") / "tried.json"


@pytest.fixture(autouse=True)
def _own_home(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, _trials: Path
) -> Iterator[None]:
    """No test reads or writes the user's data folder, nor is swayed by the user's settings.

    Only the memory of trials passes from test to test: each would try the same tiny models.
    """
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("EDGEPRISM_HOME", str(home))
    for name in ("EDGEPRISM_MODEL", "EDGEPRISM_DEVICE", "EDGEPRISM_NATIVE_LOG", "NO_COLOR",
                 "FORCE_COLOR", "EDGEPRISM_OFFLINE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    if _trials.is_file():
        shutil.copy(_trials, home)
    yield
    if (home / _trials.name).is_file():
        shutil.copy(home / _trials.name, _trials)


@pytest.fixture(scope="session")
def random_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose captions depend on every pixel patch and every prompt token."""
    return bundles.write_bundle(tmp_path_factory.mktemp("random"), seed=1)


@pytest.fixture(scope="session")
def scripted_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that says bundles.SAID_TEXT of every picture."""
    return bundles.write_bundle(tmp_path_factory.mktemp("scripted"), script=bundles.SAID)


@pytest.fixture(scope="session")
def scripted_gguf(scripted_bundle: Path) -> Path:
    return scripted_bundle / "lm.gguf"


@pytest.fixture(scope="session")
def random_lm(random_bundle: Path) -> Iterator[LanguageModel]:
    lm = LanguageModel(random_bundle / "lm.gguf", threads=1)
    yield lm
    lm.close()


@pytest.fixture(scope="session")
def scripted_lm(scripted_gguf: Path) -> Iterator[LanguageModel]:
    lm = LanguageModel(scripted_gguf, threads=1)
    yield lm
    lm.close()


@pytest.fixture
def captioner(random_bundle: Path) -> Iterator[Captioner]:
    with Captioner.load(random_bundle, threads=1, kv_type="f32", flash_attention=False) as it:
        yield it


@pytest.fixture
def scripted_captioner(scripted_bundle: Path) -> Iterator[Captioner]:
    with Captioner.load(scripted_bundle, threads=1) as it:
        yield it


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A small colourful picture."""
    pixels = np.random.default_rng(7).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path
