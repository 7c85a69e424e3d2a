"""Training the reader's adapter, at toy size: the model, the tokens, resuming, the file."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeprism import Reasoner
from edgeprism.language.generator import Generator
from edgeprism.models.reader.recipe.world.examples import sample_group
from tests.helpers.bundles import GgufParts, lm_parts
from tests.helpers.llama_reference import LlamaReference

if TYPE_CHECKING:
    from edgeprism.models.reader.recipe.learn.model import Reader
    from edgeprism.models.reader.recipe.learn.tokens import Group, Tokens

torch = pytest.importorskip("torch")
IDS = [1, 70, 80, 300, 310, 45, 60, 99, 360, 12]
RANK = 16


def shared_keys() -> tuple[GgufParts, GgufParts]:
    """Return a model whose four heads share two keys, and the same with the keys repeated.

    Its values are rounded to bfloat16, in which the recipe keeps what it does not train.
    """
    repeated = lm_parts(3)
    for name, matrix in repeated.tensors.items():
        repeated.tensors[name] = torch.from_numpy(matrix).bfloat16().float().numpy()
    shared = replace(repeated, metadata=dict(repeated.metadata), tensors=dict(repeated.tensors))
    for name, matrix in repeated.tensors.items():
        if "attn_k." in name or "attn_v." in name:
            heads = matrix.reshape(4, -1, matrix.shape[1])
            shared.tensors[name] = heads[[0, 2]].reshape(-1, matrix.shape[1])
            repeated.tensors[name] = heads[[0, 0, 2, 2]].reshape(matrix.shape)
    shared.metadata["llama.attention.head_count_kv"] = ("uint32", 2)
    return shared, repeated


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_keys()[0].write(tmp_path_factory.mktemp("base") / "base.gguf")


def load(base: Path, seed: int = 0, *, strong: bool = False) -> Reader:
    from edgeprism.models.reader.recipe.learn.model import AdapterConfig, Reader, read_base

    torch.manual_seed(seed)
    model = Reader(*read_base(base), AdapterConfig(RANK, 2.0 * RANK))
    if strong:  # training begins with an adapter that adds nothing
        for name, parameter in model.named_parameters():
            if ".up." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def logits(model: Reader, ids: list[int]) -> np.ndarray:
    """In float32, so that the test compares formulas and not roundings."""
    return logits_in_training(copy.deepcopy(model).float(), ids)


def logits_in_training(model: Reader, ids: list[int]) -> np.ndarray:
    tokens = torch.tensor([ids])
    with torch.no_grad():
        states = model.states(tokens, torch.arange(len(ids))[None], torch.zeros_like(tokens))
        return model.logits(states)[0].numpy()


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def merged(parts: GgufParts, pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> GgufParts:
    """Return the model with the adapter's products added; shared keys' products repeated."""
    tensors = dict(parts.tensors)
    for name, (down, up) in pairs.items():
        product = 2.0 * up @ down
        if product.shape != tensors[name].shape:
            product = product.reshape(2, -1, product.shape[1])[[0, 0, 1, 1]]
        tensors[name] = tensors[name] + product.reshape(tensors[name].shape)
    return replace(parts, tensors=tensors)


def to_arrays(model: Reader) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        name: (down.detach().numpy(), up.detach().numpy())
        for name, (down, up) in model.named_pairs().items()
    }


def test_a_new_adapter_changes_nothing(base: Path) -> None:
    wanted = LlamaReference(shared_keys()[1]).logits([IDS])
    assert difference(logits(load(base), IDS), wanted) < 1e-3


def test_the_adapter_adds_to_each_matrix_what_its_pair_says(base: Path) -> None:
    model = load(base, strong=True)
    parts = shared_keys()[1]
    pairs = to_arrays(model)
    assert set(pairs) == {n for n in parts.tensors if n.startswith("blk.") and "norm" not in n}
    wanted = LlamaReference(merged(parts, pairs)).logits([IDS])
    assert difference(logits(model, IDS), wanted) < 1e-3
    assert difference(LlamaReference(parts).logits([IDS]), wanted) > 0.3
    for name in pairs:  # the test would see one that is left out
        without = {n: pair for n, pair in pairs.items() if n != name}
        assert difference(LlamaReference(merged(parts, without)).logits([IDS]), wanted) > 0.005


def some_groups(tokens: Tokens, count: int = 4) -> list[Group]:
    from edgeprism.models.reader.recipe.learn.tokens import pairs_to_group

    groups = []
    for number in range(count):
        examples = sample_group(0, number)
        pairs = [(tokens.prompt(e.messages), tokens.reply(e.reply)) for e in examples]
        groups.append(pairs_to_group(pairs))
    return groups


def test_examples_that_share_a_beginning_have_the_loss_that_they_have_apart(base: Path) -> None:
    from edgeprism.models.reader.recipe.learn.tokens import Group, Tokens, groups_to_batch

    model, cpu = load(base, strong=True), torch.device("cpu")
    groups = some_groups(Tokens(base))
    assert any(group.start and len(group.branches) > 1 for group in groups)
    apart, counted = 0.0, 0
    with torch.no_grad():
        for group in groups:
            for prompt, reply in group.branches:
                one = Group([], [(group.start + prompt, reply)])
                apart += float(model.loss(groups_to_batch([one], cpu))) * len(reply)
                counted += len(reply)
        together = float(model.loss(groups_to_batch(groups, cpu)))
    assert together == pytest.approx(apart / counted, rel=0.02)


def test_what_is_learnt_is_what_the_runtime_decodes(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeprism.models.reader.recipe.learn.tokens import Tokens

    tokens, decoded = Tokens(base), []
    run = Generator.run

    def recording(self: Generator, requests: Any, *more: Any, **named: Any) -> Any:
        decoded.append([i for request in requests for part in request.parts for i in part])
        return run(self, requests, *more, **named)

    monkeypatch.setattr(Generator, "run", recording)
    reasoner = Reasoner.load(base, threads=1)
    shown = [example for number in range(6) for example in sample_group(2, number)][::3]
    for example in shown:
        reasoner.complete(example.messages, max_tokens=1)
        assert decoded.pop() == tokens.prompt(example.messages)
    reasoner.close()


def test_a_stopped_run_continues_as_if_it_had_not_stopped(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeprism.models.reader.recipe import train
    from edgeprism.models.reader.recipe.learn import tokens as learn_tokens

    monkeypatch.setattr(learn_tokens, "MOST_TOKENS", 1500)  # this vocabulary spells most words
    arguments = [str(base), "--batch", "1", "--rank", "4"]
    assert train.main([*arguments, "--out", str(tmp_path / "a"), "--steps", "10"]) == 0
    assert train.main([*arguments, "--out", str(tmp_path / "b"), "--steps", "10",
                       "--minutes", "0"]) == 0  # fmt: skip
    runs = []
    for minutes in (None, "0"):
        more = [] if minutes is None else ["--minutes", minutes]
        train.main([*arguments, "--out", str(tmp_path / "b"), "--steps", "10", *more])
        runs.append(torch.load(tmp_path / "b" / "adapter.pt", weights_only=True))
    whole = torch.load(tmp_path / "a" / "adapter.pt", weights_only=True)
    assert whole["step"] == runs[0]["step"] == runs[1]["step"] == 10
    for name, values in whole["adapter"].items():
        assert torch.equal(values, runs[0]["adapter"][name]), name


def test_training_lowers_the_loss(base: Path) -> None:
    from edgeprism.models.reader.recipe.learn.tokens import Tokens
    from edgeprism.models.reader.recipe.train import Plan, Run

    groups = some_groups(Tokens(base), 2)
    run = Run(load(base), Plan(30, rate=5e-3), Path("nowhere"), torch.device("cpu"))
    losses = [run.learn(groups) for _ in range(30)]
    assert losses[-1] < 0.6 * losses[0]


def test_a_check_counts_replies_of_which_every_token_is_the_likeliest(base: Path) -> None:
    from edgeprism.models.reader.recipe.learn.tokens import Group, Tokens
    from edgeprism.models.reader.recipe.train import check

    model, cpu = load(base), torch.device("cpu")
    (group, *_) = some_groups(Tokens(base), 1)
    replies = []
    for prompt, _ in group.branches:  # what the model writes itself, and the same with a mistake
        ids: list[int] = []
        for _ in range(3):
            ids.append(int(logits_in_training(model, group.start + prompt + ids)[-1].argmax()))
        replies += [(prompt, ids), (prompt, [ids[0], (ids[1] + 1) % 300, ids[2]])]
    assert check(model, [[Group(group.start, replies)]], cpu) == 0.5


def test_the_file_holds_the_adapter_that_was_trained(base: Path, tmp_path: Path) -> None:
    import gguf

    from edgeprism.models.reader.recipe import export
    from edgeprism.models.reader.recipe.train import Plan, Run

    model = load(base, strong=True)
    Run(model, Plan(1), tmp_path, torch.device("cpu")).save()
    out = tmp_path / "reader.gguf"
    assert export.main([str(tmp_path / "adapter.pt"), str(base), str(out)]) == 0
    reader = gguf.GGUFReader(out)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.lora.alpha"] == 2.0 * RANK
    assert fields["edgeprism.reader"] == 1
    read = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    pairs = {n: (read[f"{n}.lora_a"], read[f"{n}.lora_b"]) for n in to_arrays(model)}
    assert len(read) == 2 * len(pairs)
    for name, (down, up) in to_arrays(model).items():
        assert difference(pairs[name][1] @ pairs[name][0], up @ down) < 0.02, name
    assert not list(tmp_path.glob("*.part"))


def test_an_averaged_adapter_lies_between_two(base: Path, tmp_path: Path) -> None:
    from edgeprism.models.reader.recipe.learn.average import main
    from edgeprism.models.reader.recipe.train import Plan, Run

    paths = []
    for seed in range(2):
        Run(load(base, seed, strong=True), Plan(1), tmp_path, torch.device("cpu")).save()
        paths.append((tmp_path / "adapter.pt").rename(tmp_path / f"{seed}.pt"))
    out = tmp_path / "out.pt"
    assert main([*map(str, paths), str(out), "--share", "0.25"]) == 0
    later, earlier, averaged = (torch.load(path, weights_only=True) for path in (*paths, out))
    for name, tensor in averaged["adapter"].items():
        expected = 0.25 * later["adapter"][name] + 0.75 * earlier["adapter"][name]
        torch.testing.assert_close(tensor, expected)
    assert averaged.keys() == later.keys()
    assert any((later["adapter"][n] != earlier["adapter"][n]).any() for n in later["adapter"])
    with pytest.raises(SystemExit):
        main([*map(str, paths), str(out), "--share", "1.5"])


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    from edgeprism.models.reader.recipe.learn.model import read_base

    parts = lm_parts()
    parts.architecture = "qwen2"
    parts.metadata = {k.replace("llama.", "qwen2."): v for k, v in parts.metadata.items()}
    with pytest.raises(ValueError, match="not a Llama model"):
        read_base(parts.write(tmp_path / "other.gguf"))
