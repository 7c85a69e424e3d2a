"""The conversation templates that captioners were trained with.

Their wording must match the training: other words give worse captions. Sources: the
conversation templates in the public repositories of LLaVA, LLaVA-NeXT, VILA and Prismatic VLMs,
and the model cards of the llava-hf models.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeprism.bundle.manifest import Markers, Several
from edgeprism.errors import UsageError


@dataclass(frozen=True)
class Conversation:
    """before_image · picture · after_image + instruction + after_instruction · before_caption.

    The tokenizer reads `after_image`, the instruction and `after_instruction` as one text. Special
    tokens are parsed in `before_image`, `picture_begin`, `picture_end` and `before_caption` alone;
    the tokenizer must know the special tokens of `needed`.
    """

    before_image: str
    after_image: str
    after_instruction: str = ""
    before_caption: str = ""
    stop: tuple[str, ...] = ("</s>",)
    eos: str = ""  # the token that ends an answer; "": the tokenizer's own end token
    needed: tuple[str, ...] = ()
    # special tokens directly before and after the picture's visual tokens
    picture_begin: str = ""
    picture_end: str = ""
    several: Several | None = None  # for models trained on several pictures in one turn
    instruction: str | None = None  # the default where the card names none; None: EdgePrism's own
    focus: str = ""  # what a focus adds to an instruction; "": EdgePrism's own
    repetition_penalty: float = 1.0  # with which the published model is used; 1: none
    takes_focus: bool = True  # the model does what an instruction says


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
    # LLaVA's "v1" and ShareGPT4V
    "vicuna-v1": Conversation(f"{_CHAT.format('human')} USER: ", "\n", " ASSISTANT:"),
    # VILA's "vicuna_v1"
    "vicuna-user": Conversation(f"{_CHAT.format('user')} USER: ", "\n", " ASSISTANT:"),
    # LLaVA's "v0"
    "vicuna-v0": Conversation(
        f"{_CHAT.format('human')}###Human: ", "\n", "###Assistant:", stop=("###", "</s>")
    ),
    # LLaVA's "llava_llama_2"
    "llama-2": Conversation(f"[INST] <<SYS>>\n{_HELPFUL}\n<</SYS>>\n\n", "\n", " [/INST]"),
    # LLaVA-NeXT on Mistral
    "mistral": Conversation("[INST] ", "\n", " [/INST]"),
    # LLaVA-1.5, in llava-hf's model cards
    "user-assistant": Conversation("USER: ", "\n", " ASSISTANT:"),
    # LLaVA's "chatml_direct", VILA's "hermes-2"
    "chatml": Conversation(
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n",
        "\n",
        before_caption="<|im_end|><|im_start|>assistant\n",
        **_CHATML,  # type: ignore[arg-type]
    ),
    # LLaVA-NeXT's "qwen_1_5"
    "qwen": Conversation(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "\n",
        before_caption="<|im_end|>\n<|im_start|>assistant\n",
        **_CHATML,  # type: ignore[arg-type]
    ),
    # LLaVA-NeXT-Interleave, in llava-hf's model cards
    "interleave": Conversation(
        "<|im_start|>user ",
        "\n",
        before_caption="<|im_end|><|im_start|>assistant",
        **_CHATML,  # type: ignore[arg-type]
    ),
    # VILA's "llama_3"
    "llama-3": Conversation(
        f"{_HEADER.format('system')}{_HELPFUL}<|eot_id|>{_HEADER.format('user')}",
        "\n",
        before_caption=f"<|eot_id|>{_HEADER.format('assistant')}",
        stop=("<|eot_id|>", "<|end_of_text|>"),
        eos="<|eot_id|>",
        needed=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    # Mini-Gemini's "llama_3": it was trained with the header of the system before its answers
    "llama-3-system": Conversation(
        f"{_HEADER.format('system')}{_HELPFUL}<|eot_id|>{_HEADER.format('user')}",
        "\n",
        before_caption=f"<|eot_id|>{_HEADER.format('system')}",
        stop=("<|eot_id|>", "<|end_of_text|>"),
        eos="<|eot_id|>",
        needed=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    # Mini-Gemini's "gemma"
    "gemma": Conversation(
        "<start_of_turn>user\n",
        "\n",
        before_caption="<end_of_turn>\n<start_of_turn>model\n",
        stop=("<end_of_turn>", "<eos>"),
        eos="<end_of_turn>",
        needed=("<start_of_turn>", "<end_of_turn>"),
    ),
    # Prismatic puts the picture before all text
    "prismatic-pure": Conversation("", "In: ", "\nOut:"),
    "prismatic-vicuna": Conversation("", f"{_CHAT.format('user')} USER: ", " ASSISTANT:"),
}


# MiniCPM-V's text around an overview and slices, up to Llama3-V 2.5
MINICPM_SLICES = Markers(
    begin="",
    before_overview="<image>",
    after_overview="</image>",
    between="<slice>",
    before_tile="<image>",
    after_tile="</image>",
    after_row="",
    between_rows="\n",
    after_tiles="</slice>",
    end="",
)


def conversation_named(name: str) -> Conversation:
    """Return `name` of CONVERSATIONS; UsageError lists the known names."""
    if name not in CONVERSATIONS:
        raise UsageError(
            f"The conversation form {name} is not known.", f"Known: {', '.join(CONVERSATIONS)}."
        )
    return CONVERSATIONS[name]
