"""What a program may ask for by name: a picture's description, and answers about pictures.

`mcp_server` offers these tools by the Model Context Protocol; nothing here knows a protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from edgeprism.choices import ALL, AUTO
from edgeprism.files.safe_text import short_line
from edgeprism.perceive.options import CaptionOptions
from edgeprism.reason.schema_check import Validator
from edgeprism.reason.schema_refs import References
from edgeprism.records import Answer, Caption
from edgeprism.serve.dialect import VISUAL_TOKENS
from edgeprism.serve.events import Answered, Described, Failed
from edgeprism.serve.folders import Folders
from edgeprism.serve.models import ModelName
from edgeprism.serve.options import Limits
from edgeprism.serve.refusals import Refusal
from edgeprism.serve.service import Description, Query, Service
from edgeprism.serve.uploads import Upload, to_name, to_upload

_NAME_CHARS = 200  # of a path that a message repeats
_CAUTION = "A small model on this machine writes it from the pixels alone, and it may be wrong."


@dataclass(frozen=True)
class Result:
    """What a tool returns: a text to read, and the same as JSON."""

    text: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """One tool; `arguments` and `result` are JSON schemas."""

    name: str
    title: str
    description: str
    arguments: dict[str, Any]
    result: dict[str, Any]
    call: Callable[[Mapping[str, Any]], Awaitable[Result]]


class _Room:
    """Bytes that the pictures of all calls may hold together; who finds too little room waits."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncGenerator[None]:
        """Hold `size` bytes of the room inside the block."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            async with self._changed:
                self._changed.notify_all()


class Tools:
    """The tools of one server."""

    def __init__(self, service: Service, folders: Folders) -> None:
        self._service, self._folders, self._limits = service, folders, service.limits
        self._room = _Room(self._limits.bodies_bytes)
        describe = Tool(
            "describe_picture", "Describe a picture",
            f"Describe a picture in words. {_CAUTION} It reads pictures in {folders}.",
            _describe_arguments(self._limits), _describe_result(), self._describe,
        )  # fmt: skip
        ask = Tool(
            "ask_picture", "Ask about pictures",
            "Answer a question about one or several pictures, with the sentences of their "
            f"descriptions that support the answer. {_CAUTION} It reads pictures in {folders}.",
            _ask_arguments(self._limits), _ask_result(), self._ask,
        )  # fmt: skip
        self.by_name = {tool.name: tool for tool in (describe, ask)}

    async def call(self, tool: Tool, arguments: Mapping[str, Any]) -> Result:
        """Run a tool. Raises Refusal and EdgePrismError, which say what to do."""
        fault = Validator(tool.arguments, References(tool.arguments)).fault(dict(arguments))
        if fault:
            names = ", ".join(tool.arguments["properties"])
            fault = fault.removesuffix(".")
            raise Refusal(
                400, "invalid_arguments", f"{tool.name} takes other arguments: {fault}.",
                f"Its arguments: {names}; required: {', '.join(tool.arguments['required'])}.",
            )  # fmt: skip
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                return await tool.call(arguments)
        except TimeoutError as error:
            raise Refusal(
                504, "too_slow", f"There was no result within {self._limits.answer_seconds:.0f} s.",
                "Ask about fewer pictures at a time.",
            ) from error  # fmt: skip

    @asynccontextmanager
    async def _pictures(self, paths: list[str]) -> AsyncGenerator[tuple[Upload, ...]]:
        """Read pictures, and hold their share of the room for all calls. Raises Refusal."""
        sizes = await asyncio.to_thread(lambda: [self._folders.size(path) for path in paths])
        most = self._limits.bodies_bytes
        if sum(sizes) > most:
            what = short_line(paths[0], _NAME_CHARS) if len(paths) == 1 else "Together the pictures"
            raise Refusal(
                413, "too_large", f"{what}: {sum(sizes) >> 20} MiB; at most {most >> 20} are read.",
                "Name smaller pictures, or fewer at a time.",
            )  # fmt: skip
        async with self._room.taken(sum(sizes)):
            uploads = []
            for number, (path, size) in enumerate(zip(paths, sizes, strict=True), 1):
                data = await asyncio.to_thread(self._folders.read, path, size)
                uploads.append(to_upload(to_name(path, number), data, self._limits))
            yield tuple(uploads)

    async def _describe(self, arguments: Mapping[str, Any]) -> Result:
        options = CaptionOptions()
        if instruction := arguments.get("instruction", "").strip():
            options["instruction"] = instruction
        if focus := arguments.get("focus", "").strip():
            options["focus"] = focus
        options["visual_tokens"] = arguments.get("visual_tokens")
        async with self._pictures([arguments["path"]]) as pictures:
            model = await self._service.models.resolve(None)
            job = Description(model, pictures, options)
            async with aclosing(self._service.describe(job)) as events:
                async for event in events:
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Described):
                        return _described(arguments["path"], event.caption)
        raise RuntimeError("a picture got neither a caption nor an error")

    async def _ask(self, arguments: Mapping[str, Any]) -> Result:
        paths = arguments["paths"]
        async with self._pictures(paths) as pictures:
            model = await self._reasoning()
            options = CaptionOptions(visual_tokens=arguments.get("visual_tokens"))
            query = Query(Description(model, pictures, options), arguments["question"])
            async with aclosing(self._service.ask(query)) as events:
                async for event in events:
                    if isinstance(event, Answered):
                        return _answered(paths, event.answer)
        raise RuntimeError("a question ended without an answer")

    async def _reasoning(self) -> ModelName:
        """Return the server's captioner and reasoner; Refusal says how to get one."""
        try:
            return await self._service.models.resolve_both(None)
        except Refusal as refusal:
            if refusal.code != "model_not_found":
                raise
            raise Refusal(
                404, refusal.code, f"{refusal.summary} Questions need a reasoner.",
                "Let the user install one: `edgeprism pull smollm2-135m`",
            ) from refusal  # fmt: skip


