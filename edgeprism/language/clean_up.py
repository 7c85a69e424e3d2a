"""How a published tokenizer tidies the text that it puts together, while the text grows."""

from __future__ import annotations

# transformers' `PreTrainedTokenizerBase.clean_up_tokenization`: each is replaced in the whole text
# before the next
_WORDPIECE = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


class Replacer:
    """`str.replace` on a text that comes in pieces."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new
        self._held = ""

    def feed(self, text: str, *, final: bool = False) -> str:
        """Add text; return what no later text can change, all of it if this is the `final` one."""
        *done, rest = (self._held + text).split(self._old)
        sure = len(rest) - (0 if final else overlap(rest, self._old))
        self._held = rest[sure:]
        return "".join(f"{part}{self._new}" for part in done) + rest[:sure]


def cleaners(clean_up: str) -> list[Replacer]:
    """Return what tidies a text, in order; `clean_up` is as of the manifest's `Decoder`."""
    return [Replacer(*pair) for pair in (_WORDPIECE if clean_up == "wordpiece" else ())]


def overlap(text: str, pattern: str) -> int:
    """Return how many characters at the end of `text` are the beginning of `pattern`."""
    longest = min(len(text), len(pattern) - 1)
    return next((n for n in range(longest, 0, -1) if pattern.startswith(text[-n:])), 0)
