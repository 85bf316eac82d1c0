"""A trained model from Python, under the names of maskrcnn-benchmark's demo: photos in, boxes and masks out.

    from predictor import Predictor

    with Predictor("train_log/maskrcnn") as model:
        detections = model.compute_prediction(cv2.imread("photo.jpg"))

`predict.py` is the command for files and videos; docs/python.md is the guide to this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from config import Config

import numpy as np

from FasterRCNN.imaging.visualize import draw_detections
from FasterRCNN.structures import BoxList, Categories
from inference import load_predictor

__all__ = ["Predictor"]


class Predictor:
    """A trained model that detects in photos: uint8 H×W×3 arrays of any size, BGR as cv2.imread gives them.

    Several threads may use one Predictor at once. Attributes: confidence_threshold, which may be changed at any time,
    and cfg, the config that the model was built with. Free it with `close` or as a context manager.
    """

    def __init__(
        self,
        model_path: str | Path,
        confidence_threshold: float = 0.7,
        min_image_size: int | None = 800,
        *,
        batch_size: int | None = None,
        config: Sequence[str] = (),
        config_file: str | Path | None = None,
    ):
        """model_path: run folder, checkpoint or .npz file.

        confidence_threshold: scores below it are left out; the model itself gives none below its
        TEST.RESULT_SCORE_THRESH. min_image_size: pixels to which a photo's shorter side is resized unless the longer
        would pass PREPROC.MAX_SIZE; None: the model's own. batch_size: most photos in one run of the network; None: the
        model's TEST.IMS_PER_GPU. config, config_file: changes to the model's config, KEY=VALUE each and a YAML file.
        Raises FileNotFoundError for a wrong path, ValueError for weights or settings that do not fit.
        """
        self.confidence_threshold = _checked_threshold(confidence_threshold)
        given = {"PREPROC.TEST_SHORT_EDGE_SIZE": min_image_size, "TEST.IMS_PER_GPU": batch_size}
        changes = [*config, *(f"{key}={value}" for key, value in given.items() if value is not None)]
        self._engine, cfg = load_predictor(model_path, changes, config_file)
        self.cfg: Config = cfg

    @property
    def categories(self) -> Categories:
        """The model's classes; `categories.name_of_label(label)` names a label."""
        return self._engine.categories

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names; label l (1..K) is class_names[l - 1]."""
        return self.categories.names

    @property
    def with_masks(self) -> bool:
        """Whether detections have the field "masks"."""
        return self._engine.with_masks

    def run_on_opencv_image(self, image: np.ndarray) -> np.ndarray:
        """The photo with its detections drawn, BGR uint8; a small photo comes back enlarged, so that tags can be read.

        image: as for `compute_prediction`.
        """
        return self.draw(image, self.compute_prediction(image))

    def compute_prediction(self, image: np.ndarray) -> BoxList:
        """A photo's detections in its own pixels, best first, of at least the confidence threshold.

        image: uint8 H×W×3, BGR. The BoxList (mode "xyxy", float32 D×4) has the fields "scores" float32 D, "labels"
        int32 D (1..K) and, of a model with masks, "masks". Raises ValueError for anything but such an array.
        """
        (detections,) = self.compute_predictions([image])
        return detections

    def compute_predictions(self, images: Iterable[np.ndarray]) -> list[BoxList]:
        """`compute_prediction` of many photos, of any sizes, in their order, batch by batch.

        images: may be a generator; it is read a few batches ahead, so that not all photos are in memory at once.
        """
        found = self._engine.predict_stream(_checked_photos(images))
        return [self.select_top_predictions(detections) for detections in found]

    def select_top_predictions(self, detections: BoxList, confidence_threshold: float | None = None) -> BoxList:
        """The detections of at least a score, best first; by default the predictor's own threshold."""
        chosen = confidence_threshold if confidence_threshold is not None else self.confidence_threshold
        scores = detections.get_field("scores")
        best_first = np.argsort(-scores, kind="stable")
        return detections[best_first[scores[best_first] >= _checked_threshold(chosen)]]

    def draw(self, image: np.ndarray, detections: BoxList) -> np.ndarray:
        """The photo with all of the given detections drawn, BGR uint8; `image` stays as it is."""
        return draw_detections(image, detections, self.categories, score_threshold=0.0)

    def close(self) -> None:
        """Frees the model; the predictor cannot be used any more."""
        self._engine.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked_threshold(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise ValueError(f"confidence_threshold is {threshold}: a score from 0 to 1 is wanted")
    return threshold


def _checked_photos(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    if isinstance(images, (str, os.PathLike)):
        raise ValueError(_way_out(images))
    if isinstance(images, np.ndarray) and images.ndim == 3:
        raise ValueError(f"compute_predictions got one image {images.shape}: give a list, or use compute_prediction")
    for image in images:
        if not _is_photo(image):
            raise ValueError(_way_out(image))
        yield image


def _is_photo(image: object) -> bool:
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size > 0


def _way_out(image: object) -> str:
    """What was given instead of a photo, and how to make one of it."""
    wanted = "uint8 H×W×3 (BGR, as cv2.imread gives it) is wanted"
    if isinstance(image, (str, os.PathLike)):
        return f"{os.fspath(image)!r} is a path and no image: {wanted}; read it with FasterRCNN.imaging.read.read_image"
    if not isinstance(image, np.ndarray):
        hint = {
            "Image": "; of a PIL image: np.asarray(image.convert('RGB'))[..., ::-1]",
            "NoneType": "; cv2.imread gives None for a file that it cannot read",
            "list": "; compute_predictions takes several images",
        }
        names = [kind.__name__ for kind in type(image).__mro__]
        return f"the image is {type(image).__name__}: {wanted}" + next((hint[n] for n in names if n in hint), "")
    given = f"the image is {image.dtype} {image.shape}: {wanted}"
    if image.dtype != np.uint8:
        return f"{given}, of values from 0 to 255"
    if image.ndim == 2 or image.shape[2:] == (1,):
        return f"{given}; of a grey one: cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)"
    if image.shape[2:] == (4,):
        return f"{given}; of one with transparency: cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)"
    if image.ndim == 4:
        return f"{given}; compute_predictions takes several images"
    return given
