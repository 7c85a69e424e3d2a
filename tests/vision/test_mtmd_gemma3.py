"""A pair with attention both ways among a picture's rows: Gemma 3, compared with transformers.

It is a tiny `Gemma3ForConditionalGeneration` with random weights, written like llama.cpp's
converter does (`conversion/gemma.py`): SigLIP, average pooling, a root-mean-square norm and a
matrix from the left; a language model with sliding windows and no mask among one picture's rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

from edgeprism.language.model import LanguageModel
from edgeprism.perceive.captioner import Captioner
from edgeprism.segments import ImageRows, Tokens
from edgeprism.vision.mtmd import MtmdEncoder
from edgeprism.vision.pair import open_pair
from tests.helpers import bundles, mmprojs
from tests.helpers.captions import caption_ids

SIZE, POOLED, WINDOW = 56, 2, 24  # a picture becomes 4 × 4 rows
TOLERANCE = 2e-3  # of the largest value, because ggml takes GELU from a table in half precision
N_TOKENS = 32
_TEXT = r"^model\.language_model\."
_BLOCK = _TEXT + r"layers\.(\d+)\."
NAMES = [
    *mmprojs.SIGLIP_NAMES,
    (r"^model\.multi_modal_projector\.mm_input_projection_", "mm.input_projection."),
    (r"^model\.multi_modal_projector\.mm_soft_emb_norm\.", "mm.soft_emb_norm."),
    (_TEXT + r"embed_tokens\.", "token_embd."),
    (_TEXT + r"norm\.", "output_norm."),
    (_BLOCK + r"self_attn\.([qkv])_proj\.", r"blk.\1.attn_\2."),
    (_BLOCK + r"self_attn\.([qk])_norm\.", r"blk.\1.attn_\2_norm."),
    (_BLOCK + r"self_attn\.o_proj\.", r"blk.\1.attn_output."),
    (_BLOCK + r"input_layernorm\.", r"blk.\1.attn_norm."),
    (_BLOCK + r"post_attention_layernorm\.", r"blk.\1.post_attention_norm."),
    (_BLOCK + r"pre_feedforward_layernorm\.", r"blk.\1.ffn_norm."),
    (_BLOCK + r"post_feedforward_layernorm\.", r"blk.\1.post_ffw_norm."),
    (_BLOCK + r"mlp\.(gate|up|down)_proj\.", r"blk.\1.ffn_\2."),
]
# Gemma's norms multiply by 1 + weight
ABOUT_ZERO = re.compile(r"^model\.(language_model\..*norm|.*\.mm_soft_emb_norm)\.weight$")


@dataclass
class Gemma:
    model: Gemma3ForConditionalGeneration
    lm_path: Path
    path: Path
    lm: LanguageModel
    encoder: MtmdEncoder

    @torch.inference_mode()
    def rows(self, pixels: np.ndarray) -> np.ndarray:
        """Return the visual tokens [n, n_embd] of transformers' own tower and projector."""
        x = (pixels / 255.0 - np.array(mmprojs.MEAN)) / np.array(mmprojs.STD)
        x = torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32))
        return self.model.model.get_image_features(x)[0].numpy()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def likeliest(
        self, before: list[int], rows: np.ndarray, after: list[int], answer: list[int], *,
        both_ways: bool = True, scaled: bool = False,
    ) -> list[int]:  # fmt: skip
        """Return the likeliest token at each place of `answer`: a greedy answer equals them all.

        `rows` stand between two texts. The flags plant mistakes.
        """
        embed, picture = self.model.get_input_embeddings(), torch.from_numpy(rows)[None]
        if scaled:
            picture = picture * rows.shape[1] ** 0.5
        texts = [embed(torch.tensor([ids])) for ids in (before, after + answer[:-1])]
        x = torch.cat([texts[0], picture, texts[1]], dim=1)
        kinds = torch.zeros(x.shape[:2], dtype=torch.long)
        if both_ways:
            kinds[:, len(before) : len(before) + len(rows)] = 1
        logits = self.model(inputs_embeds=x, token_type_ids=kinds, use_cache=False).logits
        return logits[0, -len(answer) :].argmax(dim=-1).tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gemma]:
    folder = tmp_path_factory.mktemp("gemma")
    lm_parts = mmprojs.with_marks(bundles.lm_parts(4))
    model = random_model(len(lm_parts.metadata["tokenizer.ggml.tokens"][1]))
    lm_path = as_lm(model, lm_parts).write(folder / "lm.gguf")
    path = as_mmproj(model).write(folder / "mmproj.gguf")
    lm = LanguageModel(lm_path)
    encoder = MtmdEncoder(path, lm, flash_attention=False)
    yield Gemma(model, lm_path, path, lm, encoder)
    encoder.close()
    lm.close()


