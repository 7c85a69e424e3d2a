"""Conversation forms that captioners were trained with: what stands around picture and question.

The wording is a fact of the published models: other words give worse captions. Sources: the
conversation templates in the public repositories of LLaVA, LLaVA-NeXT, VILA and Prismatic VLMs,
and the model cards of the llava-hf models.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeprism.bundle.manifest import Several
from edgeprism.errors import UsageError


@dataclass(frozen=True)
class Conversation:
    """before_image · picture · after_image + instruction + after_instruction · before_caption.

    The three in the middle are one text for the tokenizer; special tokens are parsed in
    `before_image` and `before_caption` alone. `needed` are those that the tokenizer must know.
    """

    before_image: str
    after_image: str
    after_instruction: str = ""
    before_caption: str = ""
    stop: tuple[str, ...] = ("</s>",)
    eos: str = ""  # where the tokenizer's own end token is not what ends an answer
    needed: tuple[str, ...] = ()
    # special tokens right around the picture's rows
    picture_begin: str = ""
    picture_end: str = ""
    several: Several | None = None  # for models that were trained on several pictures in a turn


_CHAT = "A chat between a curious {0} and an artificial intelligence assistant. The assistant "
_CHAT += "gives helpful, detailed, and polite answers to the {0}'s questions."
_HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_CHATML = {"stop": ("<|im_end|>",), "eos": "<|im_end|>", "needed": ("<|im_start|>", "<|im_end|>")}
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"

CONVERSATIONS: dict[str, Conversation] = {
    # LLaVA "v1" and ShareGPT4V
    "vicuna-v1": Conversation(f"{_CHAT.format('human')} USER: ", "\n", " ASSISTANT:"),
    # VILA "vicuna_v1"
    "vicuna-user": Conversation(f"{_CHAT.format('user')} USER: ", "\n", " ASSISTANT:"),
    # LLaVA "v0"
    "vicuna-v0": Conversation(
        f"{_CHAT.format('human')}###Human: ", "\n", "###Assistant:", stop=("###", "</s>")
    ),
    # LLaVA "llava_llama_2"
    "llama-2": Conversation(f"[INST] <<SYS>>\n{_HELPFUL}\n<</SYS>>\n\n", "\n", " [/INST]"),
    # LLaVA-NeXT on Mistral
    "mistral": Conversation("[INST] ", "\n", " [/INST]"),
    # llava-hf's cards of LLaVA-1.5
    "user-assistant": Conversation("USER: ", "\n", " ASSISTANT:"),
    # LLaVA "chatml_direct", VILA "hermes-2"
    "chatml": Conversation(
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n",
        "\n",
        before_caption="<|im_end|><|im_start|>assistant\n",
        **_CHATML,  # type: ignore[arg-type]
    ),
    # LLaVA-NeXT "qwen_1_5"
    "qwen": Conversation(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "\n",
        before_caption="<|im_end|>\n<|im_start|>assistant\n",
        **_CHATML,  # type: ignore[arg-type]
    ),
    # llava-hf's cards of LLaVA-NeXT-Interleave
    "interleave": Conversation(
        "<|im_start|>user ",
        "\n",
        before_caption="<|im_end|><|im_start|>assistant",
        **_CHATML,  # type: ignore[arg-type]
    ),
    # VILA "llama_3"
    "llama-3": Conversation(
        f"{_HEADER.format('system')}{_HELPFUL}<|eot_id|>{_HEADER.format('user')}",
        "\n",
        before_caption=f"<|eot_id|>{_HEADER.format('assistant')}",
        stop=("<|eot_id|>", "<|end_of_text|>"),
        eos="<|eot_id|>",
        needed=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    # Prismatic puts the picture in front of all text
    "prismatic-pure": Conversation("", "In: ", "\nOut:"),
    "prismatic-vicuna": Conversation("", f"{_CHAT.format('user')} USER: ", " ASSISTANT:"),
}


def conversation_named(name: str) -> Conversation:
    """One of CONVERSATIONS; UsageError lists them for any other name."""
    if name not in CONVERSATIONS:
        raise UsageError(
            f"The conversation form {name} is not known.", f"Known: {', '.join(CONVERSATIONS)}."
        )
    return CONVERSATIONS[name]
