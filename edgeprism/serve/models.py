"""The models that a server offers: each loads when first asked for and leaves when it is idle."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from edgeprism.bundle.open import dead_link_error, find_dead_link
from edgeprism.errors import EdgePrismError
from edgeprism.files.safe_text import short_line
from edgeprism.install.inventory import list_models
from edgeprism.language.gpu import find_gpu
from edgeprism.memory.parts import ModelParts
from edgeprism.memory.plan import Plan, machine_memory
from edgeprism.perceive.captioner import Captioner
from edgeprism.reason.base import BaseReasoner
from edgeprism.reason.local import Reasoner
from edgeprism.reason.remote import RemoteReasoner, is_url
from edgeprism.serve.engine import CaptionEngine
from edgeprism.serve.options import ServeOptions
from edgeprism.serve.reasoning import ReasonerThread
from edgeprism.serve.refusals import Refusal

_LIST_S = 5.0  # that the list of installed models is believed
_BUSY_S = 5  # after which models in use may have become idle
_NAME_CHARS = 120  # of an unknown name that a message repeats
_TAG = ":latest"  # Ollama's clients add it to names without a tag
_Engine = TypeVar("_Engine", CaptionEngine, ReasonerThread)


# what a model takes in memory (None: nothing here), and the function that makes its engine
_Prepared = tuple[ModelParts | None, Callable[[], _Engine]]


@dataclass(frozen=True)
class ModelName:
    """The models of one request: a captioner, and a reasoner or none."""

    captioner: str
    reasoner: str | None = None

    def __str__(self) -> str:
        return self.captioner + (f"+{self.reasoner}" if self.reasoner else "")


@dataclass(frozen=True)
class Offer:
    """A model that clients may name."""

    name: str
    size: int  # bytes of its files
    license: str
    digest: str  # "" until it is loaded


@dataclass
class _Loaded(Generic[_Engine]):
    """A model in memory."""

    engine: _Engine
    users: int = 0
    last_used: float = field(default_factory=time.monotonic)
    keep_alive_s: float | None = None  # None: as the server's options say


@dataclass(frozen=True)
class InUse(Generic[_Engine]):
    """A model that a request holds."""

    engine: _Engine
    load_ms: float  # that the request has waited until it was in memory; 0 if it was there


class Models:
    """Loads and frees models. Use it in one event loop; `close` frees all."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._loaded: dict[str, _Loaded[Any]] = {}  # "captioner nano" → what is in memory
        self._loading: dict[str, asyncio.Task[_Loaded[Any]]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._installed: dict[str, dict[str, Offer]] = {}
        self._listed = float("-inf")

    # ---- names

    async def offers(self) -> list[Offer]:
        """Return every captioner, alone and with every reasoner."""
        installed = await self._list()
        offers = []
        for captioner in installed["captioner"].values():
            offers.append(captioner)
            for reasoner in installed["reasoner"].values():
                name = str(ModelName(captioner.name, reasoner.name))
                size = captioner.size + reasoner.size
                licenses = dict.fromkeys((captioner.license, reasoner.license))
                offers.append(Offer(name, size, " and ".join(filter(None, licenses)), ""))
        return offers

    async def resolve(self, name: str | None) -> ModelName:
        """Return the models that a request names; the server's own captioner without a name.

        Raises Refusal for a model that is not installed.
        """
        name = (name or self._options.model).removesuffix(_TAG)
        installed = await self._list()
        if name in installed["captioner"]:
            return ModelName(name)
        captioner, plus, reasoner = name.partition("+")
        if name in installed["reasoner"]:
            both = ModelName(self._options.model, name)
            raise Refusal(
                400, "no_captioner", f"{name} is a reasoner, which sees no picture.",
                f"Name a captioner before it: {both}",
            )  # fmt: skip
        known = {"captioner": captioner, **({"reasoner": reasoner} if plus else {})}
        for kind, part in known.items():
            if part not in installed[kind]:
                hint = "GET /v1/models lists what there is; `edgeprism pull` adds models."
                link = find_dead_link(part) if len(part) <= _NAME_CHARS else None
                if link is not None:
                    hint = dead_link_error(link, part).hint
                short = short_line(part, _NAME_CHARS)
                raise Refusal(404, "model_not_found", f"There is no {kind} {short!r} here.", hint)
        return ModelName(captioner, reasoner if plus else None)

    async def resolve_both(self, name: str | None) -> ModelName:
        """Return the models of a question: with the server's own reasoner if none is named."""
        models = await self.resolve(name)
        if models.reasoner is not None:
            return models
        return await self.resolve(f"{models.captioner}+{self._options.reasoner}")

    async def _list(self) -> dict[str, dict[str, Offer]]:
        if time.monotonic() - self._listed > _LIST_S:
            self._installed = await asyncio.to_thread(_installed, self._options)
            self._listed = time.monotonic()
        return self._installed

    # ---- using

    @contextlib.asynccontextmanager
    async def captioner(self, name: str) -> AsyncIterator[InUse[CaptionEngine]]:
        """Hold a captioner inside the block; it loads if it is not there. Raises ModelError."""

        def prepare() -> _Prepared[CaptionEngine]:
            # Each request limits its visual tokens; the memory is counted for all of them.
            captioner = Captioner.load(name, **self._options.engines)
            return captioner.engines.memory_parts(), lambda: _to_engine(captioner)

        async with self._using(f"captioner {name}", prepare) as used:
            yield used

    async def takes_focus(self, name: str) -> bool:
        """Return whether a captioner follows a focus; it is not loaded for that."""
        loaded = self._loaded.get(f"captioner {name}")
        if loaded is None:
            captioner = await asyncio.to_thread(Captioner.load, name, **self._options.engines)
        else:
            captioner = loaded.engine.captioner
        return captioner.takes_focus

    @contextlib.asynccontextmanager
    async def reasoner(self, name: str) -> AsyncIterator[ReasonerThread]:
        """Hold a reasoner inside the block, as `captioner` does; it loads at its first question."""

        def prepare() -> _Prepared[ReasonerThread]:
            reasoner = _to_reasoner(name, self._options)
            return reasoner.memory_parts(), lambda: ReasonerThread(reasoner)

        async with self._using(f"reasoner {name}", prepare) as used:
            yield used.engine

    @contextlib.asynccontextmanager
    async def _using(
        self, key: str, prepare: Callable[[], _Prepared[_Engine]]
    ) -> AsyncIterator[InUse[_Engine]]:
        began: float | None = None
        while (loaded := self._loaded.get(key)) is None:
            began = began or time.perf_counter()
            task = self._loading.get(key)
            if task is None:
                task = asyncio.create_task(self._load(key, prepare))
                self._loading[key] = task
                task.add_done_callback(lambda ended: self._loaded_or_not(key, ended))
            # A client that leaves does not end the load that others may wait for.
            await asyncio.shield(task)
        loaded.users += 1
        load_ms = 0.0 if began is None else (time.perf_counter() - began) * 1000
        try:
            yield InUse(cast("_Engine", loaded.engine), load_ms)
        finally:
            loaded.users -= 1
            loaded.last_used = time.monotonic()

    def _loaded_or_not(self, key: str, ended: asyncio.Task[_Loaded[Any]]) -> None:
        self._loading.pop(key, None)
        if not ended.cancelled():
            ended.exception()  # else asyncio complains where every client has left

    async def _load(self, key: str, prepare: Callable[[], _Prepared[_Engine]]) -> _Loaded[_Engine]:
        async with self._one_at_a_time:
            parts, load = await asyncio.to_thread(prepare)
            if parts is not None:
                await self._make_room(parts)
            engine = await asyncio.to_thread(load)
            self._loaded[key] = loaded = _Loaded(engine)
            self._options.on_log(f"loaded {key}")
            return loaded

    async def _make_room(self, parts: ModelParts) -> None:
        """Free idle models, the longest idle first, until another one fits into the memory.

        Raises Refusal if it does not fit beside models that are in use. One that does not fit at
        all is left to the engines, as by the commands.
        """
        while self._loaded and (lacking := await asyncio.to_thread(_lacking, parts)):
            idle = [key for key, loaded in self._loaded.items() if not loaded.users]
            if not idle:
                raise Refusal(
                    503, "memory_full", f"{parts.name} does not fit beside the models in use: "
                    f"{lacking[0]}.", f"Try again in {_BUSY_S} s.",
                    headers={"Retry-After": str(_BUSY_S)},
                )  # fmt: skip
            await self._free(min(idle, key=lambda key: self._loaded[key].last_used))

    # ---- leaving

    def keep(self, model: ModelName, seconds: float) -> None:
        """Let the models of a request stay for so long after their last use."""
        for key in (f"captioner {model.captioner}", f"reasoner {model.reasoner}"):
            if key in self._loaded:
                self._loaded[key].keep_alive_s = seconds

    def in_memory(self) -> list[str]:
        """Return what is loaded, as "captioner nano"."""
        return list(self._loaded)

    async def free_idle(self) -> None:
        """Free the models that nobody has used for their time."""
        now = time.monotonic()
        for key, loaded in list(self._loaded.items()):
            stays = loaded.keep_alive_s
            stays = self._options.keep_alive_s if stays is None else stays
            if now - loaded.last_used >= stays:
                await self._free(key)

    async def close(self) -> None:
        """Free all models."""
        for task in list(self._loading.values()):
            with contextlib.suppress(Exception):
                await task
        for key in list(self._loaded):
            await self._free(key)

    async def _free(self, key: str) -> None:
        """Free a model, unless it was freed or taken into use meanwhile."""
        if key not in self._loaded or self._loaded[key].users:
            return
        loaded = self._loaded.pop(key)
        await asyncio.to_thread(loaded.engine.close)
        self._options.on_log(f"freed {key}")


def _to_engine(captioner: Captioner) -> CaptionEngine:
    try:
        return CaptionEngine(captioner)
    except BaseException:
        captioner.close()
        raise


def _to_reasoner(name: str, options: ServeOptions) -> BaseReasoner:
    """Return a reasoner of this machine; only a URL that the server was started with is asked."""
    if not is_url(name):
        return Reasoner.load(name, **options.engines)
    return RemoteReasoner.load(name, options.served_model, allow_network=options.allow_network)


def _lacking(parts: ModelParts) -> tuple[str, ...]:
    """Return what another model lacks beside what this process has in memory now, in words."""
    return Plan((parts,), None, machine_memory(find_gpu())).shortages(apart=True)


def _installed(options: ServeOptions) -> dict[str, dict[str, Offer]]:
    """Return the installed models by kind and name, and those that the options name."""
    found: dict[str, dict[str, Offer]] = {"captioner": {}, "reasoner": {}}
    for entry in list_models():
        if entry.state in ("built-in", "installed"):
            offer = Offer(entry.name, entry.size or 0, entry.license, "")
            found[entry.kind][entry.name] = offer
    for kind, name in (("captioner", options.model), ("reasoner", options.reasoner)):
        if name not in found[kind]:
            with contextlib.suppress(EdgePrismError):  # a default that is not here
                found[kind][name] = Offer(name, _size_of(kind, name), "", "")
    return found


def _size_of(kind: str, name: str) -> int:
    """Return the bytes of a model that is named by path or reference. Raises ModelError."""
    if kind == "reasoner":
        return 0 if is_url(name) else Reasoner.load(name).model_bytes()
    captioner = Captioner.load(name)
    return captioner.engines.model_bytes()
