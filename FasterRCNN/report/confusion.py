"""Which object each detection stands for, and what is taken for what."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as mask_utils

from FasterRCNN.evaluation import HIT, IGNORED
from FasterRCNN.report.arrays import Found, Truth, by_image

__all__ = ["CONFUSION_IOU", "confusion_matrix", "find_partners"]

CONFUSION_IOU = 0.5


def find_partners(truth: Truth, found: Found, outcomes: np.ndarray, *, last_of_equals: bool) -> np.ndarray:
    """The object, int N, that each result of boxes stands for; -1: none.

    outcomes: N, of the evaluation at IoU 0.5. Its hits stand for the objects of their class that they hit. What it
    calls wrong then stands, best score first, for the object of another class that is left over and that it overlaps
    most, with an IoU of at least 0.5. last_of_equals: of objects with the same IoU the last is taken, as by COCO, or
    the first, as by VOC.
    """
    partners = np.full(len(found), -1)
    chosen = np.flatnonzero((outcomes != IGNORED) & (found.classes >= 0))
    for own, objects in by_image(truth, found[chosen]):
        own = chosen[own]
        objects = objects[::-1] if last_of_equals else objects
        ious = mask_utils.iou(found.boxes[own], truth.boxes[objects], np.zeros(len(objects), bool))
        is_near = ious >= CONFUSION_IOU
        is_same = found.classes[own][:, None] == truth.classes[objects]
        is_hit = outcomes[own] == HIT
        is_free = np.ones(len(objects), bool)
        for may_take in (is_near & is_same & is_hit[:, None], is_near & ~is_same & ~is_hit[:, None]):
            for d in np.flatnonzero(may_take.any(axis=1)):
                values = np.where(may_take[d] & is_free, ious[d], -1)
                best = values.argmax()
                if values[best] >= 0:
                    partners[own[d]] = objects[best]
                    is_free[best] = False
    return partners


def confusion_matrix(truth: Truth, found: Found, partners: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts, (K + 1) x (K + 1): rows are objects' classes, columns those of detections, the last ones background.

    found, partners: of the detections that are to be counted. A row's sum is the number of objects of its class, a
    column's that of the detections; the diagonal holds the true positives.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    rows = np.append(truth.classes, num_classes)[partners]  # a partner of -1 is background
    np.add.at(matrix, (rows, found.classes), 1)
    is_missed = np.ones(len(truth), bool)
    is_missed[partners[partners >= 0]] = False
    np.add.at(matrix, (truth.classes[is_missed], num_classes), 1)
    return matrix