def random_model(n_vocab: int) -> Gemma3ForConditionalGeneration:
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": SIZE, "patch_size": mmprojs.PATCH,
        "vision_use_head": False,
    }  # fmt: skip
    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": WINDOW,
        "vocab_size": n_vocab, "max_position_embeddings": bundles.CONTEXT,
        "query_pre_attn_scalar": 16, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    }  # fmt: skip
    tokens = (SIZE // mmprojs.PATCH // POOLED) ** 2
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=tokens)
    config._attn_implementation = "eager"
    model: Gemma3ForConditionalGeneration = Gemma3ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        scale = 0.2
        if "embed_tokens" in name:  # small, or the tied head would repeat the last token
            scale = 0.02
        elif value.ndim > 1 and "embed" not in name:
            scale = 1.5 / np.prod(value.shape[1:]) ** 0.5
        value.data = scale * torch.randn(value.shape, generator=generator)
        if value.ndim == 1 and name.endswith("weight") and not ABOUT_ZERO.match(name):
            value.data += 1
    return model


def renamed(model: nn.Module, lead: tuple[str, ...]) -> dict[str, np.ndarray]:
    state = model.state_dict()
    return {
        gguf_name: (state[name] + bool(ABOUT_ZERO.match(name))).numpy()
        for name, gguf_name in mmprojs.renamed(state, NAMES)
        if gguf_name.startswith(lead)
    }


def as_lm(model: Gemma3ForConditionalGeneration, parts: bundles.GgufParts) -> bundles.GgufParts:
    """Return the language model with the vocabulary of `parts`; its head is tied."""
    text = model.config.text_config
    assert text.layer_types == [*["sliding_attention"] * 5, "full_attention"]
    metadata = {k: v for k, v in parts.metadata.items() if not k.startswith("llama.")}
    sizes = {
        "context_length": text.max_position_embeddings, "embedding_length": text.hidden_size,
        "block_count": text.num_hidden_layers, "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": text.num_key_value_heads,
        "attention.key_length": text.head_dim, "attention.value_length": text.head_dim,
        "attention.sliding_window": text.sliding_window, "vocab_size": text.vocab_size,
    }  # fmt: skip
    metadata |= {f"gemma3.{name}": ("uint32", value) for name, value in sizes.items()}
    metadata |= {
        "gemma3.attention.layer_norm_rms_epsilon": ("float32", text.rms_norm_eps),
        "gemma3.rope.freq_base": ("float32", text.rope_theta),
    }
    tensors = renamed(model, ("token_embd", "output_norm", "blk"))
    return bundles.GgufParts(metadata, tensors, "gemma3")


def as_mmproj(model: Gemma3ForConditionalGeneration) -> bundles.GgufParts:
    vision = model.config.vision_config
    metadata = mmprojs.header(
        "gemma3", eps=vision.layer_norm_eps, image_size=SIZE, patch_size=vision.patch_size,
        embedding_length=vision.hidden_size, feed_forward_length=vision.intermediate_size,
        block_count=vision.num_hidden_layers, projection_dim=model.config.text_config.hidden_size,
        attention__head_count=vision.num_attention_heads, projector__scale_factor=POOLED,
    )  # fmt: skip
    metadata["clip.use_gelu"] = ("bool", True)
    return bundles.GgufParts(metadata, renamed(model, ("v.", "mm.")), "clip")


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def relative_error(rows: np.ndarray, expected: np.ndarray) -> float:
    assert rows.shape == expected.shape
    return float(np.abs(rows - expected).max() / np.abs(expected).max())


