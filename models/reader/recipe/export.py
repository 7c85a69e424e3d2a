"""Write the adapter as GGUF: ``python -m edgeprism.models.reader.recipe.export CKPT BASE OUT``.

`CKPT` is training's checkpoint, `BASE` the reasoner's GGUF file.
The narrow matrices that read (lora_a) become Q8_0, those that write (lora_b) F16: their rows have
as many values as the rank, and Q8_0 needs 32.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import torch

from edgeprism.models.reader.recipe.learn.model import AdapterConfig, Reader, read_base

NAME = "SmolLM2 135M reader"
PROMPTS = (
    "edgeprism.reader",
    1,
)  # it was taught EdgePrism's prompts: the runtime needs no examples


def load_reader(checkpoint: Path, base: Path) -> tuple[Reader, int]:
    """Return the reasoner with the checkpoint's adapter, and the steps that it was trained."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = Reader(*read_base(base), AdapterConfig(saved["rank"], saved["alpha"]))
    model.load_state_dict(saved["adapter"])
    return model.eval(), saved["step"]


def write_adapter(model: Reader, path: Path, *, steps: int) -> None:
    """Write the adapter of `model` to a new file, then rename it to `path`."""
    import gguf

    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", model.adapter.alpha)
    writer.add_uint32(*PROMPTS)
    writer.add_name(NAME)
    writer.add_license("apache-2.0")
    writer.add_description(
        f"Reads descriptions of pictures: answers, focuses, supporting sentences. {steps} steps."
    )
    for name, (down, up) in model.named_pairs().items():
        _add(writer, f"{name}.lora_a", down.detach().float().numpy())
        _add(writer, f"{name}.lora_b", up.detach().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, path)


def _add(writer: object, name: str, values: np.ndarray) -> None:
    import gguf

    assert isinstance(writer, gguf.GGUFWriter)
    kind = gguf.GGMLQuantizationType
    fits = values.shape[1] % gguf.GGML_QUANT_SIZES[kind.Q8_0][0] == 0
    quantized = kind.Q8_0 if fits else kind.F16
    data = gguf.quants.quantize(np.ascontiguousarray(values), quantized)
    writer.add_tensor(name, data, raw_dtype=quantized)


def main(arguments: list[str] | None = None) -> int:
    """Export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path, help="adapter.pt of a training run")
    parser.add_argument("base", type=Path, help="GGUF file of the reasoner")
    parser.add_argument("out", type=Path, help="GGUF file to write")
    options = parser.parse_args(arguments)
    model, steps = load_reader(options.checkpoint, options.base)
    write_adapter(model, options.out, steps=steps)
    data = options.out.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    print(f"{options.out}: {len(data):,} bytes, {steps} steps, sha256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
