"""A detector whose answer is known: it finds the bright rectangle of a photo, no learning involved."""

import numpy as np
import tensorflow.compat.v1 as tf

from FasterRCNN.structures import Categories

MASK_SIDE, SLOTS = 4, 3


class BrightBoxDetector:
    """Finds the bounding box of the pixels above `threshold` of each image; the score is the `score` weight.

    The second of three slots holds the same box at half the score. An image without such pixels has no detections.
    """

    pad_multiple = 32

    def detect(self, image, image_size):
        with tf.variable_scope("bright"):
            threshold = tf.get_variable("threshold", [1])
            score = tf.get_variable("score", [1])
        with tf.variable_scope("bright", reuse=True):
            threshold = (threshold + tf.get_variable("threshold", [1])) / 2
        bright = tf.cast(image[..., 0], tf.float32) > threshold
        boxes, found = tf.map_fn(self.box_of, bright, dtype=(tf.float32, tf.bool))
        batch = tf.shape(image)[0]
        scores = score * tf.constant([[1.0, 0.5, 0.0]]) * tf.ones([batch, 1])
        return {
            "boxes": tf.stack([boxes, boxes, tf.zeros_like(boxes)], axis=1),
            "scores": scores,
            "labels": tf.tile([[2, 1, 0]], [batch, 1]),
            "num_detections": tf.where(found, 2 * tf.ones([batch], tf.int32), tf.zeros([batch], tf.int32)),
            "masks": tf.ones([batch, SLOTS, MASK_SIDE, MASK_SIDE]),
            "canvas": tf.tile(tf.shape(image)[1:3][None], [batch, 1]),
        }

    @staticmethod
    def box_of(bright):
        yx = tf.cast(tf.where(bright), tf.float32)
        low, high = tf.reduce_min(yx, axis=0), tf.reduce_max(yx, axis=0) + 1
        found = tf.size(yx) > 0
        box = tf.stack([low[1], low[0], high[1], high[0]])
        return tf.where(found, box, tf.zeros([4])), found


WEIGHTS = {
    "bright/threshold": np.array([100], np.float32),
    "bright/score": np.array([0.75], np.float32),
    "unused/W": np.zeros(3, np.float32),
}
CATEGORIES = Categories(names=("dim", "bright"), ids=(1, 2))


def photo(height, width, box=None):
    image = np.zeros((height, width, 3), np.uint8)
    if box is not None:
        x1, y1, x2, y2 = box
        image[y1:y2, x1:x2] = 255
    return image


# Of various shapes, sizes and orientations; the second has nothing in it.
PHOTOS = [
    (photo(128, 200, (20, 30, 90, 110)), (20, 30, 90, 110)),
    (photo(100, 100), None),
    (photo(300, 130, (10, 200, 130, 290)), (10, 200, 130, 290)),
    (photo(64, 64, (0, 0, 64, 64)), (0, 0, 64, 64)),
    (photo(128, 256, (200, 40, 240, 80)), (200, 40, 240, 80)),
    (photo(33, 50, (5, 5, 25, 30)), (5, 5, 25, 30)),
    (photo(210, 140, (40, 40, 100, 160)), (40, 40, 100, 160)),
]
