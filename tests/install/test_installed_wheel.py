"""EdgePrism installed from its wheel in a separate environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import edgeprism
from tests.helpers.checkpoints import Spec, write_checkpoint
from tests.helpers.planted import run_in

# find_spec instead of an import, because setuptools changes the process that imports it.
pytestmark = pytest.mark.skipif(
    os.name != "posix" or not all(map(find_spec, ("pip", "setuptools"))),
    reason="needs pip, setuptools and an environment as POSIX systems have it",
)
REPOSITORY = Path(edgeprism.__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "edgeprism", "convert", "models")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's sources as in a clone, where `convert/` lies next to `edgeprism/`."""
    folder = tmp_path_factory.mktemp("clone")
    for name in SOURCES:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def installed(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's command `edgeprism`, with the dependencies of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, clone)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (wheel,) = folder.glob("edgeprism-*.whl")
    python = folder / "venv" / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    # Python does not read the .pth files of these folders, so an editable EdgePrism is not found.
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(folders), encoding="utf-8")
    return folder / "venv" / "bin" / "edgeprism"


def pip(*arguments: object) -> None:
    environment = {name: value for name, value in os.environ.items() if name[:4] != "PIP_"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments)],
        env={**environment, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_converts_in_the_root_of_a_clone(installed: Path, clone: Path, tmp_path: Path) -> None:
    """In a clone, the current folder holds an `edgeprism/` without `edgeprism.convert`."""
    where = "import edgeprism.convert; print(edgeprism.convert.__file__)"
    python = [str(installed.with_name("python")), "-P", "-c"]
    assert run_in(clone, python, where).stdout.startswith(str(installed.parent.parent))
    folders = write_checkpoint(tmp_path / "checkpoint", Spec(seed=6))
    out = tmp_path / "out"
    done = run_in(clone, [str(installed)], "convert", "prismcaptioner",
                  "--captioner", folders.captioner, "--llm", folders.llm,
                  "--vision", folders.vision, "--vision-quant", "fp32", out)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr


def test_it_holds_the_files_of_the_page(installed: Path, tmp_path: Path) -> None:
    python = [str(installed.with_name("python")), "-P", "-c"]
    list_them = "import edgeprism, os; print(*os.listdir(edgeprism.__path__[0] + '/serve/page'))"
    there = set(run_in(tmp_path, python, list_them).stdout.split())
    assert there == {path.name for path in (REPOSITORY / "edgeprism/serve/page").iterdir()}
    assert "index.html" in there
