"""The house rules: rooms import downward only, each engine behind one module, nothing overlong."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import edgeprism
from edgeprism.cli.main import COMMANDS

PACKAGE = Path(edgeprism.__file__).parent
REPOSITORY = PACKAGE.parent

# A room imports only rooms of lines above its own, and itself.
FLOORS = [
    {"choices", "errors", "progress", "segments", "version"},
    {"arguments"},
    {"files", "machine", "records"},
    {"bundle"},
    {"language", "picture"},
    {"memory"},
    {"output", "reason", "vision"},
    {"perceive"},
    {"prism"},
    {"store"},
    {"bench", "evaluation", "folder", "install"},
    {"scale", "serve"},
    {"cli"},
    {"__main__", "edgeprism"},  # the package itself: names are loaded when first used
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Both stand beside the house: what they import of it, and who may import them
BESIDE = {
    "convert": {
        "bundle",
        "choices",
        "errors",
        "files",
        "language",
        "machine",
        "picture",
        "progress",
        "segments",
        "version",
        "vision",
    },
    "models": {"errors", "files"},
}
# how the models that ship were made; they stay in the repository
RECIPES = ("models.nano.recipe", "models.reader.recipe")
BESIDE_FOR = {"cli", "evaluation", "install"}
# Longer than a screen; the list only ever shrinks
LONG_FUNCTIONS: set[str] = set()
ENGINES = {"onnxruntime": {"machine.onnx_runtime"}, "llama_cpp": {"language.llama"}}
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
        return self.target.removeprefix("edgeprism.")


def modules(folder: Path = PACKAGE) -> Iterator[tuple[str, Path]]:
    """Every module of a folder of the repository, named as it is within the package."""
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
        yield name.removesuffix(".__init__").removeprefix("edgeprism."), path


def sources(folder: Path = PACKAGE) -> Iterator[tuple[str, ast.Module]]:
    for name, path in modules(folder):
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(folder: Path = PACKAGE) -> tuple[Import, ...]:
    return imports_of(folder)


@functools.cache
def imports_of(folder: Path) -> tuple[Import, ...]:
    found: list[Import] = []
    for name, tree in sources(folder):
        only_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and is_name(node.test, "TYPE_CHECKING")
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
    return tuple(found)


def is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _module_of(home: str, name: str) -> str:
    """`from edgeprism.machine import device` imports a module, other imports a name."""
    top, *folders = home.split(".")
    if top != "edgeprism":
        return home
    inside = REPOSITORY if folders and folders[0] in BESIDE else PACKAGE
    place = inside.joinpath(*folders, name)
    return f"{home}.{name}" if place.is_dir() or place.with_suffix(".py").exists() else home


def room_of(module: str) -> str:
    return module.split(".")[0]


def in_data_path(module: str) -> bool:
    """From a picture to a caption and an answer; above it stand capabilities."""
    return FLOOR_OF[room_of(module)] <= FLOOR_OF["prism"]


def test_the_rule_sees_the_imports() -> None:
    """Else every rule below would hold of nothing."""
    seen = {(i.importer, i.inner) for i in imports()}
    assert {("perceive.engines", "language.open_language"),
            ("language.model", "bundle.gguf_checks"), ("cli.caption", "perceive.captioner"),
            ("install.doctor", "machine.device")} <= seen  # fmt: skip
    assert {i.target.split(".")[0] for i in imports()} >= {"onnxruntime", "llama_cpp", "numpy"}
    assert {room_of(name) for name, _ in modules()} <= FLOOR_OF.keys()
    beside = {(i.importer, i.inner) for i in imports(REPOSITORY / "convert")}
    assert ("convert.language.model", "convert.read.checkpoint") in beside


def test_a_room_imports_only_rooms_below_it() -> None:
    wrong = []
    for folder in ("edgeprism", *BESIDE):
        for found in imports(REPOSITORY / folder):
            own, other = room_of(found.importer), room_of(found.inner or "")
            if found.importer.startswith(RECIPES):
                continue  # they train and measure: they use the package as any other program does
            if other in ("", own, "edgeprism"):
                continue  # the package itself loads its names when they are first used
            if own in BESIDE:
                allowed = BESIDE[own]
            elif other in BESIDE:
                allowed = set(BESIDE) if own in BESIDE_FOR else set()
            else:
                allowed = set().union(*FLOORS[: FLOOR_OF[own]])
            if other not in allowed:
                wrong.append(f"{found.importer} imports {found.inner}")
    assert wrong == []


def test_no_import_cycle() -> None:
    edges: dict[str, set[str]] = {}
    for folder in ("edgeprism", *BESIDE):
        for found in imports(REPOSITORY / folder):
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


def test_captioning_and_reasoning_do_not_know_each_other() -> None:
    rooms = {(room_of(i.importer), room_of(i.inner or "")) for i in imports()}
    assert not rooms & {("perceive", "reason"), ("reason", "perceive")}


@pytest.mark.parametrize("library", ENGINES)
def test_one_importer_of_each_engine(library: str) -> None:
    importers = {i.importer for i in imports() if i.target.split(".")[0] == library}
    assert importers == ENGINES[library]


def test_who_may_open_a_socket() -> None:
    """`store` asks for this machine's name only; `pull` itself goes through huggingface_hub, pip.

    `serve` opens the one that it listens on, and hands it to uvicorn. `scale` looks whether a
    cluster answers that the user named.

    That captioning and asking open none is `test_silence`'s to show.
    """
    network = ("socket", "ssl", "http", "urllib.request", "requests", "httpx", "huggingface_hub")
    found = {i.importer for i in imports() if i.target.startswith(network) and not i.only_types}
    assert found == {
        "reason.http",
        "install.hub",
        "scale.connection",
        "serve.run",
        "store.caption_store",
    }


def test_child_processes_are_started_in_one_place() -> None:
    """Only there are they kept from running what lies in the current folder."""
    libraries = ("subprocess", "multiprocessing", "pty", "asyncio.subprocess")
    starters = ("exec", "fork", "popen", "posix_spawn", "spawn", "startfile", "system")
    importers = set()
    for folder in (PACKAGE, REPOSITORY / "convert"):
        importers |= {i.importer for i in imports(folder) if i.target.startswith(libraries)}
        for name, tree in sources(folder):
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and is_name(node.value, "os"):
                    assert not node.attr.startswith(starters), name
    assert importers == {"machine.child"}


def test_no_training_library_in_the_runtime() -> None:
    """Not even inside a function: what needs them lives in convert/ and models/."""
    assert [i for i in imports() if i.target.split(".")[0] in TRAINING] == []


# llama.cpp's names of projectors and architectures, as GGUF files hold them, and one of Ollama's
FOREIGN_NAMES = {("vision.mmproj_checks", name) for name in
                 ("qwen2vl_merger", "qwen2.5vl_merger", "qwen2.5o", "qwen3vl_merger",
                  "internvl")}  # fmt: skip
FOREIGN_NAMES |= {("bundle.gguf_purpose", "qwen25vl")}
FOREIGN_NAMES |= {("vision.mmproj_checks", "cogvlm")}
FOREIGN_NAMES |= {("language.embeddings", name) for name in ("qwen2", "qwen3", "internlm2")}


def test_no_family_by_name() -> None:
    """What a family needs is data in its manifest; its options are in its own file."""
    families = {path.stem for path in (REPOSITORY / "convert" / "families").glob("*.py")}
    families -= {"__init__"}
    assert families
    families |= {"llava", "siglip", "internlm", "qwen", "smolvlm", "moondream", "florence"}
    named = []
    for name, tree in sources():
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
            if words and (name, words) not in FOREIGN_NAMES:
                lower = words.lower()
                named += [(name, family, words) for family in families if family in lower]
    assert named == []


def test_nothing_users_supply_is_asserted_on_in_the_data_path() -> None:
    """python -O drops asserts; the few that are left state what the code itself made true."""
    allowed = {"language.generator"}  # the context that `add` has just made
    for name, tree in sources():
        if in_data_path(name) and name not in allowed:
            assert not [n for n in ast.walk(tree) if isinstance(n, ast.Assert)], name


# ---- files and folders


def test_every_package_is_installed() -> None:
    """But the recipes: they train what ships, and need the repository."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    names = set()
    for folder in ("edgeprism", *BESIDE):
        for path in (REPOSITORY / folder).rglob("__init__.py"):
            name = ".".join(path.parent.relative_to(REPOSITORY).parts)
            names.add(name if folder == "edgeprism" else f"edgeprism.{name}")
    recipes = {n for n in names if n.removeprefix("edgeprism.").startswith(RECIPES)}
    assert recipes
    assert listed == names - recipes


