"""Counts the training images that cannot be read, over all loader processes."""

from __future__ import annotations

import logging
import mmap

import numpy as np

from FasterRCNN.loading.prefetch import DataError

__all__ = ["BadImages"]

logger = logging.getLogger(__name__)


class BadImages:
    """Which images of a training set turned out unusable; processes forked later share what is known with this one."""

    def __init__(self, num_images: int, *, num_used: int, max_share: float):
        """num_images: of the whole set; num_used: of those that are trained on; max_share: of num_used, 0 for none."""
        # Shared and anonymous: a byte of each image, which processes write without waiting for each other.
        self._is_bad = np.frombuffer(mmap.mmap(-1, max(num_images, 1)), np.uint8)
        self._num_used = num_used
        self._max_share = max_share

    def __contains__(self, index: int) -> bool:
        return bool(self._is_bad[index])

    @property
    def count(self) -> int:
        """How many are known by now."""
        return int(self._is_bad.sum())

    def add(self, index: int, message: str) -> None:
        """Notes an image, in words, that is replaced; raises DataError when that makes too many."""
        self._is_bad[index] = 1
        if self.count > self._max_share * self._num_used or self.count == self._num_used:
            raise DataError(
                f"{message} ({self.count} of {self._num_used} images cannot be used, more than "
                f"DATA.MAX_BAD={self._max_share:g} allows; ./data.py --check lists them)"
                if self._max_share
                else message
            )
        logger.warning("replaced by another image: %s (%d so far)", message, self.count)
