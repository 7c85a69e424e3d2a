"""What is planned with facts that are made up: what goes where, what fits, who takes turns."""

from __future__ import annotations

from typing import Any, cast

import pytest

from edgeprism.bundle.gguf import GgufHeader
from edgeprism.errors import UsageError
from edgeprism.language.gpu import Gpu, gpu_of
from edgeprism.machine.device import ALL_LAYERS
from edgeprism.memory.language import (
    LanguageUse,
    adapter_parts,
    cells_for,
    expert_parts,
    language_parts,
    layers_that_fit,
)
from edgeprism.memory.layers import choose_layers
from edgeprism.memory.parts import CPU, GPU, ModelParts, Part, parts_size
from edgeprism.memory.plan import MachineMemory, Plan, machine_memory

F32, Q8_0, Q4_K = 0, 8, 12
GB = 10**9
LAYERS, WIDTH, WIDE, VOCABULARY = 4, 512, 2048, 1024
BLOCK_BYTES = (4 * WIDTH * WIDTH + 3 * WIDTH * WIDE) // 256 * 144  # of Q4_K


def header(*, output: bool = True, kind: int = Q4_K) -> GgufHeader:
    """A language model of the architecture llama, without its weights."""
    sizes: dict[str, Any] = {
        "block_count": LAYERS, "embedding_length": WIDTH, "feed_forward_length": WIDE,
        "attention.head_count": 8, "attention.head_count_kv": 8, "context_length": 4096,
    }  # fmt: skip
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (WIDTH, VOCABULARY)}
    if output:
        tensors["output.weight"] = (WIDTH, VOCABULARY)
    for i in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"blk.{i}.{part}.weight"] = (WIDTH, WIDTH)
        tensors |= {
            f"blk.{i}.ffn_gate.weight": (WIDTH, WIDE), f"blk.{i}.ffn_up.weight": (WIDTH, WIDE),
            f"blk.{i}.ffn_down.weight": (WIDE, WIDTH),
        }  # fmt: skip
    types = dict.fromkeys(tensors, kind) | {"token_embd.weight": Q8_0, "output.weight": Q8_0}
    metadata = {"general.architecture": "llama"} | {f"llama.{k}": v for k, v in sizes.items()}
    return GgufHeader(metadata, tensors, {name: types[name] for name in tensors})


def weights(parts: tuple[Part, ...], place: str) -> int:
    return sum(p.size for p in parts if p.place == place and "weights" in p.what)


def file_bytes(of: GgufHeader) -> int:
    return sum(map(of.tensor_bytes, of.tensors)) + 1000


TABLE = WIDTH * VOCABULARY // 32 * 34  # bytes of Q8_0


def test_weights_that_are_not_copied_are_read_in_place() -> None:
    model = header()
    parts = language_parts(model, file_bytes(model), LanguageUse(512))
    assert weights(parts, CPU) == LAYERS * BLOCK_BYTES + 2 * TABLE
    assert weights(parts, GPU) == 0
    dropped = [part for part in parts if not part.needed]
    assert [part.size for part in dropped] == [1000]  # the header


def test_repacked_weights_stand_beside_the_file() -> None:
    model = header()
    parts = language_parts(model, file_bytes(model), LanguageUse(512, repacked={Q4_K}))
    by_name = {part.what: part.size for part in parts}
    assert by_name["repacked weights"] == LAYERS * BLOCK_BYTES
    assert by_name["language weights"] == 2 * TABLE  # Q8_0 stays as it is
    assert by_name["file mapped while loading"] == 1000  # the header
    needed, loading = parts_size(parts, CPU), parts_size(parts, CPU, loading=True)
    assert loading - needed == 1000


def test_an_output_that_is_the_embeddings_is_copied_if_its_type_is() -> None:
    model = header(output=False)
    use = LanguageUse(512, repacked={Q4_K, Q8_0})
    by_name = {p.what: p.size for p in language_parts(model, file_bytes(model), use)}
    assert by_name["repacked weights"] == LAYERS * BLOCK_BYTES + TABLE
    assert by_name["language weights"] == TABLE


@pytest.mark.parametrize(
    ("layers", "blocks", "tables"), [(0, 0, 0), (1, 0, 1), (3, 2, 1), (5, 4, 1), (999, 4, 1)]
)
def test_the_last_layers_go_to_the_gpu_first(layers: int, blocks: int, tables: int) -> None:
    model = header()
    parts = language_parts(model, file_bytes(model), LanguageUse(512, gpu_layers=layers))
    assert weights(parts, GPU) == blocks * BLOCK_BYTES + tables * TABLE
    assert weights(parts, CPU) == (LAYERS - blocks) * BLOCK_BYTES + (2 - tables) * TABLE
    cache = {part.place: part.size for part in parts if part.what == "KV cache"}
    assert sum(cache.values()) == 512 * LAYERS * 2 * WIDTH * 2
    assert cache.get(GPU, 0) == 512 * blocks * 2 * WIDTH * 2