# ---- schemas


# as long as a path can be on Linux, in characters; longer ones take long to refuse
_PATH = {"type": "string", "maxLength": 4096}
_VISUAL_TOKENS = {
    **VISUAL_TOKENS,
    "description": f'How much of a picture the model takes in: a number of rows, "{AUTO}" or '
    f'"{ALL}", which is the default. Fewer are faster and see less.',
}


def _text(description: str, limits: Limits) -> dict[str, Any]:
    return {"type": "string", "maxLength": limits.text_chars, "description": description}


def _describe_arguments(limits: Limits) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "path": {**_PATH, "description": "The picture's file."},
            "focus": _text("What to look for, such as: the number of boats.", limits),
            "instruction": _text("What to write instead of a general description.", limits),
            "visual_tokens": _VISUAL_TOKENS,
        },
        "required": ["path"],
        "additionalProperties": False,
    }


def _ask_arguments(limits: Limits) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "paths": {
                "type": "array",
                "items": _PATH,
                "minItems": 1,
                "maxItems": limits.pictures,
                "description": "The pictures' files.",
            },
            "question": {**_text("The question.", limits), "pattern": r"\S"},
            "visual_tokens": _VISUAL_TOKENS,
        },
        "required": ["paths", "question"],
        "additionalProperties": False,
    }


_STRING = {"type": "string"}
_NOTES = {"type": "array", "items": _STRING, "description": "What to know about the text."}
_MODEL = {"type": "string", "description": "The model that wrote it."}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _describe_result() -> dict[str, Any]:
    size = {"type": "array", "items": {"type": "integer"}, "description": "Width and height."}
    return _object(path=_STRING, caption=_STRING, size=size, finish_reason=_STRING, model=_MODEL,
                   notes=_NOTES)  # fmt: skip


def _ask_result() -> dict[str, Any]:
    evidence = {
        "type": ["array", "null"],
        "items": _object(path=_STRING, sentence=_STRING),
        "description": "The sentences of the captions that support the answer; none: it may be a "
        "guess; null: the reasoner named none.",
    }
    captions = {"type": "array", "items": _object(path=_STRING, caption=_STRING)}
    focus = {"type": "string", "description": "What the captions attend to."}
    return _object(answer=_STRING, evidence=evidence, captions=captions, focus=focus, model=_MODEL,
                   finish_reason=_STRING, notes=_NOTES)  # fmt: skip


# ---- results


def _described(path: str, caption: Caption) -> Result:
    data = {
        "path": path,
        "caption": caption.text,
        "size": list(caption.image_size),
        "finish_reason": caption.finish_reason,
        "model": caption.model.name,
        "notes": list(caption.notes),
    }
    return Result("\n".join([caption.text, *_remarks(caption.notes)]), data)


def _answered(paths: list[str], answer: Answer) -> Result:
    captions = [
        {"path": path, "caption": caption.text}
        for path, caption in zip(paths, answer.captions, strict=True)
    ]
    evidence = answer.evidence
    sentences = None if evidence is None else [
        {"path": paths[each.picture - 1], "sentence": each.text} for each in evidence
    ]  # fmt: skip
    lines = [answer.text]
    if sentences:
        lines.append("It rests on these sentences of the descriptions:")
        lines += [f"- {short_line(s['path'], _NAME_CHARS)}: {s['sentence']}" for s in sentences]
    elif sentences is not None:
        lines.append("No sentence of the descriptions supports it: it may be a guess.")
    data = {
        "answer": answer.text,
        "evidence": sentences,
        "captions": captions,
        "focus": answer.focus,
        "model": answer.model.name,
        "finish_reason": answer.finish_reason,
        "notes": list(answer.notes),
    }
    return Result("\n".join([*lines, *_remarks(answer.notes)]), data)


def _remarks(notes: tuple[str, ...]) -> list[str]:
    return [f"Note: {note}" for note in notes]
