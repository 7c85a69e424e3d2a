"""Write tiny random checkpoints in PrismCaptioner's published layout.

`write_checkpoint(folder, spec)` makes the three folders that a user would download: the captioner
(`llm_adapter/`, `projector/`), an InternLM2 and a SigLIP. The random weights are scaled so that
greedy texts are varied and depend on the picture.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2

FIRST_RESERVED, LAST_RESERVED = 135, 146  # [UNUSED_TOKEN_n] at the end, as published
SPECIAL_NAMES = {
    141: "<|plugin|>",
    142: "<|interpreter|>",
    143: "<|action_end|>",
    144: "<|action_start|>",
    145: "<|im_end|>",
    146: "<|im_start|>",
}


@dataclass(frozen=True)
class Spec:
    """Dimensions and packaging of one checkpoint."""

    lm_layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 64
    ffn: int = 160
    vision_layers: int = 3  # as published; the feature needs one less
    vision_width: int = 48
    vision_heads: int = 4
    vision_ffn: int = 80
    image_size: int = 56
    patch_size: int = 14
    adapter: str = "output"  # "none", "layers" (not on the output head), "output"
    rank: int = 8
    alpha: int = 4
    container: str = "sharded"  # "sharded" or "single" safetensors, or "bin"
    add_dummy_prefix: bool = False
    user_defined_reserved: bool = False  # [UNUSED_TOKEN_n] as USER_DEFINED pieces
    spare_vocab: int = 0  # vocabulary rows beyond the tokenizer's pieces
    calm: bool = (
        False  # layers add less, so that rounding errors stay small: for coarse quantizations
    )
    projector_tail: bool = False  # its GELU's inputs lie where the erf and tanh forms differ
    bare_tower: bool = False  # a SiglipVisionModel instead of a SiglipModel
    seed: int = 0


@dataclass(frozen=True)
class Folders:
    """The folders of the three checkpoints."""

    captioner: Path
    llm: Path
    vision: Path


def write_checkpoint(folder: Path, spec: Spec) -> Folders:
    """Write the checkpoint of `spec` under the new folder `folder`."""
    folders = Folders(folder / "captioner", folder / "llm", folder / "vision")
    for path in (folders.captioner / "projector", folders.llm, folders.vision):
        path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(spec.seed)
    n_pieces = write_tokenizer(folders.llm, spec.add_dummy_prefix, spec.user_defined_reserved)
    n_vocab = n_pieces + spec.spare_vocab
    _write_llm(folders.llm, spec, n_vocab, generator)
    _write_vision(folders.vision, spec, generator)
    _write_projector(folders.captioner / "projector", spec, generator)
    if spec.adapter != "none":
        (folders.captioner / "llm_adapter").mkdir()
        _write_adapter(folders.captioner / "llm_adapter", spec, n_vocab, generator)
    return folders


def write_tokenizer(
    folder: Path, add_dummy_prefix: bool, user_defined_reserved: bool = False
) -> int:
    """Write tokenizer.model and tokenizer_config.json; return the number of pieces."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=trained,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=add_dummy_prefix,
        split_digits=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(trained.getvalue())
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    reserved = [f"[UNUSED_TOKEN_{n}]" for n in range(FIRST_RESERVED, LAST_RESERVED + 1)]
    for text in ("\0", *reserved):
        kind = kinds.NORMAL
        if user_defined_reserved and text in reserved:
            kind = kinds.USER_DEFINED
        score = min(piece.score for piece in model.pieces) - 1
        model.pieces.add(piece=text, score=score, type=kind)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    names = {0: "<unk>", 1: "<s>", 2: "</s>"}
    first = len(model.pieces) - len(reserved)
    names |= {first + n - FIRST_RESERVED: name for n, name in SPECIAL_NAMES.items()}
    decoder = {str(i): {"content": name, "special": True} for i, name in names.items()}
    _write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    return len(model.pieces)


