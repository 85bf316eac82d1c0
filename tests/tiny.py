"""A detector small enough to build and run in a test, data to feed it, and ways to run its graphs."""

import dataclasses
import functools

import config

import numpy as np
import tensorflow.compat.v1 as tf

from FasterRCNN.engine.weights import restore
from FasterRCNN.modeling.build import build_detector
from FasterRCNN.ops.layers import MOVING_AVERAGES
from tools.compare_reference import reference_value

NUM_CLASSES = 3
TINY = {
    "MODE_FPN": True,
    "DATA.NUM_CLASS": NUM_CLASSES,
    "BACKBONE.RESNET_NUM_BLOCKS": [1, 1, 1, 1],
    "BACKBONE.CHANNELS": 8,
    "BACKBONE.FREEZE_AT": 0,
    "PREPROC.MAX_SIZE": 128,
    "FPN.NUM_CHANNEL": 16,
    "FPN.FRCNN_CONV_HEAD_DIM": 16,
    "FPN.FRCNN_FC_HEAD_DIM": 32,
    "MRCNN.HEAD_DIM": 16,
    "RPN.HEAD_DIM": 16,
    "RPN.ANCHOR_SIZES": [12, 20, 32, 48, 80],
    "RPN.BATCH_PER_IM": 32,
    "RPN.TRAIN_PRE_NMS_TOPK": 80,
    "RPN.TRAIN_POST_NMS_TOPK": 40,
    "RPN.TEST_PRE_NMS_TOPK": 60,
    "RPN.TEST_POST_NMS_TOPK": 30,
    "RPN.TRAIN_PER_LEVEL_NMS_TOPK": 40,
    "RPN.TEST_PER_LEVEL_NMS_TOPK": 30,
    "FRCNN.BATCH_PER_IM": 16,
    "TEST.RESULTS_PER_IM": 12,
    "TEST.RESULT_SCORE_THRESH": 0.01,
}
# Group normalisation wants multiples of 32 channels.
GN_BACKBONE = {"BACKBONE.NORM": "GN", "BACKBONE.CHANNELS": 32}
C4 = {"MODE_FPN": False, "RPN.ANCHOR_SIZES": [20, 40]}


def tiny_config(changes=()):
    """The finalized configuration of the tiny detector, with `changes` (a dict of keys) made to it."""
    cfg = config.default_config()
    for name, value in {**TINY, **dict(changes)}.items():
        cfg[name] = value
    config.finalize_configs(cfg, is_training=True, starts_from_weights=True)
    return cfg


def random_image(height, width, seed):
    """A uint8 image H×W×3 of smooth colours with some rectangles in it."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    phase = random.uniform(0, 6, 3)
    image = 128 + 80 * np.sin(x[..., None] / 9 + phase) * np.cos(y[..., None] / 13 + 2 * phase)
    for _ in range(4):
        top, left = random.integers(0, height - 12), random.integers(0, width - 12)
        image[top : top + random.integers(8, 40), left : left + random.integers(8, 40)] = random.uniform(0, 255, 3)
    return np.clip(image + random.normal(0, 10, image.shape), 0, 255).astype(np.uint8)


def random_objects(count, height, width, seed, least=12):
    """(boxes count×4 inside the image, labels 1..K, packed masks count×112×14 of ellipses)."""
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 1, [count, 2]) * [width - least, height - least]
    size = least + random.uniform(0, 0.8, [count, 2]) * ([width - least, height - least] - corner)
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    y, x = (np.mgrid[:112, :112] - 55.5) / 56
    ellipse = (x**2 + y**2 * random.uniform(1, 3, [count, 1, 1]) < 1).astype(np.uint8)
    return boxes, random.integers(1, NUM_CLASSES + 1, count).astype(np.int32), np.packbits(ellipse, axis=-1)


@dataclasses.dataclass
class Example:
    """An image with its objects and the seed of its random choices; labels may be −1 (crowd)."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    seed: int


def example(height, width, count, seed, crowd=False, least=12):
    """An Example of `count` random objects, the first of them a crowd if asked."""
    boxes, labels, masks = random_objects(count, height, width, seed, least)
    if crowd:
        labels[0] = -1
    return Example(random_image(height, width, seed), boxes, labels, masks, seed)


