"""Batches of pictures → a table of captions: the callable class that Ray Data and Spark use."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import numpy as np

from edgeprism.arguments import check_integer, check_keywords, check_path
from edgeprism.choices import DEFAULT_MODEL
from edgeprism.errors import EdgePrismError, ImageError, UsageError
from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import (
    CaptionerOptions,
    CaptionOptions,
    check_caption_options,
    check_captioner_options,
)
from edgeprism.scale.arrow import pyarrow as pa
from edgeprism.scale.columns import (
    ENDED,
    REFUSED,
    UNREAD,
    Row,
    failure_to_row,
    record_to_row,
    rows_to_table,
    text_of,
)
from edgeprism.scale.engine import Answer, EngineProcess, EngineSettings
from edgeprism.scale.known import Known
from edgeprism.scale.names import last_part, picture_name

# what readers call a file's bytes: Ray's `read_binary_files`, Spark's `binaryFile`
_BYTES = ("bytes", "content")
_PIXELS = "image"  # of Ray's `read_images`
_PATH = "path"


class Picture(NamedTuple):
    """A picture's name, its file, and the digest that stands for it."""

    name: str
    file: bytes | Exception  # the exception: why there is none
    sha256: str | None = None

    @classmethod
    def of_file(cls, name: str, data: bytes) -> Picture:
        """Return the picture of a file's bytes."""
        return cls(name, data, hashlib.sha256(data).hexdigest())

    @classmethod
    def of_pixels(cls, name: str, pixels: np.ndarray) -> Picture:
        """Return the picture of pixels, uint8 [height, width, 3]; its digest is theirs."""
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            return cls(name, ImageError(
                f"{last_part(name)}: its pixels are {pixels.dtype} {list(pixels.shape)}.",
                'Read with ray.data.read_images(…, mode="RGB"), or files with read_binary_files.',
            ))  # fmt: skip
        from PIL import Image

        picture, file = Image.fromarray(pixels), io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        digest = hashlib.sha256(b"%d,%d," % picture.size + picture.tobytes()).hexdigest()
        return cls(name, file.getvalue(), digest)


class ScaleOptions(CaptionerOptions, CaptionOptions, total=False):
    """Keywords of `RayCaptioner`: those of `Captioner.load` and of `Captioner.caption`."""


