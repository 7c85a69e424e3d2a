"""Tiny Mini-Gemini checkpoints in their published layout, and a reference of stock classes.

The reference follows the paper (Mini-Gemini, 2403.18814) and what the public repository
dvlab-research/MGM computes: CLIP's patches ask, each among the ConvNeXt cells under it. CLIP,
ConvNeXt and the language models are transformers' classes; the mining is plain torch.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.helpers.checkpoints import CORPUS
from tests.helpers.tiny_captioners import (
    CLIP_MEAN,
    CLIP_STD,
    INSTRUCTION,
    SIZE,
    Case,
    Reference,
    clip_processor,
    clip_tower,
    feature,
    make,
    processed,
    save_bin,
    tensors_of,
    write_json,
    write_vision,
)
from tests.helpers.tiny_lm import fill, write_any_tokenizer

AUX = 96  # pixels per side for ConvNeXt: 24 × 24 cells, 6 × 6 of them under each of 4 × 4 patches
WIDTH, DIMS, DEPTHS = 48, (8, 16, 24, 32), (1, 2, 1, 1)
AUX_FOLDER = "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup"
_GEMMA_TURNS = ("<start_of_turn>", "<end_of_turn>")
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
_LLAMA3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_SYSTEM_TURN = "<|start_header_id|>system<|end_header_id|>\n\n"
# kind → the text before and after the picture, upstream's templates gemma, vicuna_v1 and llama_3
PROMPTS = {
    "2b": ("<start_of_turn>user\n", "\n{}<end_of_turn>\n<start_of_turn>model\n"),
    "7b": (f"{_SYSTEM} USER: ", "\n{} ASSISTANT:"),
    # the last turn is the system's, where Llama 3 itself says "assistant": the models learnt that
    "8b": (
        f"{_SYSTEM_TURN}{_LLAMA3_SYSTEM}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        f"\n{{}}<|eot_id|>{_SYSTEM_TURN}",
    ),
}  # fmt: skip


class Mining(nn.Module):
    """The checkpoint's own modules, under the names that it gives them."""

    def __init__(self, n_out: int) -> None:
        super().__init__()
        n_aux = sum(DIMS)
        self.vlm_uni_query_projector = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))
        self.vlm_uni_aux_projector = nn.Sequential(nn.LayerNorm(n_aux), nn.Linear(n_aux, WIDTH))
        self.vlm_uni_val_projector = nn.Sequential(nn.LayerNorm(n_aux), nn.Linear(n_aux, WIDTH))
        self.mm_projector = nn.Sequential(
            nn.Linear(WIDTH, n_out), nn.GELU(), nn.Linear(n_out, n_out)
        )

    def mined(self, patches: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Patches [n, g², w] and cells [n, c, s, s] → patches [n, g², w] with what they found."""
        n_per_side = round(patches.shape[1] ** 0.5)
        edge = cells.shape[-1] // n_per_side
        # unfold: [n, c · edge², g²], where the edge² cells of a patch stand row by row
        under = functional.unfold(cells, kernel_size=edge, stride=edge)
        under = under.unflatten(1, (cells.shape[1], edge * edge)).permute(0, 3, 2, 1)
        query = self.vlm_uni_query_projector(patches)
        key = self.vlm_uni_aux_projector(under)  # [n, g², edge², w]
        value = self.vlm_uni_val_projector(under)
        scores = torch.einsum("npw,npcw->npc", query, key) / WIDTH**0.5
        return patches + torch.einsum("npc,npcw->npw", scores.softmax(-1), value)


@dataclass
class MiniGeminiReference(Reference):
    """`pixels[0]` gives the normalised picture at ConvNeXt's size; CLIP's is made from it."""

    clip: Callable[[torch.Tensor], torch.Tensor] = field(kw_only=True)
    convnext: ConvNextModel = field(kw_only=True)
    mining: Mining = field(kw_only=True)
    hd: bool = False

    @torch.inference_mode()
    def visual_tokens(self, image: Image.Image) -> torch.Tensor:
        pixels = self.pixels[0](image)
        cells = self.cells(pixels)
        if not self.hd:
            rows = self.mining.mined(self.clip(_bilinear(pixels, SIZE)), cells)
            return self.projector(rows)[0]
        # four quarters of the picture, row by row, each with its quarter of the cells
        middle = _bilinear(pixels, 2 * SIZE)
        local = self.mining.mined(self.clip(_quarters(middle)), _quarters(cells))
        smaller = _bilinear(cells, cells.shape[-1] // 2)
        overview = self.mining.mined(self.clip(_bilinear(middle, SIZE)), smaller)
        return self.projector(torch.cat([overview.flatten(0, 1), local.flatten(0, 1)]))

    def cells(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return all stages' maps at the first one's size: [1, sum of widths, side, side]."""
        x = self.convnext.embeddings(pixels)
        maps: list[torch.Tensor] = []
        for stage in self.convnext.encoder.stages:
            x = stage(x)
            maps.append(x if not maps else _bilinear(x, maps[0].shape[-1]))
        return torch.cat(maps, dim=1)

    def prompt_ids(self) -> list[list[int]]:
        if _GEMMA_TURNS[0] not in self.before:
            return super().prompt_ids()
        model = sentencepiece.SentencePieceProcessor(
            model_file=str(self.tokenizer / "tokenizer.model")
        )
        after = self.after.format(INSTRUCTION)
        return [[model.bos_id(), *model.encode(self.before)], [], model.encode(after)]


def _bilinear(x: torch.Tensor, side: int) -> torch.Tensor:
    """Resize without smoothing, as torch does it by default."""
    return functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def _quarters(x: torch.Tensor) -> torch.Tensor:
    """[1, c, 2s, 2s] → [4, c, s, s]: top left, top right, bottom left, bottom right."""
    return torch.cat([part for band in x.chunk(2, dim=2) for part in band.chunk(2, dim=3)])


def write_mini_gemini(
    folder: Path, *, lm: str = "2b", hd: bool = False, inside: bool = False,
    container: str = "safetensors", seed: int = 30,
) -> Case:  # fmt: skip
    """Write a checkpoint and the two towers that it names.

    `lm` is "2b" (Gemma), "7b" (Vicuna) or "8b" (Llama 3). With `inside` both towers were trained:
    they lie in the checkpoint, and those of the folders have other weights. `container`:
    "safetensors" (shards) or "bin" (shards).
    """
    captioner, vision, vision_aux = folder / "captioner", folder / "vision", folder / AUX_FOLDER
    model = _write_lm(captioner, lm, seed)
    n_embd = model.config.hidden_size
    clip = clip_tower(seed)
    convnext = make(ConvNextModel(_convnext_config()), seed + 1)
    mining = make(Mining(n_embd), seed + 2)
    tensors = {**tensors_of(model), **tensors_of(mining, "model.")}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    outside = (clip, convnext)
    if inside:
        tensors |= tensors_of(clip, "model.vision_tower.vision_tower.")
        aux = "model.vision_tower_aux.vision_"
        tensors |= {
            name.replace("stem.", f"{aux}stem.").replace("stages.", f"{aux}stages."): tensor
            for name, tensor in trunk_tensors(convnext).items()
        }
        outside = (clip_tower(seed + 3), make(ConvNextModel(_convnext_config()), seed + 4))
    if container == "bin":
        save_bin(captioner, tensors)
    else:
        _save_shards(captioner, tensors)
    write_vision(vision, outside[0], "clip", clip_processor())
    _write_open_clip(vision_aux, outside[1])
    side = 2 * AUX if hd else AUX
    _write_config(captioner, model.config.to_diff_dict(), lm, side, hd, inside)
    before, after = PROMPTS[lm]
    reference = MiniGeminiReference(
        [processed(clip_processor(side), CLIP_MEAN)], [], mining.mm_projector, model, captioner,
        before, after, bos=True, mode="pad", mean=CLIP_MEAN, std=CLIP_STD,
        clip=feature(clip, -2, 1), convnext=convnext, mining=mining, hd=hd,
    )  # fmt: skip
    settings = {"captioner": captioner, "vision": vision}
    if not inside:
        settings["vision_aux"] = vision_aux
    return Case("mini-gemini", settings, reference)


# ---- the files


def _write_config(
    folder: Path, lm: dict[str, Any], kind: str, side: int, hd: bool, inside: bool
) -> None:
    """Write config.json with the fields that upstream's training adds."""
    gemma = kind == "2b"
    write_json(folder / "config.json", {
        **lm, "model_type": "mgm_gemma" if gemma else "mgm",
        "architectures": ["MGMGemmaForCausalLM" if gemma else "MGMLlamaForCausalLM"],
        "freeze_mm_mlp_adapter": False, "image_aspect_ratio": "pad",
        "image_global": hd, "image_grid": 2 if hd else 1, "image_grid_pinpoints": None,
        "image_size_aux": side, "mm_hidden_size": WIDTH, "mm_hidden_size_aux": sum(DIMS),
        "mm_projector_lr": None, "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": "model_zoo/OpenAI/clip-vit-large-patch14-336",
        "mm_vision_tower_aux": f"model_zoo/OpenAI/{AUX_FOLDER}",
        "optimize_vision_tower": inside, "optimize_vision_tower_aux": inside,
        "tokenizer_model_max_length": 4096, "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False, "use_mm_proj": True, "torch_dtype": "float32",
        "transformers_version": "4.38.0", "use_cache": True,
    })  # fmt: skip


def _write_lm(folder: Path, kind: str, seed: int) -> GemmaForCausalLM | LlamaForCausalLM:
    folder.mkdir(parents=True)
    sizes: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 2048,
    }  # fmt: skip
    if kind == "2b":
        n_vocab = _write_gemma_tokenizer(folder)
        config = GemmaConfig(
            **sizes, num_key_value_heads=1, head_dim=32, vocab_size=n_vocab + 3,
            hidden_act="gelu_pytorch_tanh", rms_norm_eps=1e-6, pad_token_id=0, eos_token_id=1,
            bos_token_id=2,
        )  # fmt: skip
        gemma: GemmaForCausalLM = GemmaForCausalLM(config).eval()
        fill(gemma, seed)
        with torch.no_grad():
            # the embedding serves as head, where a large one would repeat the last token
            gemma.model.embed_tokens.weight.mul_(0.04)
            for name, parameter in gemma.named_parameters():
                if "norm" in name:  # the class adds one
                    parameter.sub_(1.0)
        return gemma
    llama3 = kind == "8b"
    n_vocab = write_any_tokenizer(folder, "llama3" if llama3 else "sentencepiece")
    llama: LlamaForCausalLM = LlamaForCausalLM(LlamaConfig(
        **sizes, num_key_value_heads=2 if llama3 else 4, vocab_size=n_vocab + 3,
        rms_norm_eps=1e-5, rope_theta=500000.0 if llama3 else 10000.0,
    )).eval()  # fmt: skip
    fill(llama, seed)
    return llama


