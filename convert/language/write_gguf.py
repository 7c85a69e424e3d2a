"""Write a language model as GGUF, tensor by tensor; llama.cpp quantizes it if needed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import torch

from edgeprism.convert.language.config import Encoder, LmConfig, LmTensor
from edgeprism.convert.language.model import LmParts
from edgeprism.convert.language.vocabulary import write_vocabulary
from edgeprism.errors import CheckpointError, EdgePrismError
from edgeprism.language.llama import import_llama, last_words
from edgeprism.progress import Progress

# Quantizations that this module writes; llama_model_quantize makes all others.
DIRECT = {
    "F32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "F16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
# {name: llama_ftype}
_NATIVE = {
    name: int(gguf.LlamaFileType[f"MOSTLY_{name}"])
    for name in ("Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0")
}
_POSITIONS = "position_embd.weight"
_RELATIVE = "attn_rel_b.weight"

# How many bytes of rows llama.cpp may hold at once while quantizing
_QUANTIZE_BUFFER = 1 << 30


def write_gguf(path: Path, quant: str, parts: LmParts, name: str, progress: Progress) -> None:
    """Write `path` with quantization `quant` (one of `family.GGUF_QUANTS`)."""
    if quant in DIRECT:
        _write_direct(path, quant, parts, name, progress)
        return
    whole = path.with_name(f"{path.stem}.f16.gguf")
    _write_direct(whole, "F16", parts, name, progress)
    progress.stage(f"Quantizing the language model to {quant}")
    try:
        quantize_gguf(whole, path, quant)
    finally:
        whole.unlink(missing_ok=True)


def _write_direct(path: Path, quant: str, parts: LmParts, name: str, progress: Progress) -> None:
    target, file_type = DIRECT[quant]
    writer = gguf.GGUFWriter(str(path), parts.config.architecture, use_temp_file=False)
    writer.add_name(name)
    _write_config(writer, parts.config)
    writer.add_file_type(int(file_type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_vocabulary(writer, parts.vocabulary)
    folder = parts.checkpoint.folder
    write_tensors(writer, parts.tensors, target, folder, parts.read, "language model", progress)


def write_adapter(path: Path, quant: str, parts: LmParts, name: str, progress: Progress) -> None:
    """Write the adapter of a picture's rows beside a language model of quantization `quant`."""
    adapter = parts.row_adapter
    assert adapter is not None
    writer = gguf.GGUFWriter(str(path), parts.config.architecture, use_temp_file=False)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", adapter.alpha)
    target, _ = DIRECT.get(quant, DIRECT["Q8_0"])
    what, folder = "adapter of a picture's rows", parts.checkpoint.folder
    write_tensors(writer, adapter.tensors, target, folder, parts.read, what, progress)


def write_tensors(
    writer: gguf.GGUFWriter,
    tensors: Sequence[LmTensor],
    target: gguf.GGMLQuantizationType,
    folder: Path,
    read: Callable[[str], torch.Tensor],
    what: str,
    progress: Progress,
) -> None:
    """Write header and `tensors` of a file and close it.

    Args:
        writer: Has the file's metadata.
        tensors: In the file's order.
        target: The type of matrices.
        folder: The checkpoint's, for errors.
        read: Returns a published tensor by name, in float32.
        what: Names the tensors for the user.
        progress: Receives each.
    """
    types = [_type_of(tensor, target) for tensor in tensors]
    for tensor, kind in zip(tensors, types, strict=True):
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind)
        # The header precedes the tensors, so it needs their sizes before any tensor is read.
        # GGUFWriter takes the byte shape of quantized tensors and the plain shape of others.
        stored = tensor.shape if kind in _PLAIN else shape
        dtype = _PLAIN.get(kind, np.dtype(np.uint8))
        writer.add_tensor_info(tensor.name, stored, dtype, int(np.prod(shape)), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    progress.stage(f"Writing the {what}", len(tensors))
    for tensor, kind in zip(tensors, types, strict=True):
        published = f"{folder}: {tensor.source or tensor.name}"
        numbers = tensor.make(read)
        writer.write_tensor_data(_encoded(published, tensor.shape, numbers, kind))
        progress.advance()
    writer.close()


def _write_config(writer: gguf.GGUFWriter, config: LmConfig) -> None:
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.n_ffn)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    if config.head_dim * config.n_heads != config.n_embd:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.encoder is not None:
        _write_encoder(writer, config.encoder)
    elif config.rope_theta:
        _write_rotation(writer, config)
    if config.rope_theta or config.encoder is not None:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    else:  # llama.cpp reads a table of positions if the file has one
        writer.add_layer_norm_eps(config.norm_eps)
        writer.add_max_alibi_bias(0.0)
    if config.scales is not None:  # llama.cpp has defaults of its own, of another sense
        writer.add_embedding_scale(config.scales.embedding)
        writer.add_residual_scale(config.scales.residual)
        writer.add_logit_scale(config.scales.logit)
    writer.add_vocab_size(config.n_vocab)


