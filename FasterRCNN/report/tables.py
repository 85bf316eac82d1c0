"""The report's tables as HTML; ratios in percent, with one decimal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from FasterRCNN.metrics import TITLES
from FasterRCNN.report.analysis import Analysis, OperatingPoint
from FasterRCNN.report.files import BACKGROUND

__all__ = ["class_table", "confusion_pairs", "confusion_table", "number_table", "point_table", "size_table"]

MAX_MATRIX = 24  # classes in the matrix; of more, those with most confusion
MAX_PAIRS = 15
STRONG = 0.55  # of a cell's colour, from where on its text is white


def number_table(analysis: Analysis) -> str:
    """The numbers of all classes, a row of each kind."""
    names = list(next(iter(analysis.overall.values())))
    head = "".join(f"<th>{escape(name)}</th>" for name in ["", *names])
    rows = [
        _row(TITLES[kind].capitalize(), [_percent_cell(numbers[name]) for name in names])
        for kind, numbers in analysis.overall.items()
    ]
    return _table(f"<tr>{head}</tr>", rows)


def class_table(analysis: Analysis) -> str:
    """Objects, detections and APs of each class; below them the mean over the classes, which is the overall number."""
    numbers = [(kind, name) for kind, by_name in _numbers_of_a_class(analysis).items() for name in by_name]
    rows = [
        _row(
            row.name,
            [
                *(_count_cell(count) for count in (row.num_objects, row.num_detections)),
                *(_percent_cell(row.numbers[kind][name], with_bar=name == numbers[0][1]) for kind, name in numbers),
            ],
        )
        for row in analysis.classes
    ]
    foot = [
        *(_count_cell(count) for count in (analysis.num_objects, analysis.num_detections)),
        *(_percent_cell(analysis.overall[kind][name]) for kind, name in numbers),
    ]
    groups = [("", 3), *((TITLES[kind], len(by_name)) for kind, by_name in _numbers_of_a_class(analysis).items())]
    headings = ["class", "objects", "detections", *(name for _, name in numbers)]
    return _sortable(groups, headings, rows, _row("mean, or sum", foot))


def point_table(analysis: Analysis) -> str:
    """Counts and ratios of each class at the score threshold and where F1 is greatest."""
    rows = [
        _row(row.name, [_count_cell(row.num_objects), *_point_cells(row.chosen), *_best_cells(row.best)])
        for row in analysis.classes
    ]
    foot = [_count_cell(analysis.num_objects), *_point_cells(analysis.total), *_best_cells(analysis.best)]
    groups = [("", 2), (f"at score ≥ {analysis.score_threshold:g}", 6), ("where F1 is greatest", 4)]
    headings = ["class", "objects", "TP", "FP", "FN", "precision", "recall", "F1"]
    return _sortable(groups, [*headings, "score", "precision", "recall", "F1"], rows, _row("together", foot))


def size_table(analysis: Analysis) -> str:
    """Objects, their share that is found, and AP of each size."""
    kinds = list(analysis.sizes[0].aps)
    headings = ["size", "objects", "found", *(f"{TITLES[kind]} AP" for kind in kinds)]
    rows = []
    for row in analysis.sizes:
        found = row.num_found / row.num_objects if row.num_objects else None
        aps = [_percent_cell(row.aps[kind], with_bar=True) for kind in kinds]
        rows.append(_row(row.name, [_count_cell(row.num_objects), _percent_cell(found, with_bar=True), *aps]))
    return _table(f"<tr>{''.join(f'<th>{heading}</th>' for heading in headings)}</tr>", rows)


# ---------------------------------------------------------------- confusion


def confusion_table(analysis: Analysis) -> str:
    """The matrix, each row's colours by its share; of many classes those with most confusion and the background."""
    matrix, background = analysis.confusion, len(analysis.classes)
    confused = matrix[:-1, :-1] - np.diag(np.diag(matrix)[:-1])
    ranked = np.argsort(-(confused.sum(axis=0) + confused.sum(axis=1)), kind="stable")
    chosen = [*sorted(ranked[:MAX_MATRIX].tolist()), background]
    names = [*(row.name for row in analysis.classes), BACKGROUND]
    tall = ' class="tall"' if len(chosen) > 8 else ""
    head = "".join(f'<th{tall} title="{escape(names[k])}"><span>{escape(names[k])}</span></th>' for k in chosen)
    rows = []
    for i in chosen:
        whole = max(1, int(matrix[i].sum()))
        cells = [
            "<td></td>"
            if i == j == background
            else _matrix_cell(int(matrix[i, j]), matrix[i, j] / whole, is_right=i == j)
            for j in chosen
        ]
        rows.append(_row(names[i], cells))
    left_out = len(names) - len(chosen)
    note = f"<caption>Without the {left_out:,} classes least confused; all are in confusion.csv.</caption>"
    return _table(f"<tr><th>truth \\ prediction</th>{head}</tr>", rows, "matrix", note if left_out else "")


