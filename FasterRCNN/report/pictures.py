"""Truth beside prediction for the images that a report names."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from FasterRCNN.datasets.annotations import Annotations, to_dataset
from FasterRCNN.datasets.photos import read_photo
from FasterRCNN.datasets.problems import Problems
from FasterRCNN.imaging.visualize import draw_comparison
from FasterRCNN.report.analysis import Analysis
from FasterRCNN.structures import BoxList, Categories

__all__ = ["Picture", "draw_worst"]

MAX_WIDTH = 1200
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """jpeg: as base64, "" where the photo cannot be read, and why is in `failure`; width, height: in pixels."""

    jpeg: str = ""
    width: int = 0
    height: int = 0
    failure: str = ""


def draw_worst(
    analysis: Analysis, results: Sequence[dict], annotations: Annotations
) -> dict[int | str, Picture]:
    """The pictures of the analysis's worst images, by image id; results, annotations: those that were analysed."""
    chosen = {image.image_id for image in analysis.worst}
    own = replace(
        annotations,
        read_images=lambda problems: (i for i in annotations.read_images(problems) if i.image_id in chosen),
    )
    with_masks = "segm" in analysis.overall
    dataset = to_dataset(own, annotations.categories, Problems(annotations.source), with_masks=with_masks)
    by_image: dict[int | str, list[dict]] = {image_id: [] for image_id in chosen}
    for result in results:
        if result["image_id"] in chosen and result["category_id"] in annotations.categories.by_id:
            by_image[result["image_id"]].append(result)
    pictures = {}
    for record in dataset.records:
        size = record.width, record.height
        detections = _detections(by_image[record.image_id], size, annotations.categories, with_masks=with_masks)
        try:
            photo = read_photo(record, dataset)
        except (ValueError, FileNotFoundError) as error:
            pictures[record.image_id] = Picture(failure=str(error))
            continue
        drawn = draw_comparison(
            photo, record, detections, annotations.categories, score_threshold=analysis.score_threshold
        )
        pictures[record.image_id] = _encoded(drawn)
    return pictures


def _detections(
    results: Sequence[dict], size: tuple[int, int], categories: Categories, *, with_masks: bool
) -> BoxList:
    """COCO results of an image as detections, best first."""
    results = sorted(results, key=lambda result: -result["score"])
    detections = BoxList([result["bbox"] for result in results], size, mode="xywh")
    detections.add_field("scores", np.array([result["score"] for result in results], np.float32))
    labels = [categories.label_of_id(result["category_id"]) for result in results]
    detections.add_field("labels", np.array(labels, np.int32))
    if with_masks:
        detections.add_field("masks", [_rle(result["segmentation"]) for result in results])
    return detections.convert("xyxy")


def _rle(segmentation: dict) -> dict:
    counts = segmentation["counts"]
    return segmentation | {"counts": counts.encode() if isinstance(counts, str) else counts}


def _encoded(picture: np.ndarray) -> Picture:
    scale = min(1.0, MAX_WIDTH / picture.shape[1])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    height, width = picture.shape[:2]
    return Picture(base64.b64encode(jpeg.tobytes()).decode("ascii"), width, height)
