"""A converted model finds what its program finds: the whole way from a file of weights and a photo to detections."""

from pathlib import Path

import numpy as np
import pytest
from foreign_names import KINDS, draw_model

from FasterRCNN.foreign.writers import write_arrays
from inference import load_predictor
from tools import convert_weights

FILES = Path(__file__).parent / "foreign"
PARTS = ("boxes", "scores", "labels", "masks")


def agreement(found, expected):
    """(greatest difference of corners, of scores, IoU of masks) of each of the expected with the likest of the found.

    found: BoxList; expected: boxes, scores, labels 1..K and packed masks.
    """
    labels, masks = found.get_field("labels"), found.get_field("masks").bitmaps().astype(bool)
    width = masks.shape[2]
    rows = []
    for box, score, label, mask in zip(*(expected[name] for name in ("boxes", "scores", "labels", "masks"))):
        far = np.abs(found.boxes - box).max(axis=1) + np.where(labels == label, 0, np.inf)
        i = far.argmin()
        theirs = np.unpackbits(mask, axis=-1)[:, :width].astype(bool)
        union = (masks[i] | theirs).sum()
        rows.append((far[i], abs(found.get_field("scores")[i] - score),
                     (masks[i] & theirs).sum() / union if union else 1.0))
    return np.array(rows).T


def detect(weights, photo, out, short, longest):
    """What the command and the predictor make of a file of weights and a photo."""
    sizes = [f"PREPROC.TEST_SHORT_EDGE_SIZE={short}", f"PREPROC.MAX_SIZE={longest}"]
    assert convert_weights.main([str(weights), str(out), "--quiet", "--config", *sizes]) == 0
    predictor, _ = load_predictor(out)
    with predictor:
        found, = predictor.predict([photo])
    return found


def test_torchvision(tmp_path):
    """100 detections of a tiny Mask R-CNN of random weights, computed by torchvision (tests/foreign/make_files.py)."""
    with np.load(FILES / "torchvision_numbers.npz") as arrays:
        photo, expected = arrays["photo"], {name: arrays[f"found_{name}"] for name in PARTS}
    found = detect(FILES / "torchvision.pth", photo, tmp_path / "model.npz", 160, 230)
    assert len(found.boxes) == len(expected["boxes"]) == 100
    corners, scores, masks = agreement(found, expected)
    assert ((corners < 0.5) & (scores < 1e-3) & (masks >= 0.99)).sum() >= 98


@pytest.mark.parametrize("kind", ["detectron2 FPN", "detectron2 C4", "detectron2 Cascade", "maskrcnn-benchmark FPN",
                                  "Detectron C4"])
def test_programs_written_again(kind, tmp_path):
    """100 detections of random weights, computed by tests/foreign/restated.py with PyTorch."""
    with np.load(FILES / "restated_numbers.npz") as arrays:
        photo, expected = arrays["photo"], {name: arrays[f"{kind}/{name}"] for name in PARTS}
        start = f"{kind}/weights/"
        last = {name.removeprefix(start): arrays[name] for name in arrays.files if name.startswith(start)}
    write_arrays(tmp_path / "model.safetensors", draw_model(KINDS[kind][1], seed=1) | last)
    found = detect(tmp_path / "model.safetensors", photo, tmp_path / "model.npz", 150, 230)
    assert len(found.boxes) == len(expected["boxes"]) == 100
    corners, scores, masks = agreement(found, expected)
    assert ((corners < 0.5) & (scores < 1e-3) & (masks >= 0.99)).sum() >= 98
