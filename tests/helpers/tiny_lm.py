"""Tiny random language models and tokenizers of every kind, as transformers publishes them."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.helpers.checkpoints import CORPUS, write_tokenizer

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
LLAMA3_SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
TinyModel = (
    LlamaForCausalLM | MistralForCausalLM | Qwen2ForCausalLM | GemmaForCausalLM | OPTForCausalLM
)
# kind → (model class, configuration class, changed fields, tokenizer)
KINDS: dict[str, tuple[type, type, dict[str, Any], str]] = {
    "vicuna": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}, "sentencepiece"),
    "llama-linear": (
        LlamaForCausalLM, LlamaConfig,
        {"rope_scaling": {"type": "linear", "factor": 4.0}}, "sentencepiece",
    ),
    "llama-yarn": (
        LlamaForCausalLM, LlamaConfig,
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                          "original_max_position_embeddings": 64}}, "sentencepiece",
    ),
    "llama3": (
        LlamaForCausalLM, LlamaConfig,
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING}, "llama3",
    ),
    "biased": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True}, "sentencepiece"),
    "mistral": (
        MistralForCausalLM, MistralConfig,
        {"head_dim": 32, "sliding_window": 300, "rope_theta": 1e6}, "sentencepiece",
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"rope_theta": 1e6}, "qwen2"),
    "gemma": (
        GemmaForCausalLM, GemmaConfig,
        {"head_dim": 32, "num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh"}, "gemma",
    ),
    "smollm2": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}, "smollm"),
    "opt": (
        OPTForCausalLM, OPTConfig,
        {"word_embed_proj_dim": 64, "ffn_dim": 256, "max_position_embeddings": 384}, "opt",
    ),
}  # fmt: skip
# of models whose embeddings, which are the head as well, would outweigh all layers
_EMBEDDING_FACTORS = {"gemma": 0.04, "opt": 0.2}
_NAMES_OF_OTHERS = {"opt": ("num_key_value_heads", "rms_norm_eps", "intermediate_size")}
# kind → special tokens, and whether a text begins with BOS
_ENDS = ("<unk>", "<s>", "</s>")
SENTENCEPIECE = {
    "sentencepiece": (_ENDS, True),
    "yi": ((*_ENDS, "<|im_start|>", "<|im_end|>"), False),
}
BYTE_LEVEL = ("llama3", "qwen2", "smollm", "gpt2", "opt")
OPT_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write_lm(folder: Path, kind: str, *, spare: int = 3, seed: int = 0) -> TinyModel:
    """Write model and tokenizer of `kind` to `folder`; return the model in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    model_class, config_class, changes, tokenizer = KINDS[kind]
    n_vocab = write_any_tokenizer(folder, tokenizer) + spare
    sizes = {n: v for n, v in _SIZES.items() if n not in _NAMES_OF_OTHERS.get(kind, ())}
    config = config_class(**{**sizes, **changes}, vocab_size=n_vocab, architectures=None)
    model: TinyModel = model_class(config).eval()
    fill(model, seed)
    if factor := _EMBEDDING_FACTORS.get(kind):
        with torch.no_grad():
            weight = model.get_input_embeddings().weight
            assert isinstance(weight, torch.Tensor)
            weight.mul_(factor)
    model.save_pretrained(folder, max_shard_size="150KB")
    return model


