"""On an NVIDIA GPU: the same tokens and texts as on the CPU.

    EDGEPRISM_TEST_CUDA=1 python -m pytest tests/machine/test_cuda.py

The tests need both engines built with CUDA (README, Installing); otherwise pytest skips them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeprism import Captioner
from edgeprism.folder.batch import Batch
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.llama import supports_offload
from edgeprism.language.model import LanguageModel
from edgeprism.language.prefix_states import PrefixStates
from edgeprism.language.request import Request, Sampling
from edgeprism.machine.device import ALL_LAYERS, GPU_PROVIDERS
from edgeprism.machine.onnx_runtime import available_providers
from edgeprism.models import nano as nano_package
from edgeprism.picture.find import find_pictures
from tests.helpers import bundles

pytestmark = pytest.mark.skipif(
    available_providers(GPU_PROVIDERS).get("CUDAExecutionProvider") != "" or not supports_offload(),
    reason="needs EDGEPRISM_TEST_CUDA, an NVIDIA GPU, and both engines built for it",
)
EXAMPLES = Path(nano_package.__file__).parent / "examples"
KNOWN = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["nano", "random"])
def pair(
    request: pytest.FixtureRequest, random_bundle: Path
) -> Iterator[tuple[Captioner, Captioner]]:
    """One bundle on the CPU and on the GPU: an int8 graph, and a tiny one in fp32."""
    # by default the CPU would choose another of nano's graphs than the GPU
    bundle, quant = ("nano", "int8") if request.param == "nano" else (random_bundle, None)
    with (
        Captioner.load(bundle, device="cpu", vision_quant=quant) as cpu,
        Captioner.load(bundle, device="cuda", vision_quant=quant) as gpu,
    ):
        yield cpu, gpu


@pytest.fixture(scope="module")
def nano() -> Iterator[Captioner]:
    with Captioner.load("nano", device="cuda") as it:
        yield it


def test_visual_tokens(pair: tuple[Captioner, Captioner]) -> None:
    cpu, gpu = (np.asarray(c.encode(EXAMPLES / KNOWN[0]["image"]).visual_tokens) for c in pair)
    # The GPU computes fp32 products as TensorFloat-32. In the int8 graph a value that rounds to
    # the neighbouring step changes later layers about as much as the quantization itself does.
    tolerance = 0.05 if pair[0].bundle.manifest.name == "nano" else 0.01
    assert np.abs(cpu - gpu).max() <= tolerance * np.abs(cpu).max()


def test_captions(nano: Captioner) -> None:
    for example in KNOWN:
        caption = nano.caption(EXAMPLES / example["image"])
        assert caption.device == "cuda"
        assert caption.text == example["caption"]


def test_a_folder(nano: Captioner) -> None:
    files = list(find_pictures([EXAMPLES]))
    outcomes = list(Batch(nano, nano.plan(), parallel=4, lanes=2).run(files))
    texts = {Path(o.record["image"]).name: o.record["caption"] for o in outcomes if o.record}
    assert texts == {example["image"]: example["caption"] for example in KNOWN}


def test_the_language_model_stays_on_the_cpu() -> None:
    with Captioner.load("nano", device="cuda", gpu_layers=0) as half:
        caption = half.caption(EXAMPLES / KNOWN[0]["image"])
    assert caption.device == "cuda+cpu"
    assert caption.text == KNOWN[0]["caption"]


def test_a_kept_state_gives_the_same_text(random_bundle: Path) -> None:
    """The KV cache of a prompt's beginning is copied from the GPU, and into it again."""
    examples = [int(i) for i in np.random.default_rng(7).integers(3, bundles.N_VOCAB, 300)]
    lm = LanguageModel(random_bundle / "lm.gguf", gpu_layers=ALL_LAYERS)
    states = PrefixStates("d" * 64)

    def ids(prefixes: PrefixStates | None, number: int) -> list[int]:
        sampling = Sampling(max_tokens=8, stop_at_end=False)
        request = Request((examples, [5, 6 + number]), sampling, keep_first=True)
        generator = Generator(lm, prefixes=prefixes)
        (ended,) = (e for e in generator.run([request]) if isinstance(e, Finished))
        generator.close()
        return ended.ids

    for number in range(8):
        assert ids(None, number) == ids(states, number) == ids(states, number)
    assert len(states._states) == 1
    lm.close()
