"""Defaults, and the values of options with a fixed list, for the library and the command line.

This module imports nothing, so that `edgeprism --help` stays fast.
"""

# the captioner that comes with the package, used when none is named
DEFAULT_MODEL = "nano"
# number types of the vision graph, from the most exact to the fastest on a CPU
VISION_QUANTS = ("fp32", "fp16", "int8", "int8-full")
# What a conversion can make. "auto": int8 for as many matrices as a bound of the error allows.
CONVERTED_QUANTS = (*VISION_QUANTS, "auto")
PAIR_QUANTS = tuple(quant for quant in CONVERTED_QUANTS if quant != "fp16")  # from an mmproj file
# Who encodes the pictures of a pair of GGUF and mmproj. "auto": an ONNX graph where it is faster.
ENCODERS = ("auto", "onnx", "mtmd")
DEVICES = ("auto", "cpu", "cuda", "metal")
# number types of the KV cache
KV_TYPES = ("f32", "f16", "q8_0")
# whether both models are in memory at once; "auto" decides by the machine's memory
STAGES = ("auto", "together", "apart")
# the captioner's instruction: the same for every question, or with a focus drawn from the question
INSTRUCTION_MODES = ("generic", "question")
# How a question's options reach the reasoner. "letters": the prompt lists them with their letters.
# "free": the prompt does not show them; the free answer is matched to them afterwards.
# "bound": the answer is bound to their texts.
OPTION_FORMS = ("letters", "free", "bound")

# the limit of visual tokens that follows the picture: one in AUTO_SHARE, and AUTO_LEAST at least
AUTO = "auto"
ALL = "all"  # no limit, where another one would hold
AUTO_SHARE, AUTO_LEAST = 4, 64

# of a video: the most frames that a prompt holds, and frames per second
MAX_FRAMES = 256
LEAST_RATE, MOST_RATE = 0.0001, 1000.0

# what begins a reference to a model that another program keeps (`bundle/elsewhere/`)
PROGRAM_PREFIXES = ("ollama", "lmstudio", "hub", "llamacpp", "jan", "gpt4all")


def is_reference(model: object) -> bool:
    """Return whether a model's name is a reference: a string that begins with a known prefix."""
    return isinstance(model, str) and ":" in model and model.partition(":")[0] in PROGRAM_PREFIXES
