"""The check of an export: its detections beside the predictor's, and what is written only if they agree.

D detections of a photo, M mask side.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from FasterRCNN.engine.predictor import Predictor

# Below this score a detection that only one side has is not counted: near the threshold rounding decides.
COUNTED_SCORE = 0.1


@dataclass(frozen=True)
class CheckPhoto:
    """A photo for the check: its name, its pixels (uint8 H×W×3 BGR), and a JPEG or PNG file's bytes that give them."""

    name: str
    pixels: np.ndarray
    encoded: bytes


@dataclass(frozen=True)
class Differences:
    """Between an export's and the predictor's detections; the most of any detection.

    missing: detections that only one of them has. boxes: pixels of the photo. scores, masks: probabilities.
    """

    missing: int = 0
    boxes: float = 0.0
    scores: float = 0.0
    masks: float = 0.0

    def is_within(self, most: Differences) -> bool:
        """Whether nothing differs more than in `most`."""
        return all(value <= limit for value, limit in zip(astuple(self), astuple(most)))


# Float32 in another order of sums; the half types carry 8 or 11 bits.
TOLERANCES = {
    "fp32": Differences(boxes=0.1, scores=1e-3, masks=1e-2),
    "fp16": Differences(boxes=2.0, scores=0.02, masks=0.1, missing=1),
    "bf16": Differences(boxes=8.0, scores=0.1, masks=0.3, missing=2),
}


def check_export(
    run: Callable[..., Mapping[str, np.ndarray]],
    predictor: Predictor,
    photos: Sequence[CheckPhoto],
    *,
    tolerance: Differences,
    takes_encoded: bool = True,
    alone: bool = False,
) -> str:
    """A table of the most that differs between an export and the predictor, for each photo.

    run(images=…) gets each photo with its mirror image, run(encoded=…), if it takes that, the photo's bytes with those
    of the next photo; or `alone`, for models whose detections depend on the size of the batch. Raises ValueError, with
    the table, beyond `tolerance`.
    """
    rows, is_good = [], True
    for photo, following in zip(photos, [*photos[1:], photos[0]]):
        mirrored, expected = photo.pixels[:, ::-1], predict_raw(predictor, photo.pixels)
        pairs = list(
            zip(
                split_batch(run(images=np.stack([photo.pixels, mirrored])[..., ::-1])),
                (expected, predict_raw(predictor, np.ascontiguousarray(mirrored))),
            )
        )
        if takes_encoded:
            beside = [] if alone else [following.encoded]
            pairs.append((split_batch(run(encoded=[photo.encoded, *beside]))[0], expected))
        found = np.max([astuple(compare(*pair)) for pair in pairs], axis=0)
        is_good &= Differences(*found).is_within(tolerance)
        rows.append((photo.name, len(expected["scores"]), int(found[0]), *found[1:]))
    rows.append(("allowed", "", *astuple(tolerance)))
    headers = ("photo", "detections", "only one has", "boxes, pixels", "scores", "masks")
    table = tabulate(rows, headers, floatfmt=".2g")
    if not is_good:
        raise ValueError(f"the export differs from the predictor by more than is allowed, and was removed:\n{table}")
    if not any(row[1] for row in rows[:-1]):
        table += "\nThe model finds nothing in these photos, so little is compared: name others, in which it does."
    return table


def compare(exported: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> Differences:
    """What differs between two sets of detections of a photo: boxes D×4, scores, labels D, masks D×M×M or none.

    Each is compared with the nearest of its label whose corners are less than a tenth of its size away.
    """
    apart = np.abs(exported["boxes"][:, None] - expected["boxes"][None]).max(axis=2, initial=0.0)
    reach = 1 + 0.1 * (expected["boxes"][:, 2:] - expected["boxes"][:, :2]).max(axis=1, initial=0.0)
    apart[(apart > reach) | (exported["labels"][:, None] != expected["labels"][None])] = np.inf
    left, right = [], []
    for _ in range(min(apart.shape)):
        i, j = np.unravel_index(np.argmin(apart), apart.shape)
        if np.isinf(apart[i, j]):
            break
        left.append(i)
        right.append(j)
        apart[i], apart[:, j] = np.inf, np.inf
    missing = sum(
        int((np.delete(found["scores"], np.int64(matched)) >= COUNTED_SCORE).sum())
        for found, matched in ((exported, left), (expected, right))
    )
    most = {
        name: float(np.max(np.abs(exported[name][left] - expected[name][right]), initial=0))
        for name in ("boxes", "scores", "masks")
        if name in expected and left
    }
    return Differences(missing, **most)


def predict_raw(predictor: Predictor, photo: np.ndarray) -> dict[str, np.ndarray]:
    """The predictor's detections of a photo in its pixels, masks M×M in their boxes' frames."""
    batch, outputs = predictor.run_batch(predictor.prepare([(0, photo)]))
    ((_, detections),) = predictor.finish((batch, outputs))
    (raw,) = split_batch(outputs)
    return raw | {"boxes": detections.boxes}


def split_batch(outputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The filled slots of each image of a batch."""
    return [
        {name: value[i, :count] for name, value in outputs.items() if name != "num_detections"}
        for i, count in enumerate(outputs["num_detections"])
    ]


@contextmanager
def kept_if_good(target: str | Path) -> Iterator[Path]:
    """A place to write an export to, in a new folder beside `target`, moved there at the end.

    After an exception nothing is left. Raises ValueError when `target` is there already.
    """
    target = Path(target)
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        yield Path(folder, target.name)
        os.rename(Path(folder, target.name), target)


def check_free(target: str | Path) -> None:
    """ValueError when the export's place is taken."""
    if Path(target).exists():
        raise ValueError(f"{target} is there already: remove it, or name another place")