class RayCaptioner:
    """Captions batches of pictures; an actor makes one, which loads its models once.

    A batch is a table, a data frame or a mapping of columns with the files' bytes in `bytes` (or
    `content`), or with pixels in `image`, uint8 [height, width, 3]; and with their names in `path`.
    The names become absolute paths or addresses; see `picture_name`.
    The result is a `pyarrow.Table` of `scale.columns.SCHEMA`, a row for each picture, in order. A
    picture that cannot be captioned has its reason in `error`; it never fails the batch.

    Threads may call it at the same time, and should: then the next batch is read while one is
    captioned.

    Examples:
        >>> import ray
        >>> from edgeprism.scale.captioner import RayCaptioner
        >>> pictures = ray.data.read_binary_files("photos", include_paths=True)
        >>> pictures.map_batches(
        ...     RayCaptioner, fn_constructor_kwargs={"model": "nano"}, batch_size=64,
        ...     batch_format="pyarrow", num_cpus=2, concurrency=4,
        ... ).write_parquet("captions")
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        lm_chat_format: str | None = None,
        parallel: int | None = None,
        cores: int | None = None,
        known: Any = None,
        **options: Unpack[ScaleOptions],
    ) -> None:
        """Load the models.

        Args:
            model: As for `Captioner.load`; the name or path must mean the same on every machine.
            lm_chat_format: As for `Captioner.load`.
            parallel: Captions to decode at a time; None: measured, once on each machine.
            cores: CPU cores to use; None: those that Ray gave to this actor, else all.
            known: What an earlier run put out, from `Known.read`, or `ray.put` of it: a picture
                with its name, content and settings in there gets no row again.
            **options: See `CaptionerOptions` and `CaptionOptions`.

        Raises:
            UsageError: An option has a value that no machine can take.
            EngineError: The model is missing or damaged, or no engine can run; as the process of
                the captioner says it.
        """
        of_captioner, of_caption = _checked(model, options, parallel=parallel, cores=cores)
        self.known = _fetched(known)
        self._engine = EngineProcess(
            EngineSettings(
                model=str(model),
                lm_chat_format=lm_chat_format,
                captioner=of_captioner,
                caption=of_caption,
                parallel=parallel,
                cores=cores or cores_of_actor(),
            )
        )
        self.request = self._engine.facts.request

    def __call__(self, batch: Any) -> pa.Table:
        """Caption a batch; see the class. Raises UsageError for a batch without pictures."""
        columns = _columns(batch)
        return rows_to_table(self.rows(_pictures(columns)))

    def rows(self, pictures: Iterable[Picture]) -> list[Row]:
        """Caption pictures; return their rows in order.

        Those that are `known` under their name get no row. Of those with the same content one is
        captioned, and the others get its words.
        """
        rows: dict[int, Row] = {}
        todo: dict[int, tuple[Picture, bytes, str]] = {}
        for place, picture in enumerate(pictures):
            if isinstance(picture.file, Exception) or picture.sha256 is None:
                rows[place] = self._unread(picture)
            elif self.known is None:
                todo[place] = picture, picture.file, picture.sha256
            elif not self.known.has(text_of(picture.name), picture.sha256, self.request):
                copy = self.known.row_of(picture.name, picture.sha256, self.request)
                if copy is not None:
                    rows[place] = copy
                else:
                    todo[place] = picture, picture.file, picture.sha256
        firsts: dict[str, int] = {}
        for place, (_, _, digest) in todo.items():
            firsts.setdefault(digest, place)
        rows |= self._captioned({place: todo[place] for place in firsts.values()})
        alone = {}
        for place, (picture, file, digest) in todo.items():
            row = rows[firsts[digest]]
            if row.get("caption") is not None:
                rows[place] = {**row, "image": text_of(picture.name)}
            elif place not in rows:  # an error names its picture
                alone[place] = picture, file, digest
        rows |= self._captioned(alone)
        return [rows[place] for place in sorted(rows)]

    def failed_before(self, pictures: Iterable[Picture]) -> list[Row]:
        """Return name and error of pictures that are `known` to have no caption, in order.

        They get no row again.
        """
        failed = []
        for picture in pictures:
            if self.known is not None and picture.sha256 is not None:
                error = self.known.error_of(text_of(picture.name), picture.sha256, self.request)
                if error is not None:
                    failed.append({"image": text_of(picture.name), "error": error})
        return failed

    def _captioned(self, todo: Mapping[int, tuple[Picture, bytes, str]]) -> dict[int, Row]:
        answers = self._engine.caption([(picture.name, file) for picture, file, _ in todo.values()])
        return {
            place: self._answered(picture.name, digest, answer)
            for (place, (picture, _, digest)), answer in zip(todo.items(), answers, strict=True)
        }

    def _answered(self, name: str, digest: str, answer: Answer) -> Row:
        if answer.record is not None:
            record = {**answer.record, "image": name, "image_sha256": digest}
            return record_to_row(record, self.request)
        kind = ENDED if answer.ended else REFUSED
        return self._failed(name, digest, kind, answer.error, answer.hint)

    def _unread(self, picture: Picture) -> Row:
        error = picture.file
        kind = REFUSED if isinstance(error, ImageError) else UNREAD
        message = error.message if isinstance(error, EdgePrismError) else str(error)
        hint = error.hint if isinstance(error, EdgePrismError) else ""
        return self._failed(picture.name, None, kind, message, hint)

    def _failed(self, name: str, digest: str | None, kind: str, error: str, hint: str) -> Row:
        model = self._engine.facts.model
        return failure_to_row(name, digest, self.request, kind, error, hint, model)

    def pids(self) -> list[int]:
        """Return the processes of the captioner, for those who measure its memory."""
        return [self._engine.pid]

    def close(self) -> None:
        """End the process of the captioner."""
        self._engine.close()


def check_model(
    model: str = DEFAULT_MODEL,
    *,
    lm_chat_format: str | None = None,
    parallel: int | None = None,
    **options: Unpack[ScaleOptions],
) -> None:
    """Raise the error that `RayCaptioner` of these arguments would, without loading the model.

    That is an error as of `Captioner.load` and `Captioner.plan`; some come only with the engines.
    """
    of_captioner, of_caption = _checked(model, options, parallel=parallel)
    with Captioner.load(model, lm_chat_format=lm_chat_format, **of_captioner) as captioner:
        captioner.plan(**of_caption)


def _checked(
    model: str, options: ScaleOptions, **counts: int | None
) -> tuple[CaptionerOptions, CaptionOptions]:
    """Return the options of the captioner and those of its captions. Raises UsageError."""
    check_keywords("RayCaptioner", options, ScaleOptions)
    check_path("model", model)
    for name, number in counts.items():
        if number is not None:
            check_integer(name, number, least=1)
    given: dict[str, Any] = dict(options)
    # `visual_tokens` is a keyword of both, and decides the same
    of_caption: Any = {name: given[name] for name in _keys(CaptionOptions) if name in given}
    of_captioner: Any = {name: given[name] for name in _keys(CaptionerOptions) if name in given}
    check_captioner_options(**of_captioner)
    check_caption_options(**of_caption)
    return of_captioner, of_caption


def cores_of_actor() -> int | None:
    """Return how many CPUs Ray gave to this actor, a part counted as one; None outside of Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.get_actor_id() is None:
        return None
    return max(1, int(context.get_assigned_resources().get("CPU", 1)))