def batch_inputs(examples, multiple):
    """The inputs of Detector.losses, of images padded to their common size, itself a multiple of `multiple`."""
    sizes = np.array([item.image.shape[:2] for item in examples], np.int32)
    height, width = -(-sizes.max(axis=0) // multiple) * multiple
    slots = 8 * max(1, -(-max(len(item.labels) for item in examples) // 8))
    inputs = {
        "image": np.zeros([len(examples), height, width, 3], np.uint8),
        "image_size": sizes,
        "gt_boxes": np.zeros([len(examples), slots, 4], np.float32),
        "gt_labels": np.zeros([len(examples), slots], np.int32),
        "gt_masks": np.zeros([len(examples), slots, 112, 14], np.uint8),
        "image_seeds": np.array([[item.seed, 0] for item in examples], np.int32),
    }
    for i, item in enumerate(examples):
        inputs["image"][i, : sizes[i, 0], : sizes[i, 1]] = item.image
        for name, value in zip(("gt_boxes", "gt_labels", "gt_masks"), (item.boxes, item.labels, item.masks)):
            inputs[name][i, : len(value)] = value
    return inputs


def session():
    """A session that starts fast: on graphs this small, optimizing them costs more than it gains."""
    options = tf.ConfigProto()
    options.graph_options.rewrite_options.disable_meta_optimizer = True
    return tf.Session(config=options)


def evaluate(build, *arrays, fed=False):
    """The values of what `build` makes of the arrays, in a graph of its own; variables hold `reference_value`s.

    fed: of placeholders. What follows from constants TensorFlow computes beforehand, in one thread.
    """
    with tf.Graph().as_default() as graph, session() as running:
        inputs = [tf.placeholder(array.dtype, array.shape) if fed else tf.constant(array) for array in arrays]
        fetches = build(*inputs)
        restore_reference_values(running, graph)
        return running.run(fetches, dict(zip(inputs, arrays)) if fed else None)


def restore_reference_values(running, graph):
    variables = graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
    if variables:
        restore(running, {v.op.name: reference_value(v.op.name, v.shape.as_list()) for v in variables})


class TinyModel:
    """The losses and detections of one configuration at one batch size, in a graph and session of its own.

    Variables hold `reference_value`s. `gradients` are those of the summed losses, `moving_averages` what a training
    step makes of variables. `replace` exchanges parts of the detector before it is built, `options` are of
    `build_detector`, for training.
    """

    def __init__(self, changes=(), *, batch=1, with_gradients=False, replace=None, **options):
        self.cfg, self.graph = tiny_config(changes), tf.Graph()
        with self.graph.as_default():
            training, self.detector = (dataclasses.replace(detector, **(replace or {})) for detector in (
                build_detector(self.cfg, is_training=True, **options), build_detector(self.cfg)))
            self.inputs = {
                "image": tf.placeholder(tf.uint8, [batch, None, None, 3]),
                "image_size": tf.placeholder(tf.int32, [batch, 2]),
                "gt_boxes": tf.placeholder(tf.float32, [batch, None, 4]),
                "gt_labels": tf.placeholder(tf.int32, [batch, None]),
                "image_seeds": tf.placeholder(tf.int32, [batch, 2]),
            }
            if self.cfg.MODE_MASK:
                self.inputs["gt_masks"] = tf.placeholder(tf.uint8, [batch, None, 112, 14])
            with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
                self.losses, self.metrics = training.losses(**self.inputs)
                self.detections = self.detector.detect(self.inputs["image"], self.inputs["image_size"])
            self.moving_averages = {v.op.name: value for v, value in tf.get_collection(MOVING_AVERAGES)}
            self.total = tf.add_n(list(self.losses.values()))
            self.variables, self.trainable = tf.global_variables(), tf.trainable_variables()
            if with_gradients:
                gradients = tf.gradients(self.total, self.trainable)
                self.gradients = {v.op.name: g for v, g in zip(self.trainable, gradients)}

    @functools.cached_property
    def session(self):
        with self.graph.as_default():
            running = session()
        restore_reference_values(running, self.graph)
        return running

    def feeds(self, examples):
        """The feed_dict of a batch of Examples."""
        values = batch_inputs(examples, self.detector.pad_multiple)
        return {tensor: values[name] for name, tensor in self.inputs.items()}

    def run(self, fetches, examples):
        """Run `fetches` on a batch of Examples."""
        return self.session.run(fetches, self.feeds(examples))