def confusion_pairs(analysis: Analysis) -> str:
    """The most frequent confusions of two classes, as a table; "" where there is none."""
    confused = analysis.confusion[:-1, :-1].copy()
    np.fill_diagonal(confused, 0)
    places = np.argsort(-confused, axis=None, kind="stable")[:MAX_PAIRS]
    rows = []
    for i, j in zip(*np.unravel_index(places, confused.shape), strict=True):
        if confused[i, j]:
            share = confused[i, j] / analysis.classes[i].num_objects
            name = escape(analysis.classes[j].name)
            cells = [f'<td style="text-align:left">{name}</td>', _count_cell(int(confused[i, j])), _percent_cell(share)]
            rows.append(_row(analysis.classes[i].name, cells))
    if not rows:
        return ""
    head = '<tr><th>class</th><th style="text-align:left">taken for</th><th>times</th><th>% of its objects</th></tr>'
    return "<h3>Most frequent confusions</h3>" + _table(head, rows)


def _matrix_cell(count: int, share: float, *, is_right: bool) -> str:
    if not count:
        return '<td class="zero">0</td>'
    depth = 0.12 + 0.88 * share
    kind = ("right" if is_right else "wrong") + (" strong" if depth > STRONG else "")
    return f'<td class="{kind}" style="--a:{depth:.2f}" title="{share:.1%} of the row">{count:,}</td>'


# ---------------------------------------------------------------- rows and cells


def _numbers_of_a_class(analysis: Analysis) -> dict[str, dict[str, float | None]]:
    return analysis.classes[0].numbers if analysis.classes else {}


def _point_cells(point: OperatingPoint) -> list[str]:
    counts = point.true_positives, point.false_positives, point.false_negatives
    return [*map(_count_cell, counts), *map(_percent_cell, (point.precision, point.recall, point.f1))]


def _best_cells(point: OperatingPoint | None) -> list[str]:
    if point is None:
        return [_percent_cell(None)] * 4
    score = f'<td data-key="{point.threshold:.6f}">{point.threshold:.3f}</td>'
    return [score, *map(_percent_cell, (point.precision, point.recall, point.f1))]


def _count_cell(count: int) -> str:
    return f'<td data-key="{count}">{count:,}</td>'


def _percent_cell(value: float | None, *, with_bar: bool = False) -> str:
    if value is None:
        return '<td class="none" data-key="">n/a</td>'
    bar = f' class="bar" style="--v:{value:.3f}"' if with_bar else ""
    return f'<td{bar} data-key="{value:.6f}">{100 * value:.1f}</td>'


def _row(name: str, cells: Sequence[str]) -> str:
    text = escape(name)
    return f'<tr><th scope="row" data-key="{text}" title="{text}">{text}</th>{"".join(cells)}</tr>'


def _sortable(groups: Sequence[tuple[str, int]], headings: Sequence[str], rows: Sequence[str], foot: str) -> str:
    above = "".join(f'<th colspan="{span}">{escape(name)}</th>' for name, span in groups)
    below = "".join(f'<th><button type="button">{escape(heading)}</button></th>' for heading in headings)
    return _table(f'<tr class="groups">{above}</tr><tr>{below}</tr>', rows, "sortable", foot=foot)


def _table(head: str, rows: Sequence[str], kind: str = "", caption: str = "", foot: str = "") -> str:
    foot = f"<tfoot>{foot}</tfoot>" if foot else ""
    body = "\n".join(rows)
    table = f'<table class="{kind}">{caption}<thead>{head}</thead><tbody>{body}</tbody>{foot}</table>'
    return f'<div class="scroll">{table}</div>'