def test_packages_reexport_nothing() -> None:
    """Names that an `__init__.py` passes on hide arrows and cost start-up time."""
    rooms = [REPOSITORY / folder for folder in ("edgeprism", *BESIDE, "benchmarks", "tests")]
    files = {path for room in rooms for path in room.rglob("__init__.py")}
    public = {PACKAGE / "__init__.py"}
    assert [path for path in files - public if path.read_text(encoding="utf-8")] == []


def test_nothing_is_longer_than_one_can_read() -> None:
    long = set()
    for folder in ("edgeprism", *BESIDE, "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            text, name = path.read_text(encoding="utf-8"), path.relative_to(REPOSITORY).as_posix()
            assert len(text.splitlines()) <= 400, name
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or 0) - node.lineno + 1
                    long |= {f"{name}: {node.name}"} if lines > 60 else set()
    assert long == LONG_FUNCTIONS


# ---- what loading costs

# what a caption of the built-in model does without, although its libraries would bring it along
NOT_FOR_A_CAPTION = {
    "concurrent", "diskcache", "difflib", "jinja2", "multiprocessing", "secrets", "shutil",
    "socket", "sqlite3", "tempfile", "tomllib", "rich",
}  # fmt: skip
# the package's modules behind `edgeprism --help`, and what they need beyond click
OF_HELP = {
    "edgeprism", "edgeprism.cli", "edgeprism.cli.common_options", "edgeprism.cli.errors",
    "edgeprism.cli.main", "edgeprism.cli.standard_streams", "edgeprism.cli.terminal",
    "edgeprism.errors", "edgeprism.files", "edgeprism.files.safe_text",
    "edgeprism.files.size_text", "edgeprism.machine", "edgeprism.machine.cancel",
    "edgeprism.progress", "edgeprism.version",
}  # fmt: skip
HELP_NEEDS = {"atexit", "gc", "signal"}
BARE_CLICK = """
import click
@click.group()
@click.version_option("1")
def cli(): pass
@cli.command()
def one(): pass
cli.main(["--help"], standalone_mode=False)
"""
RUN = "from edgeprism.cli.main import run\nassert run({!r}) == 0"


