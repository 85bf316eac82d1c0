"""The one rule for an image's size at the network's input, in training and in prediction."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

__all__ = ["image_dtype", "resize_image", "resize_scale", "resized_shape"]


def resize_scale(height: int, width: int, short_edge: int, max_size: int) -> float:
    """The factor that brings the shorter side to `short_edge` pixels, less if the longer would exceed `max_size`."""
    return min(short_edge / min(height, width), max_size / max(height, width))


def resized_shape(
    height: int, width: int, short_edge: int, max_size: int, rounding: str = "nearest"
) -> tuple[int, int]:
    """(height, width) after resizing, in whole pixels and at least 1.

    rounding: of both sides to the "nearest", or by "floor" (torchvision); or "short" (maskrcnn-benchmark): the shorter
    is `short_edge`, or what is nearest to keeping the longer within `max_size`, and the longer follows, rounded down.
    """
    if rounding == "short":
        short, long = min(height, width), max(height, width)
        if long / short * short_edge > max_size:
            short_edge = max(1, round(max_size * short / long))
        sides = short_edge, int(short_edge * long / short)
        return sides if height <= width else sides[::-1]
    scale = resize_scale(height, width, short_edge, max_size)
    half = 0.5 if rounding == "nearest" else 0.0
    return max(1, int(height * scale + half)), max(1, int(width * scale + half))


def image_dtype(method: str) -> type[np.generic]:
    """The type of what `resize_image` gives."""
    return np.float32 if method == "float" else np.uint8


def resize_image(
    image: np.ndarray, short_edge: int, max_size: int, *, method: str = "opencv", rounding: str = "nearest"
) -> np.ndarray:
    """A uint8 H×W×3 image at the network's input size, bilinear; boxes scale by new/old size, each axis by its own.

    method: "opencv"; "pillow", which averages over more pixels when it makes an image smaller (detectron2,
    maskrcnn-benchmark); or "float", OpenCV's without rounding to whole grey values, which gives float32 (torchvision,
    Detectron). rounding: see `resized_shape`.
    """
    height, width = resized_shape(*image.shape[:2], short_edge, max_size, rounding)
    if method == "pillow":
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return cv2.resize(image.astype(image_dtype(method), copy=False), (width, height), interpolation=cv2.INTER_LINEAR)
