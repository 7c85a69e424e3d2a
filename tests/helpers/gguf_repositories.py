"""Repositories of tiny GGUF files, as publishers lay them out, for the stand-in of a hub."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import bundles, mmprojs

PAIR, CHAT = "someone/Tiny-Eyes-GGUF", "someone/Tiny-Chat-GGUF"
LM, MMPROJ = "tiny-eyes-Q8_0.gguf", "mmproj-tiny-eyes-f16.gguf"
CARD = {"license": "apache-2.0"}


def pair_files(folder: Path) -> dict[str, bytes]:
    """Return {name: bytes} of a pair in several quantizations, of which the rule takes one."""
    parts = bundles.lm_parts(2)
    parts.metadata["tokenizer.ggml.add_space_prefix"] = ("bool", False)
    # the markers are tokens, as in published models; the line feed is a byte's piece
    marks = [mark for mark in mmprojs.MARKS if mark != "\n"]
    lm = mmprojs.with_marks(parts, marks=marks).write(folder / "lm.gguf").read_bytes()
    tower = mmprojs.mmproj_parts(mmprojs.IDEFICS).write(folder / "mm.gguf").read_bytes()
    return {
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        LM: lm,
        "tiny-eyes-F16.gguf": lm[:-1] + b"x",
        MMPROJ: tower,
        "mmproj-tiny-eyes-Q8_0.gguf": tower[:-1] + b"x",
        "imatrix.gguf": b"not a model" * 100,
    }


def chat_files(folder: Path) -> dict[str, bytes]:
    """Return {name: bytes} of a language model alone."""
    lm = bundles.lm_parts(3).write(folder / "chat.gguf").read_bytes()
    return {"tiny-chat-Q4_K_M.gguf": lm, "tiny-chat-Q2_K.gguf": lm[:-1] + b"x"}
