"""Write one-tile captioners in their published layouts and dimensions, with random weights.

The writers draw and write one shard at a time, so that writing takes less memory than converting.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.helpers.checkpoints import write_tokenizer

N_VOCAB, RANK, ALPHA, KV_HEADS, HEAD_DIM = 92544, 512, 256, 8, 128
V_LAYERS, V_HIDDEN, V_HEADS, V_FFN, V_SIZE, PATCH = 27, 1152, 16, 4304, 384, 14
# CLIP-L/14-336 and Vicuna-7B
L_VOCAB, L_HIDDEN, L_HEADS, L_FFN = 32000, 4096, 32, 11008
C_LAYERS, C_HIDDEN, C_HEADS, C_FFN, C_SIZE = 24, 1024, 16, 4096, 336

Shapes = dict[str, tuple[int, ...]]


def write_prismcaptioner(folder: Path, n_layers: int, hidden: int, heads: int, ffn: int) -> None:
    """Write a PrismCaptioner: adapter and projector, InternLM2, SigLIP-SO400M."""
    generator = torch.Generator().manual_seed(0)
    llm, vision, captioner = folder / "llm", folder / "vision", folder / "captioner"
    adapter, projector = captioner / "llm_adapter", captioner / "projector"
    for path in (llm, vision, adapter, projector):
        path.mkdir(parents=True)
    shards = write_internlm2(llm, n_layers, hidden, heads, ffn, generator)
    pairs: Shapes = {}
    for name, shape in {k: v for part in shards for k, v in part.items()}.items():
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


def write_internlm2(
    llm: Path, n_layers: int, hidden: int, heads: int, ffn: int, generator: torch.Generator
) -> list[Shapes]:
    """Write a language model into the folder `llm`; return the shapes of its shards."""
    write_tokenizer(llm, add_dummy_prefix=False)
    layers = [internlm2_layer(f"model.layers.{i}.", hidden, heads, ffn) for i in range(n_layers)]
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
    return [*layers, ends]


def internlm2_layer(layer: str, hidden: int, heads: int, ffn: int) -> Shapes:
    return {
        layer + "attention_norm.weight": (hidden,),
        layer + "attention.wqkv.weight": ((heads + 2 * KV_HEADS) * HEAD_DIM, hidden),
        layer + "attention.wo.weight": (hidden, hidden),
        layer + "ffn_norm.weight": (hidden,),
        layer + "feed_forward.w1.weight": (ffn, hidden),
        layer + "feed_forward.w3.weight": (ffn, hidden),
        layer + "feed_forward.w2.weight": (hidden, ffn),
    }


def write_llava(folder: Path, n_layers: int) -> None:
    """Write the original layout: language model and projector in one folder, CLIP in another."""
    generator = torch.Generator().manual_seed(0)
    captioner, vision = folder / "captioner", folder / "vision"
    for path in (captioner, vision):
        path.mkdir(parents=True)
    write_tokenizer(captioner, add_dummy_prefix=True)
    e, f = L_HIDDEN, L_FFN
    shards: list[Shapes] = []
    for i in range(n_layers):
        layer = f"model.layers.{i}."
        attention = {f"{layer}self_attn.{part}_proj.weight": (e, e) for part in "qkvo"}
        norms = dict.fromkeys((f"{layer}input_layernorm.weight",
                               f"{layer}post_attention_layernorm.weight"), (e,))  # fmt: skip
        mlp = {f"{layer}mlp.gate_proj.weight": (f, e), f"{layer}mlp.up_proj.weight": (f, e),
               f"{layer}mlp.down_proj.weight": (e, f)}  # fmt: skip
        shards.append({**attention, **norms, **mlp})
    shards.append({
        "model.embed_tokens.weight": (L_VOCAB, e), "model.norm.weight": (e,),
        "lm_head.weight": (L_VOCAB, e),
        "model.mm_projector.0.weight": (e, C_HIDDEN), "model.mm_projector.0.bias": (e,),
        "model.mm_projector.2.weight": (e, e), "model.mm_projector.2.bias": (e,),
    })  # fmt: skip
    write_shards(captioner, shards, torch.float16, generator)
    write_config(
        captioner, model_type="llava_llama", hidden_size=e, intermediate_size=f,
        num_hidden_layers=n_layers, num_attention_heads=L_HEADS, num_key_value_heads=L_HEADS,
        vocab_size=L_VOCAB, max_position_embeddings=4096, rms_norm_eps=1e-5,
        tie_word_embeddings=False, mm_hidden_size=C_HIDDEN, mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2, mm_vision_select_feature="patch", image_aspect_ratio="pad",
        mm_vision_tower="openai/clip-vit-large-patch14-336",
    )  # fmt: skip
    ahead = {"vision_model.embeddings.class_embedding": (C_HIDDEN,),
             "vision_model.pre_layrnorm.weight": (C_HIDDEN,),
             "vision_model.pre_layrnorm.bias": (C_HIDDEN,)}  # fmt: skip
    shapes = vision_shapes(C_LAYERS, C_HIDDEN, C_FFN, 1 + (C_SIZE // PATCH) ** 2)
    del shapes["vision_model.embeddings.patch_embedding.bias"]
    write_file(vision / "model.safetensors", {**shapes, **ahead}, torch.float32, generator)
    write_config(
        vision, model_type="clip_vision_model", hidden_size=C_HIDDEN, intermediate_size=C_FFN,
        num_hidden_layers=C_LAYERS, num_attention_heads=C_HEADS, image_size=C_SIZE,
        patch_size=PATCH,
    )  # fmt: skip


def vision_shapes(
    n_layers: int = V_LAYERS,
    e: int = V_HIDDEN,
    f: int = V_FFN,
    n_positions: int = (V_SIZE // PATCH) ** 2,
) -> Shapes:
    shapes: Shapes = {
        "embeddings.patch_embedding.weight": (e, 3, PATCH, PATCH),
        "embeddings.patch_embedding.bias": (e,),
        "embeddings.position_embedding.weight": (n_positions, e),
    }
    for i in range(n_layers):
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
    weight_map: dict[str, str] = {}
    for i, shapes in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shapes, dtype, generator)
        weight_map |= dict.fromkeys(shapes, file)
    index = {"metadata": {}, "weight_map": weight_map}  # transformers looks for both
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_file(path: Path, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> None:
    tensors = {
        name: random_tensor(name, shape, generator).to(dtype) for name, shape in shapes.items()
    }
    save_file(tensors, path, {"format": "pt"})


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Draw a tensor like a trained one: norms near 1, small biases, matrices that halve inputs."""
    if len(shape) == 1:
        return (0.0 if "bias" in name else 1.0) + 0.1 * torch.randn(shape, generator=generator)
    n_in = torch.Size(shape[1:]).numel()
    scale = 1.0 if "tok" in name or "lora_A" in name else 0.5
    if "lora_B" in name:
        scale = 0.2
    deviation: float = scale / n_in**0.5
    return torch.randn(shape, generator=generator) * deviation


def write_config(folder: Path, **fields: object) -> None:
    (folder / "config.json").write_text(json.dumps(fields, indent=1))
