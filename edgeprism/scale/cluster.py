"""Captions a folder or a bucket on a Ray cluster into Parquet files, and goes on where it ended."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.arguments import check_integer, check_number
from edgeprism.errors import EdgePrismError, UsageError
from edgeprism.folder.run import Failure, FolderResult
from edgeprism.scale.captioner import check_model
from edgeprism.scale.connection import LOCAL, ClusterError, connected, explained, quiet_data
from edgeprism.scale.engine import EngineError
from edgeprism.scale.known import Known
from edgeprism.scale.names import last_part
from edgeprism.scale.parts import PartCaptioner, PartOptions
from edgeprism.scale.storage import Place, blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

PART = 256  # pictures in a Parquet file, and at most so many are captioned again after a kill
_LEAST_PARTS = 4  # for each actor, so that the last of them does not keep all others waiting


@dataclass(frozen=True)
class ClusterOptions:
    """How many actors there are, and what each gets.

    Parameters:
        address: "auto" (the cluster that this machine belongs to), "local" (one for this run, on
            this machine), or a cluster's address.
        actors: the most actors; None: as many as the cluster has room for.
        cpus: CPU cores of each actor.
        gpus: GPUs of each actor; a part of one is shared with other actors.
        part: pictures in a Parquet file.
    """

    address: str = "auto"
    actors: int | None = None
    cpus: float = 1
    gpus: float = 0
    part: int = PART

    def __post_init__(self) -> None:
        if self.actors is not None:
            check_integer("actors", self.actors, least=1)
        check_number("cpus", self.cpus, least=0)
        check_number("gpus", self.gpus, least=0)
        check_integer("part", self.part, least=1)
        if not self.cpus and not self.gpus:
            raise UsageError("An actor without a CPU and a GPU has nothing to run on.")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise UsageError(
                f"{self.gpus} GPUs cannot be given to an actor.",
                "Give a part of one, or whole ones.",
            )


def caption_on_cluster(
    source: Place,
    output: Place,
    options: ClusterOptions,
    captioner: Mapping[str, Any],
    *,
    on_start: Callable[[], object] = lambda: None,
    on_begin: Callable[[FolderResult], object] = lambda _: None,
    on_progress: Callable[[FolderResult], object] = lambda _: None,
) -> FolderResult:
    """Caption every picture below `source` into Parquet files in `output`.

    Pictures that `output` has a row of (same content, settings and name) get no other one.

    Args:
        source: Where the pictures lie; its name means the same on every machine.
        output: Where Parquet files go; likewise.
        options: The cluster, and its actors.
        captioner: Keywords of `RayCaptioner`.
        on_start: Called before a cluster is started on this machine, which takes long.
        on_begin: Called with the counts before the first picture.
        on_progress: Called with them whenever a part is finished.

    Returns:
        The counts. Pictures that have the words of another one, or of a row of an earlier run, are
        known; those whose row of an earlier run has no caption failed.

    Raises:
        UsageError: An option is invalid, `source` cannot be listed, or Ray is not installed.
        StorageError: A bucket does not answer.
        ModelError, DeviceError: As of `Captioner.load`, where the cluster is this machine.
        ClusterError: No cluster answers, or it has no room for an actor.
        EngineError: The model is missing or damaged, or no engine can run.
        OutputError: `output` cannot be read or written.
    """
    began = time.monotonic()
    paths, passed = source.pictures()
    result = FolderResult(len(paths), passed=passed)
    known = Known.read(output)
    if not paths:
        return result
    output.check_writable()
    if options.address == LOCAL:
        check_model(**captioner)  # a cluster takes long to start, only to say the same
        on_start()
    run = PartOptions(source, output, f"part-{uuid.uuid4().hex[:12]}", captioner)
    with _tidy(output, run.name), connected(options.address) as ray, quiet_data():
        on_begin(result)
        output.remove_partials()
        # closed at once where an error leaves it, so that its threads end
        with explained(), contextlib.closing(_summaries(ray, paths, known, run, options)) as rows:
            for number, row in enumerate(rows):
                _count(result, row, source)
                if not number:  # not before the cluster does its work: it may do none
                    known.forget_unread()
                result.seconds = time.monotonic() - began
                on_progress(result)
    return result


def _summaries(
    ray: Any, paths: Sequence[str], known: Known, run: PartOptions, options: ClusterOptions
) -> Generator[dict[str, Any]]:
    """Have actors caption all parts of a run; yield what they say of each, in the order of its end.

    Raises ClusterError, and RayError.
    """
    actors = _actors(ray.cluster_resources(), options)
    size = min(options.part, max(1, math.ceil(len(paths) / (actors * _LEAST_PARTS))))
    parts = [{"number": number, "paths": some} for number, some in enumerate(blocks(paths, size))]
    shared = ray.put(known)  # once for every machine
    dataset = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        PartCaptioner,
        fn_constructor_args=(run, shared if len(known) else None),
        **_actor_options(ray, actors, options),
    )
    yield from dataset.iter_rows()


@contextlib.contextmanager
def _tidy(output: Place, run: str) -> Iterator[None]:
    """Delete what killed actors of a run left half-written, once it has ended."""
    try:
        yield
    finally:
        output.remove_partials(run)


def _actor_options(ray: Any, actors: int, options: ClusterOptions) -> dict[str, Any]:
    """Return the keywords of `map_batches` for actors that take a part after another."""
    return {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "num_cpus": options.cpus,
        "num_gpus": options.gpus,
        # two parts at a time: one is read while the other is captioned
        "compute": ray.data.ActorPoolStrategy(
            min_size=1, max_size=actors, initial_size=actors, max_tasks_in_flight_per_actor=2,
            max_concurrent_calls_per_actor=2, enable_true_multi_threading=True,
        ),
    }  # fmt: skip


def _count(result: FolderResult, row: Mapping[str, Any], source: Place) -> None:
    fatal = row["fatal"]
    if fatal is not None:
        raise EngineError(fatal["error"], fatal["hint"], fatal["code"])
    result.captioned += row["captioned"]
    result.duplicates += row["duplicates"]
    result.known += row["pictures"] - row["captioned"] - len(row["failures"])
    for each in row["failures"]:
        name = source.shown(each["image"])
        # a path would make s3:/ of s3://
        path = Path(last_part(name) if "://" in name else name)
        result.failures.append(Failure(path, EdgePrismError(f"{name}: {each['error']}")))


def _actors(resources: Mapping[str, float], options: ClusterOptions) -> int:
    """Return how many actors the cluster has room for, at most as many as are asked for."""
    needs = {"CPU": options.cpus, "GPU": options.gpus}
    room = min(int(resources.get(name, 0) / need) for name, need in needs.items() if need)
    if not room:
        has = ", ".join(f"{resources.get(name, 0):g} {name}s" for name in needs)
        raise ClusterError(
            f"The cluster has no room for an actor of {options.cpus:g} CPUs and {options.gpus:g} "
            f"GPUs: it has {has}.",
            "Give `actor_cpus` and `actor_gpus` that one of its machines has.",
        )
    return min(room, options.actors or room)
