"""Losses: each is the mean over the images of a batch of the loss that the image has alone."""
import tensorflow.compat.v1 as tf

from ..ops.boxes import encode_boxes
from ..ops.rows import gather_rows

RPN_HUBER_DELTA = 1.0 / 9


def rpn_losses(objectness, deltas, sample, *, total):
    """Return (classification, box) loss of the chosen anchors (Faster R-CNN, eq. 1).

    objectness B×A logits, deltas B×A×4, sample: AnchorSample; both are sums divided by `total` anchors an image.
    """
    logits = gather_rows(objectness, sample.indices)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.cast(sample.is_foreground, tf.float32), logits=logits)
    class_loss = tf.reduce_sum(tf.where(sample.is_chosen, entropy, tf.zeros_like(entropy)), axis=1) / total
    targets = encode_boxes(sample.boxes, sample.anchors)
    errors = gather_rows(deltas, sample.indices) - targets
    errors = tf.where(sample.is_foreground[..., None] & tf.ones_like(errors, tf.bool), errors, tf.zeros_like(errors))
    box_loss = tf.reduce_sum(huber(errors, RPN_HUBER_DELTA), axis=[1, 2], keepdims=True)[:, 0, 0]
    box_loss = box_loss / RPN_HUBER_DELTA / total
    return tf.reduce_mean(class_loss), tf.reduce_mean(box_loss)


def box_head_losses(logits, deltas, sample, gt_boxes, *, weights):
    """Return (classification, box) loss of the sampled RoIs (Fast R-CNN, section 2.3).

    logits B×S×(K+1), deltas B×S×(K+1 or 1)×4, sample: RoISample, gt_boxes B×G×4. Both are means over the sampled RoIs;
    the box loss is L1 on the deltas of the true class times `weights`.
    """
    number = tf.maximum(tf.reduce_sum(tf.cast(sample.is_chosen, tf.float32), axis=1), 1.0)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=sample.labels, logits=logits)
    class_loss = tf.reduce_sum(tf.where(sample.is_chosen, entropy, tf.zeros_like(entropy)), axis=1) / number
    own = sample.labels if deltas.shape[2] > 1 else tf.zeros_like(sample.labels)
    rows = tf.reshape(deltas, [-1, *deltas.shape[2:]])
    predicted = tf.reshape(gather_rows(rows, tf.reshape(own, [-1, 1])), tf.shape(sample.boxes))
    targets = encode_boxes(gather_rows(gt_boxes, sample.matched), sample.boxes) * weights
    errors = tf.abs(predicted - targets)
    errors = tf.where(sample.is_foreground[..., None] & tf.ones_like(errors, tf.bool), errors, tf.zeros_like(errors))
    box_loss = tf.reduce_sum(errors, axis=[1, 2], keepdims=True)[:, 0, 0] / number
    return tf.reduce_mean(class_loss), tf.reduce_mean(box_loss)


def mask_loss(logits, targets, is_foreground, image_index, batch):
    """Return the sigmoid cross entropy of the true class's masks (Mask R-CNN, section 3).

    logits, targets: R×M×M; is_foreground: bool R; image_index: int32 R. The mean over an image's foreground RoIs and
    pixels, 0 for an image without any.
    """
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
    foreground = tf.cast(is_foreground, tf.float32)
    # The dimensions stay, here and above: without them the gradient computes shapes on the GPU.
    means = tf.reduce_mean(entropy, axis=[1, 2], keepdims=True)[:, 0, 0]
    sums = tf.math.unsorted_segment_sum(means * foreground, image_index, batch)
    counts = tf.math.unsorted_segment_sum(foreground, image_index, batch)
    return tf.reduce_mean(tf.math.divide_no_nan(sums, counts))


def huber(errors, delta):
    """Return the Huber loss of each error: ½e² below `delta`, delta·(|e| − ½delta) above."""
    size = tf.abs(errors)
    inner = tf.minimum(size, delta)
    return inner * (size - 0.5 * inner)