def _write_encoder(writer: gguf.GGUFWriter, encoder: Encoder) -> None:
    writer.add_relative_attn_buckets_count(encoder.n_buckets)
    writer.add_decoder_start_token_id(encoder.start_token)


def _write_rotation(writer: gguf.GGUFWriter, config: LmConfig) -> None:
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_sections:
        writer.add_rope_dimension_sections(config.rope_sections)
    scaling = config.rope_scaling
    if scaling.kind in ("linear", "yarn"):  # "llama3" is the tensor `rope_freqs` instead
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
        writer.add_rope_scaling_factor(scaling.factor)
    if scaling.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling.original_context)


_PLAIN: dict[gguf.GGMLQuantizationType, np.dtype] = {
    gguf.GGMLQuantizationType.F32: np.dtype(np.float32),
    gguf.GGMLQuantizationType.F16: np.dtype(np.float16),
}


def _type_of(tensor: LmTensor, target: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    # llama.cpp expects norms and biases in float32, and leaves relative positions in it
    if len(tensor.shape) == 1 or tensor.name.endswith(_RELATIVE):
        return gguf.GGMLQuantizationType.F32
    block = gguf.GGML_QUANT_SIZES[target][0]
    # llama.cpp's own quantizer leaves positions as they are, too
    whole = tensor.shape[-1] % block == 0 and tensor.name != _POSITIONS
    kind = target if whole or target in _PLAIN else gguf.GGMLQuantizationType.F16
    if kind == gguf.GGMLQuantizationType.F16 and tensor.is_wide:
        return gguf.GGMLQuantizationType.F32
    return kind


def _encoded(
    name: str, shape: tuple[int, ...], tensor: torch.Tensor, kind: gguf.GGMLQuantizationType
) -> np.ndarray:
    if tuple(tensor.shape) != shape:
        raise EdgePrismError(f"{name}: shape {list(tensor.shape)}, expected {list(shape)}")
    if kind == gguf.GGMLQuantizationType.F16:
        tensor = tensor.to(torch.float16)
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{name} holds values that are not finite, or too large for {kind.name}.",
            "Download the checkpoint again, or convert with `lm_quant=F32`."
            if kind == gguf.GGMLQuantizationType.F16
            else "Download the checkpoint again.",
        )
    array = tensor.contiguous().numpy()
    return array if kind in _PLAIN else gguf.quants.quantize(array, kind)


def quantize_gguf(source: Path, out: Path, quant: str) -> None:
    """Quantize `source` (F16 or F32) to `out` with llama.cpp's quantizer."""
    llama = import_llama()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = _NATIVE[quant]
    parameters.nthread = os.cpu_count() or 1
    parameters.max_buf_size = _QUANTIZE_BUFFER
    failed = llama.llama_model_quantize(
        os.fsencode(source), os.fsencode(out), ctypes.byref(parameters)
    )
    if failed:
        raise EdgePrismError(
            f"llama.cpp could not quantize the language model to {quant}: {last_words()}.",
            "Try another `lm_quant`, e.g. Q8_0.",
        )
