"""Bytes of tokens → text in whole characters, up to the first stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from edgeprism.language.clean_up import cleaners, overlap


class StoppingText:
    """Bytes of tokens → text in whole characters, up to the first stop string.

    It holds back text that may be the beginning of a stop string, and white space, which belongs
    to the text only between words. The returned pieces together are `whole`.
    """

    def __init__(self, stop: Sequence[str], clean_up: str = "") -> None:
        """`clean_up` is as of the manifest's `Decoder`."""
        self.stop = tuple(stop)
        self._cleaners = cleaners(clean_up)
        self.whole = ""
        self.stopped = False
        self._held = ""
        self._blank = ""  # white space to append to `whole` if a word follows
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data: bytes) -> str:
        """Add a token's bytes; return the new text that is certain."""
        if self.stopped:
            return ""
        self._held += self._cleaned(self._decoder.decode(data))
        starts = [start for s in self.stop if (start := self._held.find(s)) >= 0]
        if starts:
            self.stopped = True
            return self._emit(min(starts), drop_rest=True)
        longest = max((overlap(self._held, s) for s in self.stop), default=0)
        return self._emit(len(self._held) - longest)

    def end(self) -> str:
        """Return the text that was held back; an unfinished character becomes U+FFFD."""
        if self.stopped:
            return ""
        self._held += self._cleaned(self._decoder.decode(b"", final=True), final=True)
        return self._emit(len(self._held))

    def _cleaned(self, text: str, *, final: bool = False) -> str:
        for cleaner in self._cleaners:
            text = cleaner.feed(text, final=final)
        return text

    def _emit(self, length: int, drop_rest: bool = False) -> str:
        text, rest = self._held[:length], self._held[length:]
        self._held = "" if drop_rest else rest
        text = self._blank + text if self.whole else text.lstrip()
        words = text.rstrip()
        self._blank = text[len(words) :]
        self.whole += words
        return words
