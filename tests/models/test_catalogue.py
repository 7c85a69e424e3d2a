"""The catalogue: complete, strict, and honest about models that nobody has run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeprism.cli.main import run
from edgeprism.convert.mmproj import obstacles
from edgeprism.errors import ManifestError, ModelError
from edgeprism.models import catalogue as catalogue_module
from edgeprism.models.catalogue import read_catalogue


def test_unknown_names_list_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pull", "nosuch"]) == ModelError.exit_code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "smollm2-135m" in printed.err
    assert "prismcaptioner-2b" in printed.err


def test_the_shipped_catalogue_is_whole() -> None:
    catalogue = read_catalogue()
    names = catalogue.names()
    for group in (
        ["prismcaptioner-2b", "prismcaptioner-7b", "smollm2-135m", "blip-base", "blip-large"],
        ["smolvlm-256m", "smolvlm-500m", "gemma3-4b", "qwen2.5-vl-3b", "internvl3-2b"],
        ["qwen2.5-0.5b", "qwen2.5-1.5b", "llama3.2-1b", "smollm2-360m", "gemma3-1b"],
    ):
        assert set(group) <= set(names)
    assert names.index("smolvlm-500m") < names.index("qwen2.5-0.5b")  # captioners go first
    assert not [name for name, model in catalogue.gguf.items() if model.verified]
    unverified = [
        r.repo for c in catalogue.captioners.values() for r in c.repositories if not r.verified
    ]
    # nobody has run these models, so none may be marked as verified
    assert len(unverified) == 8


def test_projectors_are_those_that_the_converter_knows() -> None:
    """A captioner whose work is known also names its projector, from which its graph follows."""
    catalogue = read_catalogue()
    captioners = {n for n, model in catalogue.gguf.items() if model.kind == "captioner"}
    named = {n: work.projector for n, work in catalogue.work.items() if n in captioners}
    assert {n for n, projector in named.items() if not projector} == {"moondream2"}
    unknown = set(named.values()) - {""} - {*obstacles.PROJECTORS, *obstacles._WHY_NOT}
    assert not unknown, "no file has such a projector"
    assert named["qwen2.5-vl-3b"] in obstacles.PROJECTORS
    assert not [n for n, w in catalogue.work.items() if n not in captioners and w.projector]


def test_a_faulty_catalogue_lists_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.json"
    text = catalogue_module.FILE.read_text(encoding="utf-8")
    path.write_text(text.replace('"size": 98362432', '"size": "big", "extra": 1'))
    with pytest.raises(ManifestError) as caught:
        read_catalogue(path)
    assert len(caught.value.faults) == 2
    path.write_text(
        text.replace('"revision": "main",\n          "verified": false', '"revision": "main",\n'
                     '          "verified": true').replace("b179c9", "B179C9")
    )  # fmt: skip
    with pytest.raises(ManifestError) as caught:
        read_catalogue(path)
    assert len(caught.value.faults) == 9


def test_faults_of_an_adapter(tmp_path: Path) -> None:
    data = json.loads(catalogue_module.FILE.read_text(encoding="utf-8"))
    right = {"name": "reader", "file": "reader/a.gguf", "sha256": "0" * 64, "size": 1,
             "license": "Apache-2.0", "origin": "made here"}  # fmt: skip
    wrong = {"name": "none", "file": "../a.gguf", "sha256": "0" * 63, "size": 0}
    for changes in ({}, wrong, {"file": "/a.gguf", "name": "a+b"}):
        data["reasoners"]["smollm2-135m"]["adapter"] = {**right, **changes}
        (tmp_path / "catalogue.json").write_text(json.dumps(data))
        if not changes:
            adapter = read_catalogue(tmp_path / "catalogue.json").reasoners["smollm2-135m"].adapter
            assert adapter is not None
            assert adapter.name == "reader"
            continue
        with pytest.raises(ManifestError) as caught:
            read_catalogue(tmp_path / "catalogue.json")
        places = {f"smollm2-135m.adapter.{field}" for field in changes}
        assert {fault.partition(":")[0] for fault in caught.value.faults} == places


@pytest.mark.parametrize("roles", [(), ("llm",), ("captioner", "captioner"), ("captioner", "eyes")])
def test_a_captioner_has_one_repository_of_each_role(
    tmp_path: Path, roles: tuple[str, ...]
) -> None:
    data = json.loads(catalogue_module.FILE.read_text(encoding="utf-8"))
    blip = data["captioners"]["blip-base"]
    blip["repositories"] = [{**blip["repositories"][0], "role": role} for role in roles]
    (tmp_path / "catalogue.json").write_text(json.dumps(data))
    with pytest.raises(ManifestError) as caught:
        read_catalogue(tmp_path / "catalogue.json")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["blip-base.repositories"]


def test_models_that_are_converted_say_what_that_takes() -> None:
    catalogue = read_catalogue()
    for name, entry in catalogue.captioners.items():
        assert 0 < entry.disk_gb < entry.download_gb
        assert entry.convert_memory_gb > 0.5
        assert f"verify-published {name}" in entry.notes[-1]
        assert not any(repository.sha256 for repository in entry.repositories)
    known = {name for name in catalogue.work if name in catalogue.captioners}
    assert known == {"blip-base", "blip-large"}
    assert all(catalogue.work[name].graph for name in known)