def test_an_adapter_lies_by_the_matrices_that_it_is_for() -> None:
    model, rank = header(), 16
    tensors: dict[str, tuple[int, ...]] = {}
    for i in range(LAYERS):
        tensors |= {f"blk.{i}.attn_q.weight.lora_a": (WIDTH, rank),
                    f"blk.{i}.attn_q.weight.lora_b": (rank, WIDTH)}  # fmt: skip
    adapter = GgufHeader({"general.type": "adapter"}, tensors, dict.fromkeys(tensors, F32))
    of_layer = 2 * WIDTH * rank * 4
    for layers, on_gpu in ((0, 0), (1, 0), (3, 2), (ALL_LAYERS, LAYERS)):
        use = LanguageUse(512, gpu_layers=layers)
        parts = adapter_parts(adapter, model, use, "adapter", "beside the model's own")
        assert {part.place: part.size for part in parts} == {
            place: n * of_layer for place, n in ((GPU, on_gpu), (CPU, LAYERS - on_gpu)) if n
        }


def test_as_many_layers_as_fit() -> None:
    model = header()
    use, size = LanguageUse(512), file_bytes(model)

    def taken(layers: int) -> int:
        use = LanguageUse(512, gpu_layers=layers)
        return parts_size(language_parts(model, size, use), GPU)

    assert [layers_that_fit(model, size, use, taken(n)) for n in range(1, 6)] == [1, 2, 3, 4, 5]
    assert [layers_that_fit(model, size, use, taken(n) - 1) for n in range(1, 6)] == [0, 1, 2, 3, 4]


