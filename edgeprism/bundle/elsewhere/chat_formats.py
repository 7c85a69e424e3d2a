"""llama.cpp's name of the chat format that a template of Ollama's writes.

Ollama keeps a template of its own (Go's text/template) beside models whose file has none. Nothing
of it is executed: like llama.cpp's own recognition of templates
(`llm_chat_detect_template` in src/llama-chat.cpp), it is known by the marks that it holds.
"""

from __future__ import annotations

from pathlib import Path

from edgeprism.bundle.elsewhere.kept import read_record

# marks that must all be there → format; the first that fits
_MARKS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|im_start|>", "<|im_sep|>"), "phi4"),
    (("<|im_start|>",), "chatml"),
    (("<|start_header_id|>", "<|end_header_id|>"), "llama3"),
    (("<|header_start|>", "<|header_end|>"), "llama4"),
    (("<start_of_turn>",), "gemma"),
    (("[INST]", "<<SYS>>"), "llama2-sys"),
    (("[INST]", "[SYSTEM_PROMPT]"), "mistral-v7"),
    (("[INST]", "[AVAILABLE_TOOLS]"), "mistral-v3"),
    (("[INST]",), "llama2"),
    (("<|assistant|>", "<|end|>"), "phi3"),
    (("<|user|>", "</s>"), "zephyr"),
    (("<|start_of_role|>",), "granite"),
    (("GPT4 Correct User",), "openchat"),
    (("USER:", "ASSISTANT:"), "vicuna"),
)


def chat_format_of(template: Path) -> str | None:
    """Return llama.cpp's name of the format that the template at this path writes.

    None if it is another format, or the file cannot be read.
    """
    try:
        text = read_record(template).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return None
    return next((name for marks, name in _MARKS if all(mark in text for mark in marks)), None)
