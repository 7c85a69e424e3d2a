"""Tiny videos, written with PyAV, and tiny models that take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprism.bundle import manifest as m
from tests.helpers import bundles


def moving_frames(n_frames: int, size: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Return frames [height, width, 3] in which a box moves over a background of two colours."""
    width, height = size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    ground = np.stack([x * 255 / width, y * 255 / height, 255 - x * 255 / width], axis=-1)
    frames = []
    for i in range(n_frames):
        picture = ground * 0.6 + rng.normal(0, 12, (height, width, 1))
        at = i * max(1, width - 8) // max(1, n_frames - 1)
        picture[height // 4 : height // 2, at : at + 8] = [250, 30 + 7 * i % 200, 20]
        frames.append(np.clip(picture, 0, 255).astype(np.uint8))
    return frames


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "ffv1",
    pixel_format: str = "bgr0",
    rate: int = 10,
    gop: int = 12,
    rotation: int = 0,
    flipped: bool = False,
    sound: bool = False,
    index_first: bool = False,
) -> Path:
    """Write frames [height, width, 3] as a video; FFV1 keeps each pixel.

    Parameters:
        gop: a key frame each so many frames.
        rotation: the display matrix turns frames by so many degrees against the clock.
        flipped: the display matrix mirrors them left to right, too.
        sound: with a track of silence.
        index_first: an MP4's index stands before its frames, as for the web.
    """
    height, width = frames[0].shape[:2]
    options = {"movflags": "faststart"} if index_first else {}
    with av.open(str(path), "w", options=options) as container:
        stream = cast("av.VideoStream", container.add_stream(codec, rate=rate))
        stream.width, stream.height = width, height
        stream.pix_fmt, stream.gop_size = pixel_format, gop
        if rotation or flipped:
            stream.set_display_rotation(rotation, hflip=flipped)
        silence = None
        if sound:
            silence = container.add_stream("aac", rate=8000, layout="mono")
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if silence is not None:
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            heard.sample_rate, heard.pts = 8000, 0
            container.mux(silence.encode(heard))
            container.mux(silence.encode())
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """Return every frame of a video as it is stored, [height, width, 3]."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def video_graph(seed: int = 0) -> onnx.ModelProto:
    """Return the tiny bundles' graph with a further output: the means of 2 × 2 visual tokens."""
    model = bundles.vision_graph(seed)
    side = bundles.GRID // 2
    constants = {
        "cells": np.array([-1, side, 2, side, 2, bundles.N_EMBD], np.int64),
        "within": np.array([2, 4], np.int64),
        "frame_shape": np.array([-1, side * side, bundles.N_EMBD], np.int64),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    model.graph.node.extend(
        [
            helper.make_node("Reshape", ["projected", "cells"], ["in_cells"]),
            helper.make_node("ReduceMean", ["in_cells", "within"], ["means"], keepdims=0),
            helper.make_node("Reshape", ["means", "frame_shape"], ["frame_tokens"]),
        ]
    )
    shape: list[str | int] = ["n", side * side, bundles.N_EMBD]
    model.graph.output.append(
        helper.make_tensor_value_info("frame_tokens", TensorProto.FLOAT, shape)
    )
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 18))  # in which axes are an input
    return model


def write_video_bundle(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny bundle that takes videos; `changes` replace parts of its manifest's `video`."""
    side = bundles.GRID // 2
    video = m.Video("frame_tokens", [side, side], "crop", [0, 0, 0], "bicubic", frames=4)
    return bundles.write_bundle(
        folder, seed, graph=video_graph(seed), video=dataclasses.replace(video, **changes)
    )


def frames_reference(tiles: np.ndarray, seed: int = 0) -> np.ndarray:
    """Compute the further output in NumPy: tiles [n, size, size, 3] → [n, tokens, n_embd]."""
    side = bundles.GRID // 2
    rows = bundles.vision_reference(tiles, seed)
    cells = rows.reshape(-1, side, 2, side, 2, bundles.N_EMBD)
    means: np.ndarray = cells.mean(axis=(2, 4)).reshape(-1, side * side, bundles.N_EMBD)
    return means
