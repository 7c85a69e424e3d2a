"""`edgeprism convert` as a command: exit codes, streams, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.cli import convert as convert_command
from edgeprism.errors import UsageError
from edgeprism.install import extras
from tests.helpers.checkpoints import Folders, Spec

SPEC = Spec(container="single", seed=6)
PATIENCE_S = 120


def command(folders: Folders, out: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-c", "from edgeprism.cli.main import main; main()", "convert",
        "prismcaptioner",
        "--captioner", str(folders.captioner), "--llm", str(folders.llm),
        "--vision", str(folders.vision), *options, str(out),
    ]  # fmt: skip


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),  # type: ignore[arg-type]
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_bundle_is_made_and_named_on_stdout(
    checkpoint_of: Callable[[Spec], Folders], tmp_path: Path
) -> None:
    out = tmp_path / "Bündel 1"
    done = run(checkpoint_of(SPEC), out, "--lm-quant", "Q8_0", "--name", "näme")
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    assert "parity vision int8: relative_error" in done.stderr
    assert "\x1b" not in done.stderr  # no progress bar if stderr is not a terminal
    manifest = manifest_from_bundle(out)
    assert manifest.name == "näme"
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    again = run(checkpoint_of(SPEC), out)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_an_error_of_the_work_reaches_the_user(
    checkpoint_of: Callable[[Spec], Folders], tmp_path: Path
) -> None:
    folders = checkpoint_of(SPEC)
    swapped = Folders(folders.captioner, llm=folders.vision, vision=folders.llm)
    done = run(swapped, tmp_path / "out")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "expected 'internlm2'" in done.stderr
    assert "--llm" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["export", "lm", "start"])
def test_ctrl_c_leaves_nothing(
    stage: str, checkpoint_of: Callable[[Spec], Folders], tmp_path: Path
) -> None:
    """Interrupt the command as soon as the given file of its work exists."""
    traces = {"start": "", "export": "work", "lm": "lm*.gguf"}
    options = ["--vision-quant", "fp32", "--lm-quant", "Q4_K_M"]
    process = subprocess.Popen(
        command(checkpoint_of(SPEC), tmp_path / "out", *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pattern = f".out.partial-*/{traces[stage]}".rstrip("/")
    deadline = time.monotonic() + PATIENCE_S
    while not list(tmp_path.glob(pattern)) and process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail("the conversion did not begin")
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (130, "")
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_work_ends_when_its_parent_is_gone(
    checkpoint_of: Callable[[Spec], Folders], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(checkpoint_of(SPEC), tmp_path / "out"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE_S
    while not list(tmp_path.glob(".out.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    (partial,) = tmp_path.glob(".out.partial-*")
    worker = int(partial.name.rsplit("-", 1)[1])
    process.kill()
    process.wait()
    while _is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_alive(worker)
    assert list(tmp_path.iterdir()) == []


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    # its parent may not have reaped it yet: a zombie does no work
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_missing_packages_are_named(
    checkpoint_of: Callable[[Spec], Folders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "has_module", lambda name: name != "onnxscript")
    arguments = command(checkpoint_of(SPEC), tmp_path / "out")[4:]
    with pytest.raises(UsageError, match="not installed: onnxscript") as caught:
        CliRunner().invoke(convert_command.command, arguments, catch_exceptions=False)
    assert "edgeprism[convert" in caught.value.hint


def test_help_names_the_folders() -> None:
    shown = CliRunner().invoke(convert_command.command, ["prismcaptioner", "--help"])
    assert shown.exit_code == 0
    for flag in ("--captioner", "--llm", "--vision", "--vision-quant", "--lm-quant",
                 "--keep-first-patch", "--overwrite", "--force", "--name"):  # fmt: skip
        assert flag in shown.output
