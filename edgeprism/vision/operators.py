"""The operators that a vision graph may have, and what the checks know of each.

The list holds what `convert` writes, Optimum's dynamic int8, and what published exports of vision
towers have besides (ViT, CLIP, SigLIP, DINOv2; with convolutions, resized position tables and ONNX
Runtime's fused operators). It holds no control flow, nothing random, and nothing whose result has a
shape that depends on the picture's pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FLOAT, UINT8, INT8, INT32, INT64, BOOL = 1, 2, 3, 6, 7, 9
_FLOAT16, _DOUBLE, _UINT32, _UINT64, _BFLOAT16 = 10, 11, 12, 13, 16
_INT16, _UINT16 = 5, 4
FLOATS = frozenset({FLOAT, _FLOAT16, _DOUBLE, _BFLOAT16})
# {ONNX's number of a type: bytes of an element}; texts and complex numbers are no pixels
ELEMENT_BYTES = {
    FLOAT: 4, UINT8: 1, INT8: 1, _UINT16: 2, _INT16: 2, INT32: 4, INT64: 8, BOOL: 1, _FLOAT16: 2,
    _DOUBLE: 8, _UINT32: 4, _UINT64: 8, _BFLOAT16: 2,
}  # fmt: skip


@dataclass(frozen=True)
class Operator:
    """What the checks know of an operator.

    Parameters:
        outputs: the types of its outputs, by place; empty: that of the input `like`.
        like: the input that has the output's type.
        shaping: the inputs that decide shapes: they must not depend on pixels.
        floats: whether it takes only floating-point numbers.
        forgets: whether its output tells nothing of the input's values, but only of its shape.
    """

    outputs: tuple[int, ...] = ()
    like: int = 0
    shaping: tuple[int, ...] = ()
    floats: bool = False
    forgets: bool = False


Operators = Mapping[str, Mapping[str, Operator]]  # {domain: {name: what is known of it}}

_ALIKE = Operator()
_OF_FLOATS = Operator(floats=True)
_REDUCING = Operator(shaping=(1,))
_TRUTH = Operator(outputs=(BOOL,))
_AS_THE_MODEL = {  # written by `convert`
    "Add": _ALIKE, "Cast": _ALIKE, "Concat": _ALIKE, "Div": _ALIKE,
    "Expand": Operator(shaping=(1,)),
    "DynamicQuantizeLinear": Operator(outputs=(UINT8, FLOAT, UINT8), floats=True),
    "Gelu": _OF_FLOATS, "LayerNormalization": _OF_FLOATS, "MatMul": _ALIKE,
    "MatMulInteger": Operator(outputs=(INT32,)), "Mul": _ALIKE, "Pad": Operator(shaping=(1, 3)),
    "Pow": _OF_FLOATS, "Reciprocal": _OF_FLOATS, "ReduceMean": Operator(shaping=(1,), floats=True),
    "Reshape": Operator(shaping=(1,)), "Shape": Operator(outputs=(INT64,), forgets=True),
    "Sigmoid": _OF_FLOATS, "Slice": Operator(shaping=(1, 2, 3, 4)), "Softmax": _OF_FLOATS,
    "Split": Operator(shaping=(1,)), "Sqrt": _OF_FLOATS, "Sub": _ALIKE, "Transpose": _ALIKE,
}  # fmt: skip
_PUBLISHED = {
    "Abs": _ALIKE, "And": _TRUTH, "AveragePool": _OF_FLOATS, "BatchNormalization": _OF_FLOATS,
    "Ceil": _OF_FLOATS, "Clip": _ALIKE, "Constant": _ALIKE, "Conv": _OF_FLOATS,
    "ConstantOfShape": Operator(shaping=(0,), forgets=True),
    "ConvInteger": Operator(outputs=(INT32,)), "Cos": _OF_FLOATS,
    "DequantizeLinear": Operator(like=1), "Elu": _OF_FLOATS, "Equal": _TRUTH, "Erf": _OF_FLOATS,
    "Exp": _OF_FLOATS, "Flatten": _ALIKE, "Floor": _OF_FLOATS,
    "Gather": Operator(shaping=(1,)), "Gemm": _OF_FLOATS, "GlobalAveragePool": _OF_FLOATS,
    "Greater": _TRUTH, "GroupNormalization": _OF_FLOATS, "HardSigmoid": _OF_FLOATS,
    "HardSwish": _OF_FLOATS, "Identity": _ALIKE, "InstanceNormalization": _OF_FLOATS,
    "LeakyRelu": _OF_FLOATS, "Less": _TRUTH, "Log": _OF_FLOATS, "Max": _ALIKE,
    "MaxPool": _OF_FLOATS, "Min": _ALIKE, "Mish": _OF_FLOATS, "Neg": _ALIKE, "Not": _TRUTH,
    "Or": _TRUTH, "PRelu": _OF_FLOATS, "QuantizeLinear": Operator(outputs=(UINT8,)),
    "Range": Operator(shaping=(0, 1, 2)), "ReduceL2": Operator(shaping=(1,), floats=True),
    "ReduceMax": _REDUCING, "ReduceMin": _REDUCING, "ReduceSum": _REDUCING, "Relu": _ALIKE,
    "Resize": Operator(shaping=(1, 2, 3), floats=True), "Round": _OF_FLOATS, "Sin": _OF_FLOATS,
    "Size": Operator(outputs=(INT64,), forgets=True), "Softplus": _OF_FLOATS,
    "Squeeze": Operator(shaping=(1,)), "Sum": _OF_FLOATS, "Tanh": _OF_FLOATS,
    "Tile": Operator(shaping=(1,)), "Unsqueeze": Operator(shaping=(1,)), "Where": Operator(like=1),
}  # fmt: skip
_FUSED = dict.fromkeys(
    ("BiasGelu", "FastGelu", "FusedMatMul", "Gelu", "MultiHeadAttention", "QuickGelu",
     "SkipLayerNormalization"),
    _OF_FLOATS,
)  # fmt: skip
OPERATORS: dict[str, dict[str, Operator]] = {
    "": {**_AS_THE_MODEL, **_PUBLISHED},
    "com.microsoft": _FUSED,
}
OPERATORS["ai.onnx"] = OPERATORS[""]
# what the graphs of a language model's decoder have besides: attention over kept keys and values,
# and weights in blocks of whole numbers
DECODER_OPERATORS = OPERATORS | {
    "com.microsoft": _FUSED
    | {
        "GatherBlockQuantized": Operator(like=2, shaping=(1,)),
        "GroupQueryAttention": _OF_FLOATS,
        "MatMulNBits": _OF_FLOATS,
    }
}