def _write_gemma_tokenizer(folder: Path) -> int:
    """Write Gemma's kind of SentencePiece: its order of special tokens, and pieces of newlines."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4), model_writer=trained, model_type="bpe",
        vocab_size=420, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True,
        add_dummy_prefix=False, character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", unk_piece="<unk>",
        user_defined_symbols=["<mask>", *_GEMMA_TURNS, "\n", "\n\n"],
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *_GEMMA_TURNS]
    decoder = {str(model.piece_to_id(n)): {"content": n, "special": True} for n in names}
    write_json(folder / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": decoder,
        "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
        "model_max_length": 2048, "padding_side": "right", "tokenizer_class": "GemmaTokenizer",
    })  # fmt: skip
    n_vocab: int = model.get_piece_size()
    return n_vocab


def _convnext_config() -> ConvNextConfig:
    return ConvNextConfig(
        patch_size=4, num_stages=4, hidden_sizes=list(DIMS), depths=list(DEPTHS), hidden_act="gelu"
    )


_BLOCK = {
    "dwconv": "conv_dw", "layernorm": "norm", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2",
    "layer_scale_parameter": "gamma",
}  # fmt: skip


def trunk_tensors(model: ConvNextModel) -> dict[str, torch.Tensor]:
    """Return stem.* and stages.* of `model` under timm's names."""
    tensors = {}
    for name, tensor in tensors_of(model).items():
        if name.startswith("embeddings."):
            name = name.replace("embeddings.patch_embeddings", "stem.0")
            tensors[name.replace("embeddings.layernorm", "stem.1")] = tensor
        elif name.startswith("encoder."):
            name = name.removeprefix("encoder.").replace("downsampling_layer", "downsample")
            name = name.replace(".layers.", ".blocks.")
            for stock, timm in _BLOCK.items():
                name = name.replace(f".{stock}", f".{timm}")
            tensors[name] = tensor
    return tensors