def modules_after(code: str) -> set[str]:
    """The modules that a fresh process has loaded after `code`."""
    program = f"{code}\nimport sys\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def loaded_after(code: str) -> set[str]:
    """The top-level packages and modules that a fresh process has loaded after `code`."""
    return {name.split(".")[0] for name in modules_after(code)}


def test_light_modules_stay_light() -> None:
    light = [
        "edgeprism", "edgeprism.errors", "edgeprism.records", "edgeprism.bundle.manifest",
        "edgeprism.language.chat", "edgeprism.machine.cancel", "edgeprism.bundle.gguf",
        "edgeprism.bundle.gguf_checks",
        "edgeprism.bundle.open", "edgeprism.machine.device", "edgeprism.cli.main",
        *(f"edgeprism.cli.{command}" for command in COMMANDS),
    ]  # fmt: skip
    loaded = loaded_after("import " + ", ".join(light))
    assert "click" in loaded
    assert not loaded & HEAVY


def test_importing_the_public_names_loads_no_engine() -> None:
    loaded = loaded_after("from edgeprism import Captioner, Prism, Reasoner")
    assert "numpy" in loaded
    assert not loaded & {"onnxruntime", "llama_cpp", *TRAINING}


def test_help_loads_little_beyond_click() -> None:
    loaded, click = modules_after(RUN.format(["--help"])), modules_after(BARE_CLICK)
    assert "click.core" in loaded & click
    assert loaded - click == OF_HELP | HELP_NEEDS


def test_each_commands_help_loads_nothing_heavy() -> None:
    helps = "\n".join(
        f"assert run([{name!r}, '--help']) == 0\nassert not {HEAVY!r} & set(sys.modules), {name!r}"
        for name in COMMANDS
    )
    loaded = loaded_after(f"import sys\nfrom edgeprism.cli.main import run\n{helps}")
    assert "click" in loaded


def test_a_caption_loads_what_it_uses() -> None:
    picture = PACKAGE.parent / "models" / "nano" / "examples" / "scene1.png"
    arguments = ["caption", "--model", "nano", "--json", str(picture)]
    loaded = loaded_after(RUN.format(arguments))
    assert {"onnxruntime", "llama_cpp", "numpy", "PIL"} <= loaded
    assert not loaded & NOT_FOR_A_CAPTION
