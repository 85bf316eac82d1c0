"""The report as one HTML page that needs nothing beside it, with the same numbers as JSON and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from FasterRCNN.metrics import TITLES
from FasterRCNN.report.analysis import ERRORS, Analysis, ImageErrors
from FasterRCNN.report.charts import curve_chart, histogram_chart, legend, spark_curve
from FasterRCNN.report.files import BACKGROUND, write_files
from FasterRCNN.report.pictures import Picture
from FasterRCNN.report.tables import (
    class_table,
    confusion_pairs,
    confusion_table,
    number_table,
    point_table,
    size_table,
)

__all__ = ["PAGE_NAME", "write_report"]

PAGE_NAME = "report.html"
TEMPLATE = Path(__file__).with_name("template.html")
MAX_SPARKS = 100  # classes whose curves are drawn
FEW_SPARKS = 10  # which are drawn larger
MAX_DETAILS = 6  # errors of an image that are named


def write_report(analysis: Analysis, folder: str | Path, pictures: Mapping[int | str, Picture] | None = None) -> Path:
    """Writes report.html, report.json and the CSV files into a folder, which is made; returns the page's path.

    pictures: of the analysis's worst images, by image id (`draw_worst`); None: the images are named without.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_files(analysis, folder)
    page = folder / PAGE_NAME
    page.write_text(_page(analysis, pictures), encoding="utf-8")
    return page


def _page(analysis: Analysis, pictures: Mapping[int | str, Picture] | None) -> str:
    parts = [
        *_head(analysis),
        *_classes(analysis),
        *_curves(analysis),
        *_sizes_and_scores(analysis),
        *_confusion(analysis),
        *_worst(analysis, pictures),
        *_notes(analysis),
    ]
    title = escape(f"Evaluation: {analysis.name}")
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=title, body="\n".join(parts))


def _head(analysis: Analysis) -> Iterable[str]:
    rules = {"coco": "COCO's rules", "voc": "Pascal VOC's rules"}[analysis.metric]
    yield f"<header><h1>{escape(analysis.name)}</h1>"
    yield (
        f'<p class="soft">{analysis.num_images:,} images, {analysis.num_objects:,} objects of '
        f"{len(analysis.classes):,} classes, {analysis.num_detections:,} detections; scored by {rules}, in percent</p>"
        "</header>"
    )
    causes = analysis.diagnosis.causes
    if causes:
        entries = "".join(f"<li>{escape(cause)}</li>" for cause in causes)
        yield f'<section class="cause"><strong>Why the score is low</strong><ul>{entries}</ul></section>'
    tiles = [
        (f"{TITLES[kind]} {name}", value)
        for kind, numbers in analysis.overall.items()
        for name, value in list(numbers.items())[: 3 if len(analysis.overall) == 1 else 2]
    ]
    at = f"at score ≥ {analysis.score_threshold:g}"
    tiles += [(f"precision {at}", analysis.total.precision), (f"recall {at}", analysis.total.recall)]
    yield '<section class="tiles">'
    yield from (f'<div class="tile"><b>{_percent(value)}</b><span>{escape(name)}</span></div>' for name, value in tiles)
    yield "</section>"
    if analysis.metric == "coco":
        yield number_table(analysis)


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}"


def _classes(analysis: Analysis) -> Iterable[str]:
    yield "<section><h2>Classes</h2>"
    yield '<p class="soft">Average precision. A click on a heading sorts.</p>'
    yield class_table(analysis)
    yield "<h3>Precision, recall and F1</h3>"
    yield (
        f'<p class="soft">Of boxes at IoU 0.5, for detections with a score of {analysis.score_threshold:g} or more, '
        "and from the score on that gives the greatest F1. TP: right detections, FP: wrong ones, FN: objects that are "
        "not found.</p>"
    )
    yield point_table(analysis)
    yield "</section>"


def _curves(analysis: Analysis) -> Iterable[str]:
    yield "<section><h2>Precision over recall</h2>"
    yield '<p class="soft">The mean over the classes that have objects.</p><div class="pair">'
    for kind, curves in analysis.curves.items():
        has_objects = ~np.isnan(curves.precision[0, :, 0])
        means = [values[has_objects].mean(axis=0) for values in curves.precision] if has_objects.any() else []
        yield f"<figure><figcaption>{TITLES[kind].capitalize()}</figcaption>"
        yield curve_chart(curves.recalls, means) + legend([f"IoU {iou:g}" for iou in curves.iou_thresholds])
        yield "</figure>"
    yield "</div>"
    yield from _sparks(analysis)
    yield "</section>"