def _write_open_clip(folder: Path, model: ConvNextModel) -> None:
    """Write open_clip's repository, with the text half and the heads that nobody runs."""
    folder.mkdir(parents=True)
    tensors = {f"visual.trunk.{name}": t for name, t in trunk_tensors(model).items()}
    generator = torch.Generator().manual_seed(0)
    idle = {
        "positional_embedding": (7, 8), "text_projection": (8, 8), "token_embedding.weight": (9, 8),
        "ln_final.weight": (8,), "ln_final.bias": (8,), "visual.trunk.head.norm.weight": (DIMS[3],),
        "visual.trunk.head.norm.bias": (DIMS[3],), "visual.head.mlp.fc1.weight": (16, DIMS[3]),
        "visual.head.mlp.fc1.bias": (16,), "visual.head.mlp.fc2.weight": (8, 16),
        "transformer.resblocks.0.attn.in_proj_weight": (24, 8),
        "transformer.resblocks.0.attn.in_proj_bias": (24,),
    }  # fmt: skip
    tensors |= {name: torch.randn(shape, generator=generator) for name, shape in idle.items()}
    tensors["logit_scale"] = torch.tensor(1.0)
    torch.save(tensors, folder / "open_clip_pytorch_model.bin")
    write_json(folder / "open_clip_config.json", {
        "model_cfg": {
            "embed_dim": 768,
            "vision_cfg": {
                "timm_model_name": "convnext_large", "timm_model_pretrained": False,
                "timm_pool": "", "timm_proj": "mlp", "timm_drop": 0.0, "timm_drop_path": 0.1,
                "image_size": 320,
            },
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12,
                         "layers": 16},
        },
        "preprocess_cfg": {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)},
    })  # fmt: skip


def _save_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write two shards in safetensors' format, with their index."""
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i in (1, 2):
        file = f"model-0000{i}-of-00002.safetensors"
        held = names[i - 1 :: 2]
        save_file({name: tensors[name].contiguous() for name in held}, folder / file)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
