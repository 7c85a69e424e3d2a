"""The MD5s of published data files, which show whether a file is whole and unchanged.

VLMEvalKit publishes these MD5s (repository open-compass/VLMEvalKit at commit e8e78f0,
vlmeval/dataset/image_mcq.py, image_vqa.py and image_yorn.py, `DATASET_MD5`).
"""

from __future__ import annotations

import filecmp
from importlib.resources import files
from pathlib import Path

PUBLISHED = {
    "AI2D_TEST": "0f593e0d1c7df9a3d69bf1f947e71975",
    "AI2D_TEST_NO_MASK": "fd8f463634d4fe9fbd23b876e8eea5be",
    "MMBench_DEV_EN": "b6caf1133a01c6bb705cf753bb527ed8",
    "MMBench_DEV_EN_V11": "30c05be8f2f347a50be25aa067248184",
    "MMMU_DEV_VAL": "585e8ad75e73f75dcad265dfd0417d64",
    "MMMU_TEST": "c19875d11a2d348d07e5eb4bdf33166d",
    "MMStar": "e1ecd2140806c1b1bbf54b43372efb9e",
    "MathVista_MINI": "f199b98e178e5a2a20e7048f5dcb0464",
    "POPE": "c12f5acb142f2ef1f85a26ba2fbe41d5",
    "RealWorldQA": "4de008f55dc4fd008ca9e15321dc44b7",
    "SEEDBench_IMG": "68017231464752261a2526d6ca3a10c0",
    "ScienceQA_TEST": "e42e9e00f9c59a80d8a5db35bc32b71f",
}


def identify(path: Path, md5: str) -> str:
    """Return in words which published file this is, or is not."""
    own = Path(str(files("edgeprism.models.nano").joinpath("questions.tsv")))
    if path.name == own.name and own.is_file() and filecmp.cmp(path, own, shallow=False):
        return f"the questions of nano's world, which ship with EdgePrism (MD5 {md5})"
    for name, published in PUBLISHED.items():
        if md5 == published:
            return f"{name} as published (MD5 {md5})"
    expected = PUBLISHED.get(path.stem)
    if expected is not None:
        return f"not {path.stem} as published: MD5 {md5}, expected {expected}"
    return f"not a published file that EdgePrism knows (MD5 {md5})"
