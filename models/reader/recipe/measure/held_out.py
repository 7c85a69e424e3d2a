"""Measure a reasoner on examples of the kinds that the adapter was taught, never those themselves.

``python -m edgeprism.models.reader.recipe.measure.held_out --reasoner BASE.gguf+ADAPTER.gguf``

A reply is right if it is the example's, letter by letter. Focus and evidence are bound to their
shapes, as the runtime binds them. Training's seed draws other examples than this one.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import defaultdict

from edgeprism import Reasoner
from edgeprism.models.reader.recipe.world.examples import FOCUS_TASK, Example, sample_group
from edgeprism.reason.focus import FOCUS_LINKS, FOCUS_OPENINGS, focus_phrases
from edgeprism.reason.question import Question
from edgeprism.reason.shape import Shape, numbers_to_shape, phrases_to_shape

SEED = 1_000_003  # not a seed of training
_TOKENS = 32


def to_shape(example: Example) -> Shape | None:
    """Return the shape in which the runtime asks for a reply; None where it sets none."""
    content = example.messages[-1].content
    if example.task == "focus":
        question = Question(content.removeprefix(FOCUS_TASK).strip())
        return phrases_to_shape(
            focus_phrases(question), openings=FOCUS_OPENINGS, links=FOCUS_LINKS, limit=12
        )
    if example.task == "evidence":
        numbered = content.split("\n\nQuestion: ")[0]
        return numbers_to_shape(len(re.findall(r"^\d+\. ", numbered, re.MULTILINE)))
    return None


def measure(reasoner: Reasoner, groups: int, seed: int) -> dict[str, list[bool]]:
    """Return for each task, and for answers by their form, which replies were right."""
    right: dict[str, list[bool]] = defaultdict(list)
    for number in range(groups):
        for example in sample_group(seed, number):
            reply = reasoner.complete(
                example.messages, max_tokens=_TOKENS, shape=to_shape(example)
            ).text
            form = example.reply if example.reply in ("yes", "no") else ""
            form = form or ("unknown" if "does not say" in example.reply else "other")
            task = f"answer: {form}" if example.task == "answer" else example.task
            right[task].append(reply.strip() == example.reply)
    return right


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reasoner", default="smollm2-135m", help="name or GGUF file")
    parser.add_argument("--groups", type=int, default=100, help="of about five examples each")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, help="of the reasoner")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    reasoner = Reasoner.load(options.reasoner, threads=options.threads)
    right = measure(reasoner, options.groups, options.seed)
    reasoner.close()
    print(f"{options.reasoner}, seed {options.seed}, {time.perf_counter() - began:.0f} s")
    for task, hits in sorted(right.items()):
        print(f"{task:<18}{sum(hits):>5} of {len(hits):<5}{sum(hits) / len(hits):7.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
