"""Text that is tidied while it grows is what transformers makes of the whole."""

from __future__ import annotations

import random

import pytest
from transformers import PreTrainedTokenizerBase

from edgeprism.language.stop_text import StoppingText

TEXTS = (
    " a man ' s dog , isn ' t it ? yes ! it is . . . and so on",
    " they ' ve said we ' re here , i ' m not . he 's n't , 've 're 'm",
    " ' ' ' . ' , ' ",
    " 3 . 5 apples , 2 , 000 ! ? ! . '",
)


@pytest.mark.parametrize("text", TEXTS)
def test_it_is_what_transformers_makes_of_the_whole(text: str) -> None:
    expected = PreTrainedTokenizerBase.clean_up_tokenization(text).strip()
    rng = random.Random(1)
    for longest in (1, 2, 5, 100):
        stopping, rest, pieces = StoppingText((), "wordpiece"), text, []
        while rest:
            n = rng.randint(1, longest)
            pieces.append(stopping.feed(rest[:n].encode()))
            rest = rest[n:]
        pieces.append(stopping.end())
        assert stopping.whole == "".join(pieces) == expected


def test_random_texts() -> None:
    rng = random.Random(2)
    for _ in range(300):
        text = "".join(rng.choice([" ", " ", "'", ".", ",", "n't", "s", "m", "re", "a"])
                       for _ in range(rng.randint(1, 30)))  # fmt: skip
        stopping = StoppingText((), "wordpiece")
        said = "".join(stopping.feed(letter.encode()) for letter in text) + stopping.end()
        assert said == PreTrainedTokenizerBase.clean_up_tokenization(text).strip(), text


def test_a_stop_string_is_looked_for_in_the_tidied_text() -> None:
    stopping = StoppingText(("dog.",), "wordpiece")
    said = [stopping.feed(piece.encode()) for piece in (" a", " dog", " .", " and")]
    assert "".join(said) == "a"
    assert stopping.stopped


def test_without_a_rule_nothing_is_changed() -> None:
    stopping = StoppingText(())
    assert stopping.feed(b" a dog . ") + stopping.end() == "a dog ."