def _write_llm(folder: Path, spec: Spec, n_vocab: int, generator: torch.Generator) -> None:
    e, f = spec.hidden, spec.ffn
    head_dim = e // spec.heads
    gain = 0.5 if spec.calm else 1.0
    tensors = {"model.tok_embeddings.weight": _normal(generator, n_vocab, e, scale=1.0)}
    for i in range(spec.lm_layers):
        layer = f"model.layers.{i}."
        n_packed = (spec.heads + 2 * spec.kv_heads) * head_dim
        tensors |= {
            layer + "attention_norm.weight": _around_one(generator, e),
            layer + "attention.wqkv.weight": _normal(generator, n_packed, e, scale=gain * 1.6),
            layer + "attention.wo.weight": _normal(generator, e, e, scale=gain * 2.0),
            layer + "ffn_norm.weight": _around_one(generator, e),
            layer + "feed_forward.w1.weight": _normal(generator, f, e, scale=gain * 1.5),
            layer + "feed_forward.w3.weight": _normal(generator, f, e, scale=gain * 1.5),
            layer + "feed_forward.w2.weight": _normal(generator, e, f, scale=gain * 1.5),
        }
    tensors["model.norm.weight"] = _around_one(generator, e)
    tensors["output.weight"] = _normal(generator, n_vocab, e, scale=1.5)
    dtype = torch.bfloat16 if spec.container == "sharded" else torch.float16
    _save(folder, {name: t.to(dtype) for name, t in tensors.items()}, spec.container)
    config = {
        "_name_or_path": "tests/internlm2-tiny",
        "model_type": "internlm2",
        "architectures": ["InternLM2ForCausalLM"],
        "hidden_size": e,
        "intermediate_size": f,
        "num_hidden_layers": spec.lm_layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "vocab_size": n_vocab,
        "max_position_embeddings": 2048,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bias": False,
        "tie_word_embeddings": False,
    }
    _write_json(folder / "config.json", config)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA test's model.\n")