def _keys(options: type) -> Sequence[str]:
    from typing import get_type_hints

    return list(get_type_hints(options))


def _fetched(known: Any) -> Known | None:
    if known is None or isinstance(known, Known):
        return known
    import ray

    found = ray.get(known)
    if not isinstance(found, Known):
        raise UsageError(f"known is a {type(found).__name__}.", "Give `Known.read(…)`.")
    return found


def _columns(batch: Any) -> Mapping[str, Sequence[Any]]:
    """Return the columns of a batch, whichever of its forms the caller's library uses."""
    if isinstance(batch, pa.Table | pa.RecordBatch):
        names = [name for name in batch.schema.names if name in (*_BYTES, _PATH, _PIXELS)]
        return {name: _values(batch[name]) for name in names}
    if isinstance(batch, Mapping):
        return batch
    columns = getattr(batch, "columns", None)  # a data frame
    if columns is None:
        raise UsageError(
            f"A batch of {type(batch).__name__} holds no columns.",
            'Give batch_format="pyarrow" to map_batches.',
        )
    return {str(name): batch[name].tolist() for name in columns}


def _values(column: Any) -> Sequence[Any]:
    """Return a column's values: bytes and text as Python's, pixels as arrays."""
    if hasattr(column.type, "shape") or "ensor" in str(column.type):  # Ray's types of pixels
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        chunks = whole.chunks if isinstance(whole, pa.ChunkedArray) else [whole]
        return [array for chunk in chunks for array in chunk.to_numpy(zero_copy_only=False)]
    values: list[Any] = column.to_pylist()
    return values


def _pictures(columns: Mapping[str, Sequence[Any]]) -> Iterable[Picture]:
    source = next((name for name in (*_BYTES, _PIXELS) if name in columns), None)
    if source is None:
        raise UsageError(
            f"The batch has no pictures; its columns are {', '.join(map(str, columns))}.",
            'Name the files\' bytes "bytes", or pixels "image"; '
            "ray.data.read_binary_files(…, include_paths=True) does.",
        )
    names = columns.get(_PATH)
    for place, value in enumerate(columns[source]):
        named = names[place] if names is not None else None
        # a data frame has NaN for null, which equals nothing
        is_null = named is None or named != named
        name = f"picture {place}" if is_null else picture_name(str(named))
        if value is None:
            yield Picture(name, ValueError(f"{last_part(name)}: its content is null."))
        elif source == _PIXELS:
            yield Picture.of_pixels(name, np.asarray(value))
        else:
            yield Picture.of_file(name, bytes(value))