# ---- the tower and its projector


@pytest.mark.parametrize("seed", range(3))
def test_visual_tokens(gemma: Gemma, seed: int) -> None:
    pixels = noise(SIZE, SIZE, seed)
    rows, segments = gemma.encoder.encode_picture(pixels[None])
    assert relative_error(rows, gemma.rows(pixels)) < TOLERANCE
    begin, end = (gemma.lm.vocabulary.tokenize(f"<{word}_of_image>", parse_special=True)
                  for word in ("start", "end"))  # fmt: skip
    n = (SIZE // mmprojs.PATCH // POOLED) ** 2
    assert segments == (Tokens(tuple(begin)), ImageRows(0, n, causal=False), Tokens(tuple(end)))


def pool_down_first(projector: Gemma3MultiModalProjector, x: torch.Tensor) -> torch.Tensor:
    rows: torch.Tensor = projector(x.unflatten(1, (8, 8)).transpose(1, 2).flatten(1, 2))
    return rows


def norm_first(projector: Gemma3MultiModalProjector, x: torch.Tensor) -> torch.Tensor:
    return without_norm(projector, projector.mm_soft_emb_norm(x))


def without_norm(projector: Gemma3MultiModalProjector, x: torch.Tensor) -> torch.Tensor:
    pooled: torch.Tensor = projector.avg_pool(x.unflatten(1, (8, 8)).permute(0, 3, 1, 2))
    return pooled.flatten(2).transpose(1, 2) @ projector.mm_input_projection_weight


@pytest.mark.parametrize("mistake", [pool_down_first, norm_first, without_norm])
def test_a_wrong_projector_is_seen(
    mistake: Callable[[Gemma3MultiModalProjector, torch.Tensor], torch.Tensor],
    gemma: Gemma,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = noise(SIZE, SIZE)
    rows, _ = gemma.encoder.encode_picture(pixels[None])
    projector = gemma.model.model.multi_modal_projector
    right = projector.forward

    def wrong(x: torch.Tensor) -> torch.Tensor:
        with monkeypatch.context() as inside:
            inside.setattr(projector, "forward", right)
            return mistake(projector, x)

    monkeypatch.setattr(projector, "forward", wrong)
    assert relative_error(rows, gemma.rows(pixels)) > 20 * TOLERANCE


# ---- captions


def prompt(lm: LanguageModel, rows: np.ndarray) -> tuple[list[int], np.ndarray, list[int]]:
    def ids(text: str) -> list[int]:
        return lm.vocabulary.tokenize(text, parse_special=True)

    before = [*lm.vocabulary.bos(), *ids("<|im_start|>user\n"), *ids("<start_of_image>")]
    after = [*ids("<end_of_image>"), *lm.vocabulary.tokenize("what is it")]
    return before, rows, [*after, *ids("<|im_end|>\n<|im_start|>assistant\n")]


@pytest.mark.parametrize("size", [(SIZE, SIZE), (30, 20), (400, 9), (9, 400), (333, 250)])
def test_captions_equal_transformers(size: tuple[int, int], gemma: Gemma) -> None:
    """The prompt is longer than the sliding windows, so they are tested too."""
    pixels = noise(*size)
    bundle = open_pair(gemma.lm_path, gemma.path)
    assert bundle.manifest.lm.image_attention == "both-ways"
    with Captioner(bundle, kv_type="f32", flash_attention=False, threads=1) as captioner:
        encoded = captioner.encode(pixels)
        options: dict[str, Any] = {"instruction": "what is it", "caption_tokens": N_TOKENS}
        # the same encoded picture is captioned twice
        answer, again = (caption_ids(captioner, encoded, stop_at_end=False, **options)
                         for _ in range(2))  # fmt: skip
    assert len(answer) == N_TOKENS
    assert again == answer
    parts = prompt(gemma.lm, encoded.visual_tokens)
    assert gemma.likeliest(*parts, answer) == answer
    assert gemma.likeliest(*parts, answer, both_ways=False) != answer
    assert gemma.likeliest(*parts, answer, scaled=True) != answer
