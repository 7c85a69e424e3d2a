"""Memory and time of converting a checkpoint with PrismCaptioner's true dimensions.

    python benchmarks/convert_memory.py --size 2b --work /tmp/convert --keep

Random weights are written to `--work` in the published layout (one shard a layer), then converted
as `edgeprism convert prismcaptioner` does. Printed is one JSON object: seconds and the peak of the
converting process's anonymous memory for each stage, and the size of each file of the bundle.
Needs Linux (/proc) and the [convert] extra.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from checkpoints import write_tokenizer

from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.progress import Progress
from edgeprism.convert.supervise import convert_in_child

N_VOCAB, RANK, ALPHA, KV_HEADS, HEAD_DIM = 92544, 512, 256, 8, 128
SIZES = {  # layers, hidden, heads, ffn
    "2b": (24, 2048, 16, 8192),
    "7b": (32, 4096, 32, 14336),
}
V_LAYERS, V_HIDDEN, V_HEADS, V_FFN, V_SIZE, PATCH = 27, 1152, 16, 4304, 384, 14
SAMPLE_S = 0.05

Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="2b")
    parser.add_argument("--work", type=Path, required=True, help="where checkpoint and bundle go")
    parser.add_argument("--vision-quant", action="append", help="repeatable; default int8")
    parser.add_argument("--lm-quant", default="Q4_K_M")
    parser.add_argument("--keep", action="store_true", help="keep checkpoint and bundle")
    parser.add_argument("--layers", type=int, help="fewer layers of the language model: quicker, "
                        "and the peak is that of the largest matrix all the same")  # fmt: skip
    arguments = parser.parse_args()
    n_layers, *dimensions = SIZES[arguments.size]
    n_layers = arguments.layers or n_layers
    checkpoint = arguments.work / f"checkpoint-{arguments.size}-{n_layers}"
    if not checkpoint.exists():
        write_checkpoint(checkpoint, n_layers, *dimensions)
    out = arguments.work / f"bundle-{arguments.size}"
    options = ConvertOptions(
        vision_quants=tuple(arguments.vision_quant or ["int8"]),
        lm_quant=arguments.lm_quant,
        overwrite=True,
    )
    recorder = Recorder()
    threading.Thread(target=recorder.watch, daemon=True).start()
    convert_in_child(
        "prismcaptioner", out, options, recorder, captioner=checkpoint / "captioner",
        llm=checkpoint / "llm", vision=checkpoint / "vision",
    )  # fmt: skip
    recorder.stage("end")
    result = {
        "size": arguments.size,
        "lm_layers": n_layers,
        "seconds": round(sum(stage["seconds"] for stage in recorder.stages), 1),
        "peak_anonymous_gb": max(stage["peak_anonymous_gb"] for stage in recorder.stages),
        "stages": recorder.stages,
        "files": {p.name: p.stat().st_size for p in sorted(out.glob("*"))},
    }
    print(json.dumps(result, indent=1))
    if not arguments.keep:
        shutil.rmtree(out)
        shutil.rmtree(checkpoint)


class Recorder(Progress):
    """Seconds and peak memory of each stage that the conversion tells of."""

    def __init__(self) -> None:
        self.stages: list[dict[str, Any]] = []
        self._name, self._start, self._peak = "start", time.monotonic(), 0

    def stage(self, text: str, total: int = 0) -> None:
        now = time.monotonic()
        self.stages.append(
            {
                "stage": self._name,
                "seconds": round(now - self._start, 1),
                "peak_anonymous_gb": round(self._peak / 1e9, 2),
            }
        )
        self._name, self._start, self._peak = text, now, 0

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)

    def watch(self) -> None:
        """Sample the converting process for ever; run in a thread."""
        while True:
            _, *children = family_of(os.getpid())
            self._peak = max(self._peak, sum(map(anonymous_bytes, children)))
            time.sleep(SAMPLE_S)


def family_of(pid: int) -> Iterator[int]:
    """A process and everything below it."""
    yield pid
    try:
        children = [
            int(child)
            for task in os.listdir(f"/proc/{pid}/task")
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    except OSError:
        return  # it has just ended
    for child in children:
        yield from family_of(child)


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that no file backs."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0  # it has just ended
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def write_checkpoint(folder: Path, n_layers: int, hidden: int, heads: int, ffn: int) -> None:
    """Random weights, drawn and written a shard at a time."""
    generator = torch.Generator().manual_seed(0)
    llm, vision, captioner = folder / "llm", folder / "vision", folder / "captioner"
    adapter, projector = captioner / "llm_adapter", captioner / "projector"
    for path in (llm, vision, adapter, projector):
        path.mkdir(parents=True)
    write_tokenizer(llm, add_dummy_prefix=False)
    layers = [layer_shapes(i, hidden, heads, ffn) for i in range(n_layers)]
    ends: Shapes = {
        "model.tok_embeddings.weight": (N_VOCAB, hidden),
        "model.norm.weight": (hidden,),
        "output.weight": (N_VOCAB, hidden),
    }
    write_shards(llm, [*layers, ends], torch.bfloat16, generator)
    write_config(
        llm, model_type="internlm2", hidden_size=hidden, intermediate_size=ffn,
        num_hidden_layers=n_layers, num_attention_heads=heads, num_key_value_heads=KV_HEADS,
        vocab_size=N_VOCAB, max_position_embeddings=32768, rope_theta=1000000, rms_norm_eps=1e-5,
        hidden_act="silu", bias=False, tie_word_embeddings=False,
    )  # fmt: skip
    pairs: Shapes = {}
    for name, shape in {k: v for part in (*layers, ends) for k, v in part.items()}.items():
        if len(shape) == 2 and "tok_embeddings" not in name:
            lead = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            pairs |= {f"{lead}A.weight": (RANK, shape[1]), f"{lead}B.weight": (shape[0], RANK)}
    write_file(adapter / "adapter_model.safetensors", pairs, torch.float16, generator)
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none"})
    )
    tower = {"model_type": "siglip_vision_model", "hidden_size": V_HIDDEN,
             "intermediate_size": V_FFN, "num_hidden_layers": V_LAYERS,
             "num_attention_heads": V_HEADS, "image_size": V_SIZE, "patch_size": PATCH}  # fmt: skip
    write_file(vision / "model.safetensors", vision_shapes(), torch.float32, generator)
    write_config(vision, model_type="siglip", vision_config=tower)
    ends = {"model.0.weight": (hidden, V_HIDDEN), "model.0.bias": (hidden,),
            "model.2.weight": (hidden, hidden), "model.2.bias": (hidden,)}  # fmt: skip
    write_file(projector / "model.safetensors", ends, torch.float16, generator)
    write_config(projector, model_type="projector", depth=2, visual_hidden_size=V_HIDDEN,
                 llm_hidden_size=hidden, hidden_act="gelu", bias=True)  # fmt: skip


def layer_shapes(i: int, hidden: int, heads: int, ffn: int) -> Shapes:
    layer = f"model.layers.{i}."
    return {
        layer + "attention_norm.weight": (hidden,),
        layer + "attention.wqkv.weight": ((heads + 2 * KV_HEADS) * HEAD_DIM, hidden),
        layer + "attention.wo.weight": (hidden, hidden),
        layer + "ffn_norm.weight": (hidden,),
        layer + "feed_forward.w1.weight": (ffn, hidden),
        layer + "feed_forward.w3.weight": (ffn, hidden),
        layer + "feed_forward.w2.weight": (hidden, ffn),
    }


def vision_shapes() -> Shapes:
    e, f = V_HIDDEN, V_FFN
    shapes: Shapes = {
        "embeddings.patch_embedding.weight": (e, 3, PATCH, PATCH),
        "embeddings.patch_embedding.bias": (e,),
        "embeddings.position_embedding.weight": ((V_SIZE // PATCH) ** 2, e),
    }
    for i in range(V_LAYERS):
        layer = f"encoder.layers.{i}."
        linears = {f"self_attn.{p}": (e, e) for p in ("q_proj", "k_proj", "v_proj", "out_proj")}
        linears |= {"mlp.fc1": (f, e), "mlp.fc2": (e, f)}
        for name, (n_out, n_in) in linears.items():
            shapes[f"{layer}{name}.weight"] = (n_out, n_in)
            shapes[f"{layer}{name}.bias"] = (n_out,)
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{name}.weight": (e,), f"{layer}{name}.bias": (e,)}
    return {f"vision_model.{name}": shape for name, shape in shapes.items()}


def write_shards(
    folder: Path, shards: list[Shapes], dtype: torch.dtype, generator: torch.Generator
) -> None:
    weight_map = {}
    for i, shapes in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shapes, dtype, generator)
        weight_map |= dict.fromkeys(shapes, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_file(path: Path, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> None:
    tensors = {
        name: random_tensor(name, shape, generator).to(dtype) for name, shape in shapes.items()
    }
    save_file(tensors, path, {"format": "pt"})


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Norms near one, biases small, matrices that halve what they are given, like trained ones."""
    if len(shape) == 1:
        return (0.0 if "bias" in name else 1.0) + 0.1 * torch.randn(shape, generator=generator)
    n_in = torch.Size(shape[1:]).numel()
    scale = 1.0 if "tok_embeddings" in name or "lora_A" in name else 0.5
    if "lora_B" in name:
        scale = 0.2
    return torch.randn(shape, generator=generator) * (scale / n_in**0.5)


def write_config(folder: Path, **fields: object) -> None:
    (folder / "config.json").write_text(json.dumps(fields, indent=1))


if __name__ == "__main__":
    main()
