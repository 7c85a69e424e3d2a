"""Compare EdgePrism's decoding with what llama.cpp alone gives: a bare loop over `llama_decode`.

    python -m benchmarks.speed.decode [--bundle nano] [--tokens 64] [--runs 7] [--threads N]

In turns in one process: EdgePrism writes a caption of `--tokens` tokens, and the loop feeds one
token again and again to a context of the same GGUF file, from the same position, with the same
threads, without looking at what the model says. So the loop neither samples nor makes text. Both
have their prompt in the KV cache already. Prints minimum / median / maximum, and ratios of pairs.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks.machine import spread
from edgeprism import Caption, Captioner
from edgeprism.language.llama import has_amx, import_llama
from tests.helpers.captions import stream

SPARE = 256  # cells beyond prompt and caption


class BareLoop:
    """A model and a context of llama.cpp's, as its own programs would make them."""

    def __init__(self, path: str, n_prompt: int, n_tokens: int, threads: int) -> None:
        self._llama = llama = import_llama()
        model_params = llama.llama_model_default_params()
        model_params.n_gpu_layers = 0
        model_params.use_extra_bufts = not has_amx()  # its code for AMX crashes
        self._model = llama.llama_model_load_from_file(path.encode(), model_params)
        params = llama.llama_context_default_params()
        params.n_ctx = n_prompt + n_tokens + SPARE
        params.n_threads = params.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._n_prompt = n_prompt
        most = llama.llama_n_batch(self._context)
        for start in range(0, n_prompt, most):
            self._decode([_token(i) for i in range(start, min(start + most, n_prompt))])

    def seconds(self, n_tokens: int) -> float:
        """Return the seconds of `n_tokens` steps after the prompt."""
        memory = self._llama.llama_get_memory(self._context)
        self._llama.llama_memory_seq_rm(memory, 0, self._n_prompt, -1)
        start = time.perf_counter()
        for i in range(n_tokens):
            self._decode([_token(i)])
        return time.perf_counter() - start

    def _decode(self, tokens: list[int]) -> None:
        ids: Any = (self._llama.llama_token * len(tokens))(*tokens)
        batch = self._llama.llama_batch_get_one(ids, len(tokens))
        if self._llama.llama_decode(self._context, batch):
            raise SystemExit("llama.cpp failed to decode")


def _token(i: int) -> int:
    return 3 + i % 61  # any ordinary tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    captioner = Captioner.load(arguments.bundle, device="cpu", threads=arguments.threads)
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    encoded, n_tokens = captioner.encode(picture), arguments.tokens

    def caption() -> Caption:
        made = stream(captioner, encoded, caption_tokens=1 + n_tokens, stop_at_end=False)
        return made.finished().caption

    first = caption()  # loads the language model and takes the picture in
    n_prompt = first.tokens.visual + first.tokens.prompt
    file = captioner.bundle.file(captioner.bundle.manifest.lm.file)
    threads = captioner.engines.lm_threads()
    bare = BareLoop(str(file), n_prompt, n_tokens, threads)
    bare.seconds(n_tokens)
    own, alone = [], []
    for _ in range(arguments.runs):
        own.append(n_tokens / caption().timings.decode * 1000)
        alone.append(n_tokens / bare.seconds(n_tokens))
    print(f"{arguments.bundle}, {n_tokens} tokens after {n_prompt}, {threads} threads, "
          f"{arguments.runs} runs in turns; tokens/s, minimum / median / maximum")  # fmt: skip
    print(f"EdgePrism             {spread(own)}")
    print(f"llama.cpp alone       {spread(alone)}")
    print(f"EdgePrism / llama.cpp {spread([a / b for a, b in zip(own, alone, strict=True)])}")


if __name__ == "__main__":
    main()