def fill(model: nn.Module, seed: int) -> None:
    """Fill `model` with random weights under which greedy texts vary and depend on the prompt."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(0.2 * noise + (0.0 if "bias" in name else 1.0))
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                n_in = parameter[0].numel()
                parameter.copy_(noise * (1.6 / n_in**0.5))


def write_any_tokenizer(folder: Path, kind: str) -> int:
    """Write a tokenizer of `kind`; return its number of ids, including added tokens."""
    if kind == "gemma":
        return _write_gemma_tokenizer(folder)
    if kind in SENTENCEPIECE:
        return _write_sentencepiece(folder, *SENTENCEPIECE[kind])
    if kind == "opt":
        return _write_opt_tokenizer(folder)
    tokenizer = _byte_level(kind)
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = {"llama3": "<|eot_id|>", "gpt2": "<|endoftext|>"}
    config: dict[str, Any] = {"eos_token": ends.get(kind, "<|im_end|>")}
    if kind == "llama3":
        config |= {"bos_token": "<|begin_of_text|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    n_vocab: int = tokenizer.get_vocab_size()
    return n_vocab


def _write_sentencepiece(folder: Path, names: tuple[str, ...], add_bos: bool) -> int:
    n_pieces = write_tokenizer(folder, add_dummy_prefix=True)
    path = folder / "tokenizer_config.json"
    known = json.loads(path.read_text())["added_tokens_decoder"]
    kept = {i: token for i, token in known.items() if token["content"] in names}
    path.write_text(json.dumps({"added_tokens_decoder": kept, "add_bos_token": add_bos}))
    return n_pieces


def _write_gemma_tokenizer(folder: Path) -> int:
    """Write pieces of spaces and newlines, which later tokenizer_config.json files list, too."""
    runs = ["\n", "\n\n", "▁▁", "▁▁▁", "▁▁▁▁"]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4), model_writer=trained, model_type="bpe",
        vocab_size=420, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True,
        add_dummy_prefix=False, character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", user_defined_symbols=["<start_of_turn>", "<end_of_turn>", *runs, "<h1>"],
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
    decoder = {model.piece_to_id(name): {"content": name, "special": True} for name in special}
    decoder |= {model.piece_to_id(run): {"content": run, "special": False} for run in runs}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    n_vocab: int = model.get_piece_size()
    return n_vocab


def _write_opt_tokenizer(folder: Path) -> int:
    """Write what transformers makes of OPT's tokenizer: two of its special tokens are marked so."""
    tokenizer = _byte_level("opt")
    data = json.loads(tokenizer.to_str())
    marked = ("<pad>", "</s>")
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in marked]
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))
    config = {
        "add_bos_token": True, "add_prefix_space": False, "bos_token": "</s>", "eos_token": "</s>",
        "errors": "replace", "model_max_length": 10**30, "pad_token": "<pad>",
        "tokenizer_class": "GPT2Tokenizer", "unk_token": "</s>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    n_vocab: int = tokenizer.get_vocab_size()
    return n_vocab


def split_tokenizer(folder: Path) -> None:
    """Write vocab.json and merges.txt, as OPT publishes them, in place of tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "tokenizer.json").unlink()


def _byte_level(kind: str) -> Tokenizer:
    steps = {
        "llama3": [_split(r"\p{N}{1,3}"), _bytes(use_regex=False)],
        "qwen2": [_split(r"\p{N}"), _bytes(use_regex=False)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), _bytes(use_regex=True)],
        "gpt2": [_bytes(use_regex=True)],
        "opt": [_bytes(use_regex=True)],
    }[kind]
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    # trained on unsplit text, so that merges cross every place where a pre-tokenizer may split
    tokenizer.pre_tokenizer = _bytes(use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    first = list(OPT_SPECIAL) if kind == "opt" else []
    trainer = BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, show_progress=False, special_tokens=first
    )
    tokenizer.train_from_iterator(_cut_into_bits(), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if kind == "opt":
        names = []
    if kind == "llama3":
        names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens(names)
    if kind == "llama3":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A",
            special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
        )
    return tokenizer


def _cut_into_bits() -> list[str]:
    """Return short pieces from all over the text, some with digits and signs."""
    rng = random.Random(11)
    hard = "I'll say 'Tis 12345 67, 2024: \n\n  x += 10;\n\tdon't!!\n\n... we'VE 3.14\n"
    text = " ".join([*CORPUS, hard, hard, hard])
    starts = [rng.randrange(len(text)) for _ in range(3000)]
    return [text[start : start + rng.randint(2, 6)] for start in starts]


def _split(digits: str) -> Any:
    return pre_tokenizers.Split(Regex(_WORDS + digits + _REST), "isolated")


def _bytes(*, use_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