def _sparks(analysis: Analysis) -> Iterable[str]:
    """Each class's curves of masks or, without masks, of boxes."""
    kind, curves = list(analysis.curves.items())[-1]
    name = next(iter(analysis.overall[kind]))
    ranked = sorted(range(len(analysis.classes)), key=lambda k: -analysis.classes[k].num_objects)
    chosen = [k for k in ranked if analysis.classes[k].num_objects][:MAX_SPARKS]
    if not chosen:
        return
    few = f", of the {MAX_SPARKS} classes with most objects" if len(chosen) == MAX_SPARKS else ""
    yield f'<h3>Of each class</h3><p class="soft">{TITLES[kind].capitalize()}, both axes from 0 to 1, {name}{few}.</p>'
    yield f'<div class="sparks{" few" if len(chosen) <= FEW_SPARKS else ""}">'
    for k in sorted(chosen):
        row = analysis.classes[k]
        caption = f"<span>{escape(row.name)}</span>{_percent(row.numbers[kind][name])}"
        chart = spark_curve(curves.recalls, curves.precision[:, k])
        yield f'<figure><figcaption title="{escape(row.name)}">{caption}</figcaption>{chart}</figure>'
    yield "</div>"


def _sizes_and_scores(analysis: Analysis) -> Iterable[str]:
    yield '<section class="pair"><div><h2>By object size</h2>'
    yield (
        '<p class="soft">Small: up to 32² square pixels, large: above 96². Found: by a box of the right class with a '
        f"score of {analysis.score_threshold:g} or more.</p>"
    )
    yield size_table(analysis)
    yield "</div><div><h2>Scores</h2>"
    yield '<p class="soft">Of boxes that are right and of those that are wrong, at IoU 0.5.</p>'
    series = [("true positives", analysis.true_scores), ("false positives", analysis.false_scores)]
    yield histogram_chart(analysis.bin_edges, series, "score")
    yield legend([f"{name}: {int(counts.sum()):,}" for name, counts in series])
    yield "</div></section>"


def _confusion(analysis: Analysis) -> Iterable[str]:
    yield "<section><h2>Confusion</h2>"
    yield (
        f'<p class="soft">Boxes with a score of {analysis.score_threshold:g} or more, at IoU 0.5. Rows: what it is; '
        "columns: what it is taken for. The last column counts the objects that are missed, the last row the "
        "detections where there is nothing.</p>"
    )
    yield confusion_table(analysis)
    yield confusion_pairs(analysis)
    yield "</section>"


def _worst(analysis: Analysis, pictures: Mapping[int | str, Picture] | None) -> Iterable[str]:
    if not analysis.worst:
        return
    yield "<section><h2>Worst images</h2>"
    yield (
        '<p class="soft">Those with most errors, each image once. Drawn and counted are detections with a score of '
        f"{analysis.score_threshold:g} or more.</p>"
    )
    for kind in ERRORS:
        own = [image for image in analysis.worst if image.kind == kind]
        if own:
            yield f"<h3>{kind.capitalize()}</h3>"
        for image in own:
            yield _worst_image(image, None if pictures is None else pictures.get(image.image_id))
    yield "</section>"


def _worst_image(image: ImageErrors, picture: Picture | None) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in image.counts.items() if count)
    details = image.details[:MAX_DETAILS]
    more = len(image.details) - len(details)
    words = "; ".join(details) + (f"; and {more} more" if more else "")
    caption = f"<b>{escape(str(image.image_id))}</b> · {counts}<br>{escape(words)}"
    if picture is None:
        shown = ""
    elif picture.failure:
        shown = f'<div class="failure">The photo cannot be shown: {escape(picture.failure)}</div>'
    else:
        shown = (
            f'<img src="data:image/jpeg;base64,{picture.jpeg}" width="{picture.width}" height="{picture.height}" '
            f'loading="lazy" alt="Truth and prediction of image {escape(str(image.image_id))}">'
        )
    return f'<figure class="worst"><figcaption>{caption}</figcaption>{shown}</figure>'


def _notes(analysis: Analysis) -> Iterable[str]:
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in analysis.diagnosis.facts.items()
    )
    yield f'<section><h2>What was scored</h2><dl class="facts">{facts}</dl>'
    yield (
        '<p class="soft">Crowd regions and objects marked difficult are not counted as objects, and a detection of one '
        "counts neither way. A detection is right as the evaluation has it at IoU 0.5; one that is wrong is taken for "
        "an object of another class where it overlaps one that is left over with an IoU of 0.5 or more, and otherwise "
        f"for {BACKGROUND[1:-1]}. The numbers of this page are in report.json, per_class.csv, confusion.csv and "
        "curves.csv.</p></section>"
    )
