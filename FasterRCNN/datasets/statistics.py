"""What a data set holds, in numbers and pictures.

N boxes, K classes, I images. An object is a box that is trained: neither a crowd region nor difficult.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tabulate import tabulate

from FasterRCNN.imaging.resize import resized_shape
from FasterRCNN.structures import Categories, Dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from FasterRCNN.datasets.anchor_fit import AnchorFit

__all__ = ["DatasetStatistics", "dataset_statistics", "format_statistics", "plot_statistics"]

LISTED_SIZES = 10  # image sizes in the table, the commonest
PLOTTED_CLASSES = 30  # likewise


@dataclass(frozen=True)
class DatasetStatistics:
    """Counts of a data set, and its objects' boxes as the network sees them.

    objects, difficult, crowds, images: int64 K, by class; objects_per_image: int64 I; image_sizes: how many images are
    of each (height, width); boxes: float32 N×4, x1, y1, x2, y2 in pixels of the resized image; canvases: int32 N×2, the
    height and width of that image.
    """

    name: str
    categories: Categories
    objects: np.ndarray
    difficult: np.ndarray
    crowds: np.ndarray
    images: np.ndarray
    objects_per_image: np.ndarray
    image_sizes: Counter[tuple[int, int]]
    boxes: np.ndarray
    canvases: np.ndarray
    short_edge: int
    max_size: int

    @property
    def sizes(self) -> np.ndarray:
        """Square roots of the boxes' areas, N, in pixels of the resized image."""
        return np.sqrt(np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1))

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Height / width of the boxes, N."""
        width, height = (self.boxes[:, 2:] - self.boxes[:, :2]).T
        return height / width


def dataset_statistics(dataset: Dataset, *, short_edge: int, max_size: int) -> DatasetStatistics:
    """Counts of `dataset`, its boxes resized as FasterRCNN/imaging/resize.py says."""
    slots = len(dataset.categories) + 1
    objects, difficult, crowds, images = np.zeros((4, slots), np.int64)
    per_image, boxes, canvases = [], [np.zeros((0, 4))], [np.zeros((0, 2))]
    image_sizes: Counter[tuple[int, int]] = Counter()
    for record in dataset.records:
        is_object = ~(record.is_crowd | record.is_difficult)
        objects += np.bincount(record.labels[is_object], minlength=slots)
        difficult += np.bincount(record.labels[record.is_difficult & ~record.is_crowd], minlength=slots)
        crowds += np.bincount(record.labels[record.is_crowd], minlength=slots)
        images[np.unique(record.labels)] += 1
        per_image.append(is_object.sum())
        image_sizes[record.height, record.width] += 1
        height, width = resized_shape(record.height, record.width, short_edge, max_size)
        boxes.append(record.boxes[is_object] * np.tile([width / record.width, height / record.height], 2))
        canvases.append(np.tile([height, width], (is_object.sum(), 1)))
    return DatasetStatistics(
        name=dataset.name,
        categories=dataset.categories,
        objects=objects[1:],
        difficult=difficult[1:],
        crowds=crowds[1:],
        images=images[1:],
        objects_per_image=np.array(per_image, np.int64),
        image_sizes=image_sizes,
        boxes=np.concatenate(boxes).astype(np.float32),
        canvases=np.concatenate(canvases).astype(np.int32),
        short_edge=short_edge,
        max_size=max_size,
    )


# ---------------------------------------------------------------- tables


def format_statistics(statistics: DatasetStatistics) -> str:
    """Tables of classes, images by size, and the spread of objects per image, box sizes and aspect ratios."""
    num_images = len(statistics.objects_per_image)
    num_empty = int((statistics.objects_per_image == 0).sum())
    parts = [
        f"{statistics.name}: {num_images} images, {num_empty} of them without objects",
        _class_table(statistics),
        _image_size_table(statistics),
        _spread_table(statistics),
    ]
    return "\n\n".join(part for part in parts if part)


def _class_table(statistics: DatasetStatistics) -> str:
    counts = [statistics.objects, statistics.difficult, statistics.crowds]
    rows = [
        (category_id, name, *row)
        for category_id, name, *row in zip(
            statistics.categories.ids, statistics.categories.names, *counts, statistics.images, strict=True
        )
    ]
    rows.append(("", "all", *(count.sum() for count in counts), len(statistics.objects_per_image)))
    return tabulate(rows, headers=["id", "class", "objects", "difficult", "crowd regions", "images"])


def _image_size_table(statistics: DatasetStatistics) -> str:
    if not statistics.image_sizes:
        return ""
    common = statistics.image_sizes.most_common(LISTED_SIZES)
    rows = [
        (f"{width} x {height}", count, "{1} x {0}".format(*resized_shape(height, width, *_target(statistics))))
        for (height, width), count in common
    ]
    if others := len(statistics.image_sizes) - len(common):
        rows.append((f"{others} others", statistics.image_sizes.total() - sum(count for _, count in common), ""))
    return tabulate(rows, headers=["image width x height", "images", "at the network"])


def _target(statistics: DatasetStatistics) -> tuple[int, int]:
    return statistics.short_edge, statistics.max_size


def _spread_table(statistics: DatasetStatistics) -> str:
    rows = [
        (title, values.min(), *np.quantile(values, [0.05, 0.5, 0.95]), values.max(), values.mean())
        for title, values in (
            ("objects per image", statistics.objects_per_image),
            ("box size at the network (root of area, pixels)", statistics.sizes),
            ("box height / width at the network", statistics.aspect_ratios),
        )
        if len(values)
    ]
    headers = ["", "least", "5 %", "median", "95 %", "greatest", "mean"]
    return tabulate(rows, headers=headers, floatfmt=".4g") if rows else ""


# ---------------------------------------------------------------- pictures

_BAR, _CURRENT, _SUGGESTED = "#8fb1d3", "#222222", "#d1495b"


def plot_statistics(
    statistics: DatasetStatistics, path: str | Path, *, current: AnchorFit | None = None,
    suggested: AnchorFit | None = None,
) -> None:
    """One PNG: objects by class, objects per image, box sizes and aspect ratios at the network with the anchors'."""
    from matplotlib.figure import Figure  # takes half a second

    figure = Figure(figsize=(13, 9), layout="constrained")
    figure.suptitle(
        f"{statistics.name}: {len(statistics.objects_per_image)} images, {len(statistics.boxes)} objects", fontsize=14
    )
    (classes, per_image), (sizes, ratios) = figure.subplots(2, 2)
    _plot_classes(classes, statistics)
    _plot_objects_per_image(per_image, statistics.objects_per_image)
    # Dots over lines: where they agree both are seen.
    marks = [("suggested anchors", _SUGGESTED, "-", suggested), ("configured anchors", _CURRENT, ":", current)]
    marks = [mark for mark in marks if mark[-1] is not None]
    sizes.set_title("Box sizes at the network", loc="left")
    _plot_logarithmic(sizes, statistics.sizes, [(*mark, fit.sizes) for *mark, fit in marks])
    sizes.set(xlabel="root of area, pixels", ylabel="objects")
    ratios.set_title("Aspect ratios at the network", loc="left")
    _plot_logarithmic(ratios, statistics.aspect_ratios, [(*mark, fit.ratios) for *mark, fit in marks])
    ratios.set(xlabel="height / width", ylabel="objects")
    for axes in (classes, per_image, sizes, ratios):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _plot_classes(axes: Axes, statistics: DatasetStatistics) -> None:
    order = np.argsort(-statistics.objects, kind="stable")[:PLOTTED_CLASSES]
    shown, counts = [statistics.categories.names[i] for i in order], statistics.objects[order]
    axes.barh(range(len(order)), counts, color=_BAR)
    axes.set_yticks(range(len(order)), shown, fontsize=7 if len(order) > 15 else 9)
    for row, count in enumerate(counts):
        axes.text(count, row, f" {count}", va="center", fontsize=7 if len(order) > 15 else 9)
    axes.set_ylim(max(len(order), 4) - 0.4, -0.6)
    axes.margins(x=0.12)
    left_out = len(statistics.objects) - len(order)
    axes.set_title(f"The {PLOTTED_CLASSES} commonest of {len(statistics.objects)} classes" if left_out else "Classes",
                   loc="left")
    axes.set_xlabel("objects")


def _plot_objects_per_image(axes: Axes, counts: np.ndarray) -> None:
    greatest = int(counts.max(initial=0))
    width = max(1, -(-(greatest + 1) // 50))
    axes.hist(counts, bins=np.arange(0, greatest + width + 1, width) - 0.5, color=_BAR, rwidth=0.9)
    axes.set_title("Objects per image", loc="left")
    axes.set(xlabel="objects", ylabel="images")


def _plot_logarithmic(axes: Axes, values: np.ndarray, marks: Sequence[tuple[str, str, str, Sequence[float]]]) -> None:
    """A histogram over a logarithmic axis; marks: (name, colour, line style, places)."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    places = np.concatenate([values, *(at for *_, at in marks)])
    axes.set_xscale("log", base=2)
    if len(places):
        low, high = places.min() / 1.2, places.max() * 1.2
        axes.hist(values, bins=np.geomspace(low, high, 60), color=_BAR)
        axes.set_xlim(low, high)
    for name, colour, style, at in marks:
        for number, place in enumerate(at):
            axes.axvline(place, color=colour, linestyle=style, linewidth=1.6, label=None if number else name)
    if marks:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=2, fontsize=8, frameon=False)
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
