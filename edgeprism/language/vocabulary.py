"""A language model's vocabulary, as llama.cpp reads it from a GGUF file: text ↔ tokens, and chats.

It needs no engine: a model that another engine runs has a GGUF file of its vocabulary alone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeprism.errors import COPY_AGAIN, ModelError, TemplateError
from edgeprism.language.chat import Message
from edgeprism.language.llama import chat_formats, forget_words, import_llama, last_words


class Vocabulary:
    """The vocabulary of a model of llama.cpp, which has to outlive it."""

    clean_up = ""  # how text is put together from pieces; as of the manifest's `Decoder`

    def __init__(self, path: Path, model: Any, chat_template: str | None) -> None:
        """Read the vocabulary of llama.cpp's `model`, which was loaded from `path`."""
        self.path, self._chat_template = path, chat_template
        self._own: Any = None  # the model, if it was opened for its vocabulary
        self._llama = llama = import_llama()
        self.native: Any = llama.llama_model_get_vocab(model)  # llama.cpp's own object
        self.size: int = llama.llama_vocab_n_tokens(self.native)

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Return the token ids of `text`; set `parse_special` only for trusted text."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        buffer = (ctypes.c_int32 * room)()
        count = self._llama.llama_tokenize(
            self.native, data, len(data), buffer, room, False, parse_special
        )
        if count < 0:  # there are more tokens than bytes, namely -count
            buffer = (ctypes.c_int32 * -count)()
            count = self._llama.llama_tokenize(
                self.native, data, len(data), buffer, -count, False, parse_special
            )
        return list(buffer[:count])

    def token_to_bytes(self, token: int) -> bytes:
        """Return a token's bytes, which may be part of a character; empty for a special token."""
        buffer = ctypes.create_string_buffer(64)
        length = self._llama.llama_token_to_piece(self.native, token, buffer, 64, 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self._llama.llama_token_to_piece(self.native, token, buffer, -length, 0, False)
        return buffer.raw[:length]

    def is_end(self, token: int) -> bool:
        """Return whether the vocabulary says that this token ends a generation."""
        return bool(self._llama.llama_vocab_is_eog(self.native, token))

    def ends(self) -> list[int]:
        """Return the tokens that end a turn or a text; of some models they are the same."""
        llama = self._llama
        found = llama.llama_vocab_eot(self.native), llama.llama_vocab_eos(self.native)
        return sorted({int(token) for token in found if token >= 0})

    def bos(self) -> list[int]:
        """Return the begin-of-text token as a list, empty if the vocabulary has none."""
        token = self._llama.llama_vocab_bos(self.native)
        return [token] if token >= 0 else []

    def adds_bos(self) -> bool:
        """Return whether the vocabulary requires a begin-of-text token before every text."""
        return bool(self._llama.llama_vocab_get_add_bos(self.native))

    def render_chat(self, messages: Sequence[Message], chat_format: str | None = None) -> str:
        """Return the chat as one text that ends where the assistant's turn begins.

        It uses llama.cpp's own templates: llama.cpp recognises a fixed list of them and runs no
        Jinja. Raises TemplateError for any other template; `chat_format` names one of the list.
        """
        template = chat_format or self._chat_template
        if template is None:
            raise self._template_error(f"{self.path}: has no chat template.")
        turns = (self._llama.llama_chat_message * len(messages))(
            *((m.role.encode(), m.content.encode()) for m in messages)
        )
        room = 2 * sum(len(m.content.encode()) for m in messages) + 1024
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = self._llama.llama_chat_apply_template(
                template.encode(), turns, len(messages), True, buffer, room
            )
            if length < 0:
                what = f"chat format {chat_format!r}" if chat_format else "its chat template"
                raise self._template_error(f"{self.path}: llama.cpp does not know {what}.")
            if length <= room:
                return buffer.raw[:length].decode("utf-8", errors="replace")
            room = length

    @classmethod
    def open(cls, path: Path, clean_up: str = "") -> Vocabulary:
        """Read the vocabulary alone of the file at `path`; close it.

        The file's header has been checked. Raises ModelError if llama.cpp cannot read it.
        """
        llama = import_llama()
        params = llama.llama_model_default_params()
        params.vocab_only = True
        forget_words()
        model = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise ModelError(f"{path}: llama.cpp cannot load it: {last_words(2)}.", COPY_AGAIN)
        vocabulary = cls(path, model, None)
        vocabulary._own, vocabulary.clean_up = model, clean_up
        return vocabulary

    def close(self) -> None:
        """Free a vocabulary that was opened alone."""
        if self._own:
            self._llama.llama_model_free(self._own)
            self._own = None

    def _template_error(self, message: str) -> TemplateError:
        known = ", ".join(chat_formats())
        return TemplateError(message, f"Name its format with `chat_format`: {known}.")
