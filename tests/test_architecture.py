"""The import rule: downward only; each engine's library behind one module; no family by name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import edgeprism
from edgeprism.cli import COMMANDS

PACKAGE = Path(edgeprism.__file__).parent
REPOSITORY = PACKAGE.parent

# A module may import what stands in a line above its own. What is not named here is a capability
# on top of all of them; the command line comes last.
LAYERS = [
    {"edgeprism"},  # names are loaded when first used
    {"errors", "records"},
    {"files.strict_json"},
    {
        "bundle.manifest",
        "reason.question",
        "reason.shape",
        "machine.cancel",
        "bundle.gguf",
        "language.llama_batch",
        "language.llama",
        "language.stop_text",
    },
    {"language.chat", "reason.json_schema", "bundle.gguf_checks", "picture.layout", "reason.http"},
    {"vision.mmproj_checks", "reason.evidence", "perceive.several", "picture.tile"},
    {"picture.read"},
    {"bundle.open", "vision.onnx", "language.model", "machine.device"},
    {"language.sampler", "vision.mtmd", "language.request"},
    {"vision.engine"},
    {"language.generator", "reason.base"},
    {"perceive.stream"},
    {"perceive.captioner", "reason.local", "reason.remote", "reason.merge"},
    {"prism"},
]
CAPABILITY, COMMAND_LINE = len(LAYERS), len(LAYERS) + 1
ENGINES = {"onnxruntime": {"vision.onnx"}, "llama_cpp": {"language.llama"}}
TRAINING = {"torch", "transformers", "optimum", "safetensors", "onnx", "gguf"}
HEAVY = {"onnxruntime", "llama_cpp", "numpy", "PIL", "rich", *TRAINING}


@dataclass(frozen=True)
class Import:
    importer: str  # "language.model", "cli.caption"; the package itself is "edgeprism"
    target: str  # the full name of what is imported
    only_types: bool

    @property
    def inner(self) -> str | None:
        """The module of the package that is meant, None for any other."""
        if self.target.split(".")[0] != "edgeprism":
            return None
        return self.target.removeprefix("edgeprism").removeprefix(".") or "edgeprism"


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        name = name.removesuffix("__init__").removesuffix(".") or "edgeprism"
        if name != "__main__":
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports() -> list[Import]:
    found = []
    for name, tree in sources():
        only_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: relative imports hide where they lead"
                targets = [_module_of(node.module or "", alias.name) for alias in node.names]
            found += [Import(name, target, id(node) in only_types) for target in targets]
    return found


def _module_of(home: str, name: str) -> str:
    """`from edgeprism.machine import device` imports a module, other imports a name."""
    inner = PACKAGE.joinpath(*home.split(".")[1:], f"{name}.py")
    return f"{home}.{name}" if home.startswith("edgeprism") and inner.exists() else home


def layer(module: str) -> int:
    if module.split(".")[0] == "cli":
        return COMMAND_LINE
    return next((i for i, names in enumerate(LAYERS) if module in names), CAPABILITY)


def test_the_rule_sees_the_imports() -> None:
    """Else every rule below would hold of nothing."""
    seen = {(i.importer, i.inner) for i in imports()}
    assert {("perceive.captioner", "language.model"), ("language.model", "bundle.gguf_checks"),
            ("cli.caption", "perceive.captioner"),
            ("install.doctor", "machine.device")} <= seen  # fmt: skip
    assert {i.target.split(".")[0] for i in imports()} >= {"onnxruntime", "llama_cpp", "numpy"}
    assert {name for names in LAYERS for name in names} <= {name for name, _ in sources()}


def test_imports_lead_downward() -> None:
    wrong = []
    for found in imports():
        if found.inner is None or found.inner == "edgeprism":
            continue
        own, other = layer(found.importer), layer(found.inner)
        # what only a type checker reads ties no knot; capabilities may build on each other
        level = own if own < CAPABILITY and not found.only_types else own + 1
        if found.importer != "edgeprism" and other >= level:
            wrong.append(f"{found.importer} imports {found.inner}")
    assert wrong == []


def test_no_circle_among_capabilities() -> None:
    edges: dict[str, set[str]] = {}
    for found in imports():
        if found.inner and not found.only_types:
            edges.setdefault(found.importer, set()).add(found.inner)
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join([*trail, module])
        if module not in done:
            for other in edges.get(module, ()):
                # the command line finds its commands by name
                if other not in ("edgeprism", "cli"):
                    visit(other, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_captioner_and_reasoner_do_not_know_each_other() -> None:
    pairs = {(i.importer, i.inner) for i in imports()}
    assert ("perceive.captioner", "reason.local") not in pairs
    assert ("reason.local", "perceive.captioner") not in pairs


@pytest.mark.parametrize("library", ENGINES)
def test_one_importer_of_each_engine(library: str) -> None:
    importers = {i.importer for i in imports() if i.target.split(".")[0] == library}
    assert importers == ENGINES[library]


def test_who_may_open_a_socket() -> None:
    """`store` asks for this machine's name only; `pull` itself goes through huggingface_hub, pip.

    That captioning and asking open none is `test_silence`'s to show.
    """
    network = ("socket", "ssl", "http", "urllib.request", "requests", "httpx", "huggingface_hub")
    found = {i.importer for i in imports() if i.target.startswith(network) and not i.only_types}
    assert found == {"reason.http", "install.hub", "store.caption_store"}


def test_no_training_library_in_the_runtime() -> None:
    """Not even inside a function: what needs them lives in convert/ and models/."""
    assert [i for i in imports() if i.target.split(".")[0] in TRAINING] == []


def test_the_runtime_knows_neither_convert_nor_models() -> None:
    for found in imports():
        if layer(found.importer) < CAPABILITY:
            assert not found.target.startswith(("edgeprism.convert", "edgeprism.models")), found


# llama.cpp's names of projectors, as mmproj files hold them
FOREIGN_NAMES = {("vision.mmproj_checks", name) for name in
                 ("qwen2vl_merger", "qwen2.5vl_merger", "qwen2.5o", "qwen3vl_merger")}  # fmt: skip


def test_no_family_by_name() -> None:
    """What a family needs is data in its manifest. `edgeprism convert FAMILY` has its options."""
    families = {path.stem for path in (REPOSITORY / "convert" / "families").glob("*.py")}
    families -= {"__init__"}
    assert families
    families |= {"llava", "siglip", "internlm", "qwen", "smolvlm", "moondream", "florence"}
    named = []
    for name, tree in sources():
        if name == "cli.convert":
            continue
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            words = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = "" if id(node) in docstrings else node.value
            elif isinstance(node, ast.Name):
                words = node.id
            elif isinstance(node, ast.Attribute):
                words = node.attr
            if (name, words) not in FOREIGN_NAMES:
                named += [(name, family, words) for family in families if family in words.lower()]
    assert named == []


def test_nothing_users_supply_is_asserted_on_in_the_data_path() -> None:
    """python -O drops asserts; the few that are left state what the code itself made true."""
    allowed = {"language.generator"}  # the context that `add` has just made
    for name, tree in sources():
        if layer(name) < CAPABILITY and name not in allowed:
            assert not [n for n in ast.walk(tree) if isinstance(n, ast.Assert)], name


# ---- what loading costs


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh process has loaded after `code`."""
    program = f"{code}\nimport sys\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stderr.split()}


def test_light_modules_stay_light() -> None:
    light = [
        "edgeprism", "edgeprism.errors", "edgeprism.records", "edgeprism.bundle.manifest",
        "edgeprism.language.chat", "edgeprism.machine.cancel", "edgeprism.bundle.gguf",
        "edgeprism.bundle.gguf_checks",
        "edgeprism.bundle.open", "edgeprism.machine.device", "edgeprism.cli",
        *(f"edgeprism.cli.{command}" for command in COMMANDS),
    ]  # fmt: skip
    loaded = loaded_after("import " + ", ".join(light))
    assert "click" in loaded
    assert not loaded & HEAVY


def test_importing_the_public_names_loads_no_engine() -> None:
    loaded = loaded_after("from edgeprism import Captioner, Prism, Reasoner")
    assert "numpy" in loaded
    assert not loaded & {"onnxruntime", "llama_cpp", *TRAINING}


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    arguments = [*command, "--help"]
    loaded = loaded_after(f"from edgeprism.cli import run\nassert run({arguments!r}) == 0")
    assert "click" in loaded
    assert not loaded & HEAVY
