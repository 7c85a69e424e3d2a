"""Every block of shell and Python on the pages is run, or says why it is not.

The blocks of a page run in order, in a folder of their own that is also the home of the user, with
the files that the pages speak of: real but tiny models, pictures of nano's examples, a few
questions; and a stand-in for the server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.docs import stand_in_server
from tests.docs.pages import ROOT, Block, blocks, name_of, pages
from tests.helpers import bundles, elsewhere, eval_files, mmprojs
from tests.helpers.adapters import adapter_parts

EXAMPLES = ROOT / "models" / "nano" / "examples"
SERVER = "http://127.0.0.1:8080/v1"  # as the pages write it
PATIENCE_S = 120
RUN = ("sh", "python")
# told from a shell or a program: drawings, and forms of files
NOT_CODE = ("", "text", "tree", "rooms", "json", "toml")
BLOCKS = {name_of(page): list(blocks(page)) for page in pages()}
RUNNABLE = [name for name, found in BLOCKS.items() if any(_.language in RUN for _ in found)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with stand_in_server.served() as url:
        yield url


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages speak of."""
    place = tmp_path_factory.mktemp("furnished")
    for name, example in (("photo.jpg", 1), ("other.png", 2), ("before.jpg", 3), ("after.jpg", 4),
                          ("Photos/a.jpg", 1), ("Photos/b.png", 2), ("Photos/more/c.jpg", 3),
                          ("Photos/more/d.jpg", 4)):  # fmt: skip
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(EXAMPLES / f"scene{example}.png").convert("RGB").save(place / name)
    bundles.write_bundle(place / "my-bundle", seed=3)
    chat = bundles.write_lm(place / "any-chat-model.gguf", script=bundles.SAID)
    adapter_parts(bundles.lm_parts(script=bundles.SAID)).write(place / "adapter.gguf")
    shutil.copy(chat, place / "other.gguf")
    (place / "data" / "models").mkdir(parents=True)
    shutil.copy(chat, place / "data" / "models" / "smollm2-135m.gguf")
    mmprojs.with_marks(bundles.lm_parts(2, script=bundles.SAID)).write(place / "MODEL.gguf")
    mmprojs.mmproj_parts(mmprojs.IDEFICS).write(place / "MMPROJ.gguf")
    library = "registry.ollama.ai/library"
    store, lm, mmproj = place / ".ollama" / "models", place / "MODEL.gguf", place / "MMPROJ.gguf"
    elsewhere.ollama_model(store, f"{library}/llava/7b", model=lm, projector=mmproj)
    elsewhere.ollama_model(store, f"{library}/qwen2.5/3b", model=chat)
    eval_files.write_rows(place / "MMStar.tsv", [eval_files.lettered(n) for n in range(1, 5)])
    return place


@pytest.fixture
def home(furnished: Path, tmp_path: Path) -> Path:
    """A copy of those files for one page."""
    return shutil.copytree(furnished, tmp_path / "home")


def run(block: Block, home: Path, server: str, before: str = "") -> None:
    """Run one block; `before` are the page's earlier blocks of Python."""
    program = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    environment = {
        **os.environ,
        "HOME": str(home),
        "EDGEPRISM_HOME": str(home / "data"),
        # the commands of this environment, and benchmarks as from the root of the repository
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [*program[block.language], before + block.code.replace(SERVER, server)],
        cwd=home, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"{block.page}, line {block.line}, ended with {done.returncode}:\n{block.code}\n"
        f"--- stdout\n{done.stdout[-2000:]}\n--- stderr\n{done.stderr[-2000:]}"
    )


@pytest.mark.skipif(os.name == "nt", reason="the pages' shell is bash")
@pytest.mark.parametrize("page", RUNNABLE)
def test_blocks_run(page: str, home: Path, server: str) -> None:
    before = ""
    for block in BLOCKS[page]:
        if block.language not in RUN or block.reason:
            continue
        run(block, home, server, before if block.language == "python" else "")
        if block.language == "python":
            before += block.code


def test_every_block_is_run_or_says_why_not() -> None:
    """A block of another language would be neither."""
    found = [block for of_page in BLOCKS.values() for block in of_page]
    assert [b for b in found if b.language not in (*RUN, *NOT_CODE)] == []
    assert sum(block.language in RUN and not block.reason for block in found) > 30
    assert [b for b in found if b.reason and len(b.reason) < 10] == []


def test_a_block_that_fails_is_seen(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    for language, code in (("sh", "false\ntrue\n"), ("sh", "edgeprism caption --no-such-option\n"),
                           ("python", "import edgeprism\nedgeprism.no_such_name\n")):  # fmt: skip
        with pytest.raises(AssertionError, match="line 7"):
            run(Block("a page", 7, language, code, ""), tmp_path, SERVER)
