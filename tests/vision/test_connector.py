"""Visual tokens that depend on the instruction: the second graph, and what is kept for it."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from edgeprism.bench.run import _count_connector
from edgeprism.bench.work import Operations
from edgeprism.bundle import manifest as m
from edgeprism.bundle.open import open_bundle
from edgeprism.bundle.read_manifest import manifest_from_bundle, manifest_from_json
from edgeprism.errors import Interrupted, ManifestError, ModelError, UsageError
from edgeprism.folder.batch import Batch
from edgeprism.machine.onnx_runtime import GraphSession
from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.looking import Looking
from edgeprism.picture.find import PictureFile
from edgeprism.vision.wordpiece import WordPiece
from tests.helpers import bundles, instructed
from tests.helpers.serving import as_base64, serving

SEED = 4
TOWER = "vision.fp32.onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return instructed.write_instructed(tmp_path_factory.mktemp("instructed") / "b", SEED)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the graphs that ran, in order."""
    names: list[str] = []
    run = GraphSession.run

    def counted(self: GraphSession, *arguments: Any) -> list[np.ndarray]:
        names.append(self.path.name)
        return run(self, *arguments)

    monkeypatch.setattr(GraphSession, "run", counted)
    return names


def picture(seed: int = 0) -> np.ndarray:
    """A picture as large as a tile, so that nothing is resized."""
    shape = (bundles.SIZE, bundles.SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def expected(pixels: np.ndarray, instruction: str) -> np.ndarray:
    pieces = {piece: i for i, piece in enumerate(instructed.VOCABULARY)}
    tokenizer = WordPiece(pieces, max_ids=instructed.MAX_IDS, truncation="left")
    return instructed.rows_of(pixels[None], tokenizer.ids(instruction), SEED)


def test_rows_are_those_of_both_graphs_in_numpy(folder: Path) -> None:
    with Captioner.load(folder) as captioner:
        for seed in range(3):
            encoded = captioner.encode(picture(seed))
            assert encoded.instruction == "Describe the picture."
            np.testing.assert_allclose(
                encoded.visual_tokens, expected(picture(seed), "Describe the picture."), atol=1e-4
            )
            assert encoded.features is not None
            assert encoded.features.shape == (1, bundles.N_TOKENS, instructed.WIDTH)


def test_another_instruction_runs_the_connector_alone(folder: Path, runs: list[str]) -> None:
    with Captioner.load(folder) as captioner:
        encoded = captioner.encode(picture())
        assert runs == [TOWER, instructed.GRAPH]
        texts = {}
        for focus in ("", "a dog", "the red house"):
            caption = captioner.caption(encoded, focus=focus)
            texts[focus] = caption.text
            asked = caption.instruction
            assert caption.timings.encode > 0 if focus else caption.timings.encode == 0
            request = captioner.request(encoded, captioner.plan(focus=focus))
            (rows,) = [part for part in request.prompt if not isinstance(part, list)]
            np.testing.assert_allclose(rows.values, expected(picture(), asked), atol=1e-4)
        assert runs.count(TOWER) == 1
        assert len(set(texts.values())) == 3
        # a caption of the picture itself has the same words
        for focus, text in texts.items():
            assert captioner.caption(picture(), focus=focus).text == text


def test_looking_again_encodes_a_picture_once(
    folder: Path, runs: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    with Captioner.load(folder) as captioner:
        looking = Looking(captioner, captioner, [str(path)])
        looking.first(None)
        for focus in ("a dog", "a boat", "a tree"):
            looking.again(focus)
    assert runs.count(TOWER) == 2  # the first look, and once for all later ones


def test_a_folder_gets_the_rows_of_its_instruction(folder: Path, tmp_path: Path) -> None:
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(picture(i)).save(paths[-1])
    with Captioner.load(folder) as captioner:
        plan = captioner.plan(focus="the dog")
        wanted = [captioner.caption(path, focus="the dog").text for path in paths]
        batch = Batch(captioner, plan, parallel=2, lanes=2)
        outcomes = list(batch.run(PictureFile(path, Path(path.name), path.name) for path in paths))
        assert [outcome.record and outcome.record["caption"] for outcome in outcomes] == wanted
        assert wanted != [captioner.caption(path).text for path in paths]


def test_each_client_of_a_server_gets_the_rows_of_its_instruction(folder: Path) -> None:
    instructions = ["Describe the dog.", "Is the boat red?", "a tree"]
    data = io.BytesIO()
    Image.fromarray(picture()).save(data, "PNG")
    body = {"images": [as_base64(data.getvalue())]}
    with serving(model=str(folder)) as running, ThreadPoolExecutor(3) as pool:
        replies = list(
            pool.map(
                lambda text: running.post("/v1/captions", {**body, "instruction": text}),
                instructions,
            )
        )
    with Captioner.load(folder) as captioner:
        wanted = [captioner.caption(picture(), instruction=text).text for text in instructions]
    assert [reply.data["captions"][0]["caption"] for reply in replies] == wanted
    assert len(set(wanted)) == len(wanted)


def test_fewer_visual_tokens_with_another_instruction(folder: Path) -> None:
    with Captioner.load(folder, visual_tokens=2) as captioner:
        encoded = captioner.encode(picture())
        assert encoded.visual_tokens.shape == (2, bundles.N_EMBD)
        caption = captioner.caption(encoded, focus="a dog")
        assert caption.tokens.visual == 2
        assert caption.text == captioner.caption(picture(), focus="a dog").text
        assert captioner.caption(encoded, visual_tokens="all").tokens.visual == instructed.N_ROWS


def test_a_picture_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = instructed.write_instructed(tmp_path / "other", SEED + 1)
    with Captioner.load(other) as stranger:
        encoded = stranger.encode(picture())
    with Captioner.load(folder) as captioner, pytest.raises(UsageError, match="another model"):
        captioner.caption(encoded, focus="a dog")


def test_cancelling_ends_the_connector(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Captioner.load(folder) as captioner:
        encoded = captioner.encode(picture())
        run = GraphSession.run

        def cancelled(self: GraphSession, *arguments: Any) -> list[np.ndarray]:
            thread = threading.Thread(target=captioner.cancel)
            thread.start()
            thread.join()
            return run(self, *arguments)

        monkeypatch.setattr(GraphSession, "run", cancelled)
        with pytest.raises(Interrupted):
            captioner.caption(encoded, focus="a dog")
        monkeypatch.undo()
        assert captioner.caption(encoded, focus="a dog").text


def test_the_plan_counts_the_connector(folder: Path) -> None:
    with Captioner.load(folder) as captioner:
        parts = {part.what: part for part in captioner.engines.memory_parts().parts}
    size = (folder / instructed.GRAPH).stat().st_size
    assert parts["connector weights"].size == 2 * size
    pieces = 4 * bundles.N_EMBD * instructed.MAX_IDS  # the longest text's
    assert parts["connector activations"].size >= 2 * pieces
    assert {"vision weights", "vision activations", "connector session"} <= set(parts)


def test_the_floor_counts_the_connector(folder: Path) -> None:
    products = 2.0 * instructed.N_ROWS * instructed.WIDTH * bundles.N_EMBD
    assert _count_connector(open_bundle(folder), TOWER) == Operations(float32=products)


def test_earlier_versions_read_manifests_without_it(tmp_path: Path, folder: Path) -> None:
    plain = json.loads((bundles.write_bundle(tmp_path / "b") / m.FILE_NAME).read_text())
    assert "text" not in plain["vision"]
    assert "connector" not in plain["vision"]["variants"][0]
    manifest = manifest_from_bundle(folder)
    assert manifest_from_json(manifest.to_json(), "again") == manifest


# ---- hostile bundles


def replaced(**fields: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of a manifest: fields by their dotted names after `vision`."""

    def change(data: dict[str, Any]) -> None:
        for name, value in fields.items():
            *parts, last = name.split("__")
            place: Any = data
            for part in parts:
                place = place[int(part) if part.isdecimal() else part]
            if value is ...:
                del place[last]
            else:
                place[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (replaced(vision__text__tokenizer="bpe"), "vision.text.tokenizer: 'bpe'; known: wordpiece"),
        (replaced(vision__text__vocabulary="x"), "vision.text.vocabulary: 'x' is not among files"),
        (replaced(vision__text__max_ids=2), "vision.text.max_ids: must lie in 3…4096"),
        (replaced(vision__text__max_ids=1 << 20), "vision.text.max_ids: must lie in 3…4096"),
        (replaced(vision__text__truncation="middle"), "known: left, right"),
        (replaced(vision__text__features=0), "vision.text.features: must lie in"),
        (replaced(vision__text__width=1 << 30), "vision.text.width: must lie in"),
        (replaced(vision__text__ids="features"), "three different names"),
        (replaced(vision__text__more=1), "vision.text.more: unknown field"),
        (replaced(vision__text__ids=...), "vision.text.ids: missing"),
        (replaced(vision__variants__0__connector=...), "connector: is missing"),
        (replaced(vision__variants__0__connector="x.onnx"), "'x.onnx' is not among files"),
        (replaced(vision__variants__0__connector=TOWER), "is the file of the first graph"),
        (replaced(vision__variants__0__connector="../x.ort"), "is no name of an ONNX graph"),
        (replaced(vision__text=None), "connector: needs vision.text"),
        (replaced(vision__newline="row"), "vision.newline: must be empty with vision.text"),
        (replaced(vision__drop_first_patch=True), "vision.drop_first_patch: not with vision.text"),
        (replaced(prompts__several={"before": "", "between": ""}), "prompts.several: not with"),
        (replaced(lm__image_positions="down-across"), "lm.image_positions"),
    ],
)
def test_faults_of_the_manifest_are_told(
    folder: Path, change: Callable[[dict[str, Any]], None], fault: str
) -> None:
    data = json.loads((folder / m.FILE_NAME).read_text())
    change(data)
    with pytest.raises(ManifestError) as caught:
        manifest_from_json(json.dumps(data), "manifest.json")
    assert any(fault in line for line in caught.value.details)


def other_output() -> onnx.ModelProto:
    graph = instructed.connector_graph(SEED)
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    return graph


def looping() -> onnx.ModelProto:
    """A connector whose table is as long as the ids say: any text could take all memory."""
    graph = instructed.connector_graph(SEED)
    graph.graph.node.insert(
        0, onnx.helper.make_node("ConstantOfShape", ["ids"], ["large"], name="large")
    )
    return graph


@pytest.mark.parametrize(
    ("connector", "words"),
    [
        (instructed.connector_graph(SEED, n_pieces=20), "vision graph failed"),
        (other_output(), "but the manifest says"),
        (looping(), "depends on"),
        (bundles.vision_graph(SEED), "input"),
    ],
)
def test_a_connector_that_does_not_fit_is_refused(
    tmp_path: Path, connector: onnx.ModelProto, words: str
) -> None:
    """A table that lacks the vocabulary's last pieces, another output, a shape made of ids."""
    folder = instructed.write_instructed(tmp_path / "b", SEED, connector)
    with Captioner.load(folder) as captioner, pytest.raises(ModelError, match=words) as caught:
        captioner.encode(picture())
    assert str(folder) in caught.value.message


@pytest.mark.parametrize("name", [instructed.GRAPH, instructed.VOCABULARY_FILE])
def test_a_changed_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = instructed.write_instructed(tmp_path / "b", SEED)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with Captioner.load(folder) as captioner, pytest.raises(ModelError, match="manifest says"):
        captioner.encode(picture())


def test_a_vocabulary_without_its_marks_is_refused(tmp_path: Path) -> None:
    folder = instructed.write_instructed(tmp_path / "b", SEED)
    (folder / instructed.VOCABULARY_FILE).write_text("red\n")
    bundles.seal_bundle(folder, vision=instructed.vision())
    with Captioner.load(folder) as captioner, pytest.raises(ModelError, match=r"lacks \[UNK\]"):
        captioner.encode(picture())


def test_long_and_strange_instructions(folder: Path) -> None:
    with Captioner.load(folder) as captioner:
        encoded = captioner.encode(picture())
        for instruction in ("x" * 5000, "red " * 3000, "\x00\ud800", "[SEP]" * 40, " "):
            request = captioner.request(encoded, captioner.plan(instruction=instruction[:4000]))
            (rows,) = [part for part in request.prompt if not isinstance(part, list)]
            wanted = expected(picture(), instruction[:4000])
            np.testing.assert_allclose(rows.values, wanted, atol=1e-4)