def test_layers_for_what_is_free_of_a_gpu() -> None:
    model = header()
    use, size = LanguageUse(512), file_bytes(model)

    def chosen(gpu: Gpu | None, taken: int = 0) -> int:
        return choose_layers(model, size, use, gpu, taken)

    assert chosen(Gpu("big", 8 * GB, 8 * GB, shared=False)) == ALL_LAYERS
    assert chosen(Gpu("full", 8 * GB, GB // 10, shared=False)) == 0
    assert chosen(Gpu("Orin", 8 * GB, GB // 10, shared=True)) == ALL_LAYERS
    assert chosen(Gpu("silent", 0, 0, shared=False)) == ALL_LAYERS
    assert chosen(None) == ALL_LAYERS
    some = Gpu("small", GB, 330_000_000, shared=False)
    assert 0 < chosen(some) < LAYERS + 1
    assert chosen(some, taken=20_000_000) < chosen(some)


@pytest.mark.parametrize(
    ("prompt", "answer", "limit", "cells"),
    [(100, 100, 4096, 512), (256, 0, 4096, 512), (257, 0, 4096, 768), (4000, 512, 4096, 4352)],
)
def test_cells_are_those_of_the_generator(prompt: int, answer: int, limit: int, cells: int) -> None:
    assert cells_for(prompt, answer, limit) == cells


# ---- a machine and two models


def model(role: str, cpu: int, gpu: int = 0, dropped: int = 0) -> ModelParts:
    parts = (
        Part("weights", cpu, "", CPU), Part("weights", gpu, "", GPU),
        Part("file", dropped, "", CPU, needed=False),
    )  # fmt: skip
    return ModelParts(role, role, parts)


def plan(machine: MachineMemory, **sizes: int) -> Plan:
    return Plan((model("captioner", 3 * GB, **sizes),), model("reasoner", 2 * GB, **sizes), machine)


def test_peaks_together_and_apart() -> None:
    made = plan(MachineMemory(None, None), gpu=GB, dropped=GB)
    base = made.process.size(CPU)
    assert made.peak(CPU, apart=False) == base + 5 * GB
    assert made.peak(CPU, apart=True) == base + 3 * GB
    assert made.peak(CPU, apart=True, loading=True) == base + 4 * GB
    assert made.peak(CPU, apart=False, loading=True) == base + 6 * GB
    assert (made.peak(GPU, apart=False), made.peak(GPU, apart=True)) == (2 * GB, GB)


@pytest.mark.parametrize(
    ("free", "stages", "fits"), [(8, "together", True), (5, "apart", True), (2, "apart", False)]
)
def test_models_take_turns_where_both_do_not_fit(free: int, stages: str, fits: bool) -> None:
    made = plan(MachineMemory(32 * GB, free * GB))
    assert (made.stages()[0], made.fits()) == (stages, fits)
    assert plan(MachineMemory(free * GB, 32 * GB)).stages()[0] == stages  # a container's limit
    if not fits:
        assert "3.1 GB of memory are needed, 2.0 GB are free" in made.shortages(apart=True)[0]


def test_a_memory_that_is_not_known_holds_all() -> None:
    made = plan(MachineMemory(None, None))
    assert made.stages()[0] == "together"
    assert made.fits()


def test_a_gpu_that_holds_one_model_at_a_time() -> None:
    gpu = Gpu("a GPU", 8 * GB, 3 * GB, shared=False)
    assert plan(MachineMemory(64 * GB, 64 * GB, gpu=gpu), gpu=2 * GB).stages()[0] == "apart"
    assert plan(MachineMemory(64 * GB, 64 * GB, gpu=gpu), gpu=GB).stages()[0] == "together"


def test_a_gpu_that_shares_the_machines_memory() -> None:
    """What its memory holds is not free for the processor."""
    gpu = Gpu("Orin", 8 * GB, 8 * GB, shared=True)
    made = plan(MachineMemory(8 * GB, 7 * GB, gpu=gpu), gpu=2 * GB)
    assert made.stages()[0] == "apart"
    assert "9.1 GB of memory are needed" in made.shortages(apart=False)[0]
    assert made.fits()


def test_stages_as_requested() -> None:
    made = plan(MachineMemory(GB, GB))
    assert made.stages("together")[0] == "together"
    assert plan(MachineMemory(99 * GB, 99 * GB)).stages("apart")[0] == "apart"
    with pytest.raises(UsageError, match="'sideways'"):
        made.stages("sideways")


def test_one_model_takes_no_turns() -> None:
    made = Plan((model("captioner", 3 * GB),), None, MachineMemory(4 * GB, GB))
    assert made.stages()[0] == "together"
    assert not made.fits()


def test_a_machine_that_is_asked_about() -> None:
    other = machine_memory(None, size=8 * GB)
    assert (other.size, other.free) == (8 * GB, 8 * GB)
    own = machine_memory(None)
    assert own.size is None or own.free is None or 0 < own.free <= own.size


# ---- devices


class Ggml:
    """The functions of ggml that tell its devices, for devices that are made up."""

    class _Function:
        def __init__(self, act: Any) -> None:
            self.act = act

        def __call__(self, *arguments: Any) -> Any:
            return self.act(*arguments)

    def __init__(self, *devices: tuple[int, bytes, int, int]) -> None:
        def memory(device: int, free: Any, size: Any) -> None:
            free._obj.value, size._obj.value = devices[device][2:]

        self.ggml_backend_dev_count = self._Function(lambda: len(devices))
        self.ggml_backend_dev_get = self._Function(lambda index: index)
        self.ggml_backend_dev_type = self._Function(lambda device: devices[device][0])
        self.ggml_backend_dev_description = self._Function(lambda device: devices[device][1])
        self.ggml_backend_dev_memory = self._Function(memory)


def found(*devices: tuple[int, bytes, int, int]) -> Gpu | None:
    return gpu_of(cast("Any", Ggml(*devices)))


def test_the_gpu_that_llama_cpp_names() -> None:
    cpu, orin, big = (0, b"CPU", 1, 2), (2, b"Orin", 3, 4), (1, b"H100", 5, 6)
    assert found(cpu) is found() is gpu_of(None) is None
    assert found(cpu, orin) == Gpu("Orin", 4, 3, shared=True)
    assert found(cpu, orin, big) == Gpu("H100", 6, 5, shared=False)


def test_layers_of_a_model_and_its_expert_share_a_gpu() -> None:
    model, size = header(), file_bytes(header())
    use = LanguageUse(512, prompt=400)

    def expert(use: LanguageUse) -> tuple[Part, ...]:
        return expert_parts(model, size, use)

    def taken(layers: int) -> int:
        so_many = LanguageUse(512, prompt=400, gpu_layers=layers)
        return parts_size((*language_parts(model, size, so_many), *expert(so_many)), GPU)

    fit = [layers_that_fit(model, size, use, taken(n), expert) for n in range(1, 6)]
    assert fit == [1, 2, 3, 4, 5]
    gpu = Gpu("small", GB, 330_000_000, shared=False)
    assert choose_layers(model, size, use, gpu, 0, expert) < choose_layers(model, size, use, gpu)


def test_an_expert_holds_one_sequence_at_a_time() -> None:
    model, size = header(), file_bytes(header())
    one, four = (
        {part.what: part.size for part in expert_parts(model, size, use)}
        for use in (LanguageUse(512, prompt=400), LanguageUse(2048, prompt=400, sequences=4))
    )
    assert one == four
    assert one["expert buffer"] == 400 * LAYERS * 2 * WIDTH * 2