def _write_vision(folder: Path, spec: Spec, generator: torch.Generator) -> None:
    e, f, p = spec.vision_width, spec.vision_ffn, spec.patch_size
    tensors = {
        "embeddings.patch_embedding.weight": _normal(generator, e, 3 * p * p).view(e, 3, p, p),
        "embeddings.patch_embedding.bias": _bias(generator, e),
        "embeddings.position_embedding.weight": _normal(generator, (spec.image_size // p) ** 2, e),
        "post_layernorm.weight": _around_one(generator, e),
        "post_layernorm.bias": _bias(generator, e),
        "head.probe": _normal(generator, 1, e).view(1, 1, e),
    }
    for i in range(spec.vision_layers):
        layer = f"encoder.layers.{i}."
        for norm in ("layer_norm1", "layer_norm2"):
            tensors[f"{layer}{norm}.weight"] = _around_one(generator, e)
            tensors[f"{layer}{norm}.bias"] = _bias(generator, e)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors[f"{layer}self_attn.{part}.weight"] = _normal(generator, e, e, scale=1.2)
            tensors[f"{layer}self_attn.{part}.bias"] = _bias(generator, e)
        tensors[f"{layer}mlp.fc1.weight"] = _normal(generator, f, e, scale=1.5)
        tensors[f"{layer}mlp.fc1.bias"] = _bias(generator, f)
        tensors[f"{layer}mlp.fc2.weight"] = _normal(generator, e, f, scale=1.5)
        tensors[f"{layer}mlp.fc2.bias"] = _bias(generator, e)
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": e,
        "intermediate_size": f,
        "num_hidden_layers": spec.vision_layers,
        "num_attention_heads": spec.vision_heads,
        "image_size": spec.image_size,
        "patch_size": p,
    }
    config = tower if spec.bare_tower else {"model_type": "siglip", "vision_config": tower}
    tensors = {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
    if not spec.bare_tower:
        tensors["text_model.embeddings.token_embedding.weight"] = _normal(generator, 40, e)
        tensors["text_model.final_layer_norm.weight"] = _around_one(generator, e)
        tensors["logit_scale"] = torch.zeros(1)
    _save(folder, tensors, "bin" if spec.container == "bin" else "single")
    _write_json(folder / "config.json", config)
    prepare = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": spec.image_size, "width": spec.image_size},
    }
    _write_json(folder / "preprocessor_config.json", prepare)


def _write_projector(folder: Path, spec: Spec, generator: torch.Generator) -> None:
    tensors = {
        "model.0.weight": _normal(generator, spec.hidden, spec.vision_width, scale=1.2),
        "model.0.bias": _bias(generator, spec.hidden),
        "model.2.weight": _normal(generator, spec.hidden, spec.hidden, scale=1.2),
        "model.2.bias": _bias(generator, spec.hidden),
    }
    if spec.projector_tail:
        # GELU(-2.5) is near -0.015, and its two forms differ there by a few percent
        tensors["model.0.weight"] *= 0.4
        tensors["model.0.bias"] -= 2.5
        tensors["model.2.weight"] *= 30
    _save(folder, tensors, "single")
    config = {
        "model_type": "projector",
        "visual_hidden_size": spec.vision_width,
        "llm_hidden_size": spec.hidden,
        "depth": 2,
        "hidden_act": "gelu",
        "bias": True,
    }
    _write_json(folder / "config.json", config)


def _write_adapter(folder: Path, spec: Spec, n_vocab: int, generator: torch.Generator) -> None:
    e, f = spec.hidden, spec.ffn
    targets: dict[str, tuple[int, int]] = {}
    for i in range(spec.lm_layers):
        layer = f"model.layers.{i}."
        targets |= {
            layer + "attention.wqkv": ((spec.heads + 2 * spec.kv_heads) * (e // spec.heads), e),
            layer + "attention.wo": (e, e),
            layer + "feed_forward.w1": (f, e),
            layer + "feed_forward.w3": (f, e),
            layer + "feed_forward.w2": (e, f),
        }
    if spec.adapter == "output":
        targets["output"] = (n_vocab, e)
    tensors = {}
    for name, (n_out, n_in) in targets.items():
        lead = f"base_model.model.{name}.lora_"
        tensors[f"{lead}A.weight"] = _normal(generator, spec.rank, n_in)
        tensors[f"{lead}B.weight"] = _normal(generator, n_out, spec.rank, scale=1.0)
    _save(folder, tensors, "bin" if spec.container == "bin" else "single", "adapter_model")
    config = {
        "peft_type": "LORA",
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in targets}),
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
    }
    _write_json(folder / "adapter_config.json", config)


def _save(folder: Path, tensors: dict[str, torch.Tensor], container: str, stem: str = "") -> None:
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if container == "bin":
        torch.save(tensors, folder / f"{stem or 'pytorch_model'}.bin")
    elif container == "single":
        save_file(tensors, folder / f"{stem or 'model'}.safetensors", {"format": "pt"})
    else:
        names = sorted(tensors)
        shards = {
            "model-00001-of-00002.safetensors": names[::2],
            "model-00002-of-00002.safetensors": names[1::2],
        }
        for file, names in shards.items():
            save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _normal(generator: torch.Generator, n_out: int, n_in: int, scale: float = 1.0) -> torch.Tensor:
    """Return [n_out, n_in] that turns unit inputs into outputs of size `scale`; fits float16."""
    weight = torch.randn(n_out, n_in, generator=generator)
    deviation: float = scale / n_in**0.5
    return weight * deviation


def _bias(generator: torch.Generator, n: int) -> torch.Tensor:
    return 0.2 * torch.randn(n, generator=generator)


def _around_one(generator: torch.Generator, n: int) -> torch.Tensor:
    return 1 + 0.2 * torch.randn(n, generator=generator)


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1))


def describe(spec: Spec) -> str:
    """Return the differences from the defaults, as a test id."""
    plain = asdict(Spec())
    return "-".join(f"{k}={v}" for k, v in asdict(spec).items() if v != plain[k]) or "plain"


CORPUS = [
    "A red cube lies on the left of a large blue ball, and both cast a long shadow.",
    "The sign above the door reads OPEN, the clock beside it shows 10:45.",
    "  indented text, two  spaces and a tab\tinside",
    "Three people walk along the river; one of them carries an umbrella.",
    "图片中有一只猫和一只狗，背景是蓝色的天空。",
    "def area(width, height): return width * height",
    "Invoice 2041: 4 lamps at 19.90 each, total 79.60.",
    "What colour is the square at the top? It is green, like the grass below it.",
]
