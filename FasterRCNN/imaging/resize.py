"""The one rule for an image's size at the network's input, in training and in prediction."""

import cv2
import numpy as np

__all__ = ["resize_image", "resize_scale", "resized_shape"]


def resize_scale(height: int, width: int, short_edge: int, max_size: int) -> float:
    """The factor that brings the shorter side to `short_edge` pixels, less if the longer would exceed `max_size`."""
    return min(short_edge / min(height, width), max_size / max(height, width))


def resized_shape(height: int, width: int, short_edge: int, max_size: int) -> tuple[int, int]:
    """(height, width) after resizing, each rounded to a whole pixel and at least 1."""
    scale = resize_scale(height, width, short_edge, max_size)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_image(image: np.ndarray, short_edge: int, max_size: int) -> np.ndarray:
    """A uint8 H×W×3 image at the network's input size, bilinear; boxes scale by new/old size, each axis by its own."""
    height, width = resized_shape(*image.shape[:2], short_edge, max_size)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
