"""What tells how training goes beside the losses: scalars of the sampled anchors and RoIs of a batch, for no gradient.

Shares are of all that was sampled in the batch; a share of nothing is 0.
"""
import tensorflow.compat.v1 as tf

from ..ops.rows import gather_rows


def rpn_metrics(objectness, sample):
    """Return {foreground, precision, recall}: objectness B×A logits, sample: AnchorSample.

    foreground: anchors of an image. The head calls foreground what it gives more than 0.5: precision is the share of it
    that is foreground, recall the share of the foreground that is among it.
    """
    foreground = tf.cast(sample.is_foreground, tf.float32)
    called = tf.cast((gather_rows(objectness, sample.indices) > 0) & sample.is_chosen, tf.float32)
    return {
        "foreground": tf.reduce_mean(tf.reduce_sum(foreground, axis=1)),
        "precision": _share(foreground, called),
        "recall": _share(called, foreground),
    }


def box_metrics(logits, rois):
    """Return {foreground, accuracy, foreground_accuracy, false_negatives}: logits B×S×(K+1), rois: RoISample.

    foreground: RoIs of an image; accuracies: the shares of all RoIs and of the foreground with the right class;
    false_negatives: the share of the foreground called background.
    """
    chosen = tf.cast(rois.is_chosen, tf.float32)
    foreground = tf.cast(rois.is_foreground, tf.float32)
    predicted = tf.argmax(logits, axis=2)
    right = tf.cast(tf.equal(predicted, rois.labels), tf.float32)
    missed = tf.cast(tf.equal(predicted, 0), tf.float32)
    return {
        "foreground": tf.reduce_mean(tf.reduce_sum(foreground, axis=1)),
        "accuracy": _share(right, chosen),
        "foreground_accuracy": _share(right, foreground),
        "false_negatives": _share(missed, foreground),
    }


def mask_metrics(logits, targets, is_foreground):
    """Return {accuracy, object_accuracy, object_share}, of the pixels of the foreground RoIs.

    logits, targets: R×M×M; is_foreground: bool R. A target of 0.5 or more is a pixel of the object. The accuracies are
    of all pixels and of the object's; object_share is how many these are.
    """
    of_object = tf.cast(targets >= 0.5, tf.float32)
    right = tf.cast(tf.equal(logits > 0, targets >= 0.5), tf.float32)
    foreground = tf.cast(is_foreground, tf.float32)[:, None, None] * tf.ones_like(right)
    return {
        "accuracy": _share(right, foreground),
        "object_accuracy": _share(right, foreground * of_object),
        "object_share": _share(of_object, foreground),
    }


def named(head, metrics):
    """Return the metrics under the names that curves have: {"accuracy": …} of "box" -> {"box/accuracy": …}."""
    return {f"{head}/{name}": value for name, value in metrics.items()}


def _share(x, weight):
    return tf.math.divide_no_nan(tf.reduce_sum(x * weight), tf.reduce_sum(weight))
