"""Run a model once in a child process, within limits, before this process runs it.

llama.cpp and ONNX Runtime end the process where a model's numbers do not fit together, and a model
can make them run for ever or take all memory. No list of rules foresees every such model. So what
passes the checks of its header is tried in a child: if that dies, takes too long or too much
memory, the model is refused with a reason. The data folder remembers each trial that went well, by
everything that decides its result: the digests of all files, the engines' versions and settings.
If the data folder cannot be written, the model is tried in each process.

The child's module calls `answer_trial`. It reads one JSON object and answers with one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edgeprism import errors
from edgeprism.errors import EdgePrismError, Interrupted, ModelError
from edgeprism.files.remembered import Remembered
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.facts import available_cores

_VERSION = 1  # of all checks and trials; a higher number makes every model be tried again
_ENGINES = ("llama-cpp-python", "onnxruntime", "onnxruntime-gpu")
_SECONDS, _BYTES_PER_SECOND = 12, 5_000_000
_BUSY = 6  # how many times longer a trial may take where other programs use the processor
_MEMORY, _MEMORY_PER_BYTE = 3 << 30, 3
_GPU_MEMORY = 16 << 30  # what a GPU's libraries may take in addition
_GRACE_SECONDS = 10  # after which a child whose parent was killed ends itself
SMALL_MODEL_BYTES = 64 << 20  # a model up to this size is tried with more, and in one thread
_TOO_LONG = getattr(signal, "SIGXCPU", 0)
_MARKER = "\x1etrial:"
_SOURCE_FOLDER = re.compile(r"\S+/(?=[\w.-]+\.(?:c|cc|cpp|h|hpp):\d+)")  # where it was compiled
_LAST_CHARS = 400  # of a dead child's standard error, for the message
# where an assertion fails, ggml would start a debugger
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}
_HINT = (
    "It may be damaged, or made to do harm. Get it again from a place that you trust; if the "
    "machine was busy, try again."
)
_tried = Remembered("tried.json")


@dataclass(frozen=True)
class Trial:
    """One way to run one model.

    Parameters:
        subject: the files, for messages.
        module: the module whose `main` runs in the child and calls `answer_trial`.
        request: what the child gets besides "threads"; JSON.
        identity: everything that decides the result: digests and settings, but no paths; JSON.
        n_bytes: the size of the model's files, which the limits grow with.
        on_gpu: whether the child uses a GPU.
    """

    subject: str
    module: str
    request: Mapping[str, Any]
    identity: list[Any]
    n_bytes: int
    on_gpu: bool = False

    @property
    def key(self) -> str:
        """The key under which the data folder remembers the result."""
        what = [_VERSION, self.module, self.identity, [_version(name) for name in _ENGINES]]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    @property
    def threads(self) -> int:
        """How many threads the child uses; those of a small model would only wait."""
        return 1 if self.n_bytes < SMALL_MODEL_BYTES else available_cores()

    @property
    def seconds(self) -> int:
        """The limit of computing time in seconds of a processor's core."""
        return (_SECONDS + self.n_bytes // _BYTES_PER_SECOND) * self.threads

    @property
    def memory(self) -> int:
        """The memory limit in bytes, in addition to files that are mapped into memory."""
        return _MEMORY + _MEMORY_PER_BYTE * self.n_bytes + (_GPU_MEMORY if self.on_gpu else 0)


def try_once(trial: Trial, cancel: Cancel | None = None, *, again: bool = False) -> object:
    """Return the child's answer, from the data folder if it remembers it and not `again`.

    Raises ModelError if the child died or exceeded a limit, the child's own EdgePrismError, and
    Interrupted if `cancel` is set meanwhile.
    """
    key = trial.key
    known = {} if again else _tried.read()
    if key in known:
        remembered: object = known[key]
        return remembered
    answer = _in_child(trial, cancel or Cancel())
    _tried.remember(key, answer)
    return answer


def remember_trial(trial: Trial, answer: object) -> None:
    """Note that the model has run well, as if it had been tried."""
    _tried.remember(trial.key, answer)


def _version(package: str) -> str:
    from importlib import metadata  # not at the top: a model that needs no trial starts faster

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _in_child(trial: Trial, cancel: Cancel) -> object:
    from edgeprism.machine import child  # not at the top, as `metadata` above

    patience = _BUSY * trial.seconds
    limits = {"memory": trial.memory, "seconds": trial.seconds,
              "alarm": patience + _GRACE_SECONDS}  # fmt: skip
    text = json.dumps({**trial.request, "threads": trial.threads, "limits": limits})
    command = child.edgeprism_command(trial.module)
    with (
        # errors go where the answer goes, because a file for them cannot be made everywhere
        child.Child(command, errors="output", environment=_ENVIRONMENT) as process,
        cancel.calling(process.kill),
    ):
        try:
            ended = process.communicate(text, patience)
        except TimeoutError as error:
            raise _refusal(trial, f"was not done after {patience} s") from error
    if cancel.is_set():
        raise Interrupted()
    _, _, line = ended.output.rpartition(_MARKER)
    if ended.code == -_TOO_LONG:
        raise _refusal(trial, f"was not done after {trial.seconds} s of computing")
    if ended.code or not line:
        words = _SOURCE_FOLDER.sub("", ended.last_words(_LAST_CHARS)) or "no reason given"
        raise _refusal(trial, f"ended its process ({ended.how}): {words}")
    reply: dict[str, Any] = json.loads(line)
    if "error" in reply:
        kind = getattr(errors, reply["error"], ModelError)
        refusal: EdgePrismError = kind.__new__(kind)  # the classes take different arguments
        EdgePrismError.__init__(refusal, reply["summary"], reply["hint"], reply["details"])
        raise refusal
    if "answer" not in reply:
        raise _refusal(trial, f"took more than {trial.memory / 1e9:.1f} GB of memory")
    answer: object = reply["answer"]
    return answer


def _refusal(trial: Trial, what: str) -> ModelError:
    return ModelError(
        f"{trial.subject}: cannot be run. A trial in a process of its own {what}.", _HINT
    )


# ---- inside the child


def answer_trial(run: Callable[[dict[str, Any]], object]) -> NoReturn:
    """Run a trial in the child process and end the process.

    `run` gets the trial's request and returns the answer, JSON; it may raise EdgePrismError.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends even native code at once
    request = json.loads(sys.stdin.read())
    _limit(**request.pop("limits"))
    reply: dict[str, Any]
    try:
        reply = {"answer": run(request)}
    except EdgePrismError as error:
        reply = {
            "error": type(error).__name__,
            "summary": error.summary,
            "hint": error.hint,
            "details": error.details,
        }
    except MemoryError:
        reply = {}
    sys.stdout.write(_MARKER + json.dumps(reply))
    sys.stdout.flush()
    os._exit(0)  # without freeing the engines, which could still fail


def _limit(memory: int, seconds: int, alarm: int) -> None:
    if os.name != "posix":
        return  # other systems have no such limits; the parent's time limit still holds
    import resource

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(alarm)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # RLIMIT_DATA counts memory that is written to, RLIMIT_AS also reserved addresses and mapped
    # files: a GPU's libraries reserve more than any machine has
    # Python ignores the signal of this limit; the hard limit, a second later, would kill
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    set_before = resource.getrlimit(resource.RLIMIT_DATA)
    least = min([memory, *(limit for limit in set_before if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (least, least))


def comes_with_package(path: Path) -> bool:
    """Return whether `path` lies among the models of the installed package.

    Who can write there can change the code too, so a trial would protect from nothing.
    """
    from edgeprism.bundle.places import builtin_models_dir

    own = path.resolve()
    return any(own.is_relative_to(place.resolve()) for place in builtin_models_dir())
