"""A converted model finds what its program finds: the whole way from a file of weights and a photo to detections."""

from pathlib import Path

import numpy as np
import pytest

from inference import load_predictor
from tools import convert_weights

FILES = Path(__file__).parent / "foreign"


def agreement(found, expected):
    """(greatest difference of the corners, of the score, IoU of the masks) with the likest of `found`, of each one."""
    labels, masks = found.get_field("labels"), found.get_field("masks").bitmaps().astype(bool)
    width = masks.shape[2]
    rows = []
    for box, score, label, mask in zip(*(expected[f"found_{name}"] for name in ("boxes", "scores", "labels", "masks"))):
        far = np.abs(found.boxes - box).max(axis=1) + np.where(labels == label, 0, np.inf)
        i = far.argmin()
        theirs = np.unpackbits(mask, axis=-1)[:, :width].astype(bool)
        union = (masks[i] | theirs).sum()
        rows.append((far[i], abs(found.get_field("scores")[i] - score),
                     (masks[i] & theirs).sum() / union if union else 1.0))
    return np.array(rows).T


@pytest.fixture(scope="module")
def expected():
    with np.load(FILES / "torchvision_numbers.npz") as arrays:
        return dict(arrays)


def test_detections_of_torchvision(expected, tmp_path):
    """100 detections of a tiny Mask R-CNN of random weights, computed by torchvision (tests/foreign/make_files.py)."""
    sizes = ["PREPROC.TEST_SHORT_EDGE_SIZE=160", "PREPROC.MAX_SIZE=230"]
    out = tmp_path / "model.npz"
    assert convert_weights.main([str(FILES / "torchvision.pth"), str(out), "--quiet", "--config", *sizes]) == 0
    predictor, _ = load_predictor(out)
    with predictor:
        found, = predictor.predict([expected["photo"]])
    assert len(found.boxes) == len(expected["found_boxes"]) == 100
    corners, scores, masks = agreement(found, expected)
    assert ((corners < 0.5) & (scores < 1e-3) & (masks >= 0.99)).sum() >= 98
