"""Caption one picture of noise by transformers' own class: `memory.convert` starts this.

    python -m benchmarks.memory.by_transformers instructblip-7b FOLDER WIDTH HEIGHT MAX_TOKENS

Prints one JSON object with seconds. The weights are in bfloat16: in float32 a model of 7 billion
parameters takes 32 GB.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

_TEXT = 20  # tokens of an instruction


def main() -> None:
    size, folder, width, height, max_tokens = sys.argv[1:]
    if size != "instructblip-7b":
        raise SystemExit(f"transformers has no class for {size} in its published layout")
    noise = np.random.default_rng(0).integers(0, 256, (int(height), int(width), 3), dtype=np.uint8)
    print(json.dumps(_instructblip(Path(folder), Image.fromarray(noise), int(max_tokens))))


def _instructblip(folder: Path, picture: Image.Image, max_tokens: int) -> dict[str, object]:
    from transformers import BlipImageProcessor, InstructBlipForConditionalGeneration

    start = time.perf_counter()
    model = InstructBlipForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    model.eval()
    loaded = time.perf_counter()
    # the file of random weights has no entry for the place of a visual token: the last one serves
    place = model.config.text_config.vocab_size - 1
    model.config.image_token_index = place
    pixels = BlipImageProcessor.from_pretrained(folder)(images=picture, return_tensors="pt")
    text = torch.arange(10, 10 + _TEXT)
    ids = torch.cat([torch.full((model.config.num_query_tokens,), place), torch.ones(1), text])
    ids = ids.to(torch.int64)[None]
    with torch.inference_mode():
        output = model.generate(
            pixel_values=pixels["pixel_values"].to(torch.bfloat16),
            qformer_input_ids=text[None], qformer_attention_mask=torch.ones_like(text[None]),
            input_ids=ids, attention_mask=torch.ones_like(ids),
            do_sample=False, max_new_tokens=max_tokens, min_new_tokens=max_tokens,
        )  # fmt: skip
    end = time.perf_counter()
    return {
        "dtype": "bfloat16", "seconds_loading": round(loaded - start, 1),
        "seconds_caption": round(end - loaded, 1), "tokens": int(output.shape[-1]),
    }  # fmt: skip


if __name__ == "__main__":
    main()
