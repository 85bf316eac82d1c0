"""Small charts as SVG text, which the page's style sheet colours; no bigger than the data they show.

A plotting library's SVG is some thirty times as large, and there is a chart for each class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

__all__ = ["curve_chart", "histogram_chart", "legend", "spark_curve"]

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 42
TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1)


def legend(names: Sequence[str]) -> str:
    """The names of the series s0, s1, ... with their colours, as an HTML list."""
    entries = "".join(f'<li><i class="s{number}"></i>{escape(name)}</li>' for number, name in enumerate(names))
    return f'<ul class="legend">{entries}</ul>'


def curve_chart(recalls: np.ndarray, curves: Sequence[np.ndarray]) -> str:
    """Precision over recall, R each; the series have the style classes s0, s1, ...."""
    parts = [_grid()]
    parts += [_line(recalls, values, f"s{number}") for number, values in enumerate(curves)]
    parts += _axis_titles("recall", "precision")
    return _svg("chart", WIDTH, HEIGHT, "precision over recall", parts)


def histogram_chart(edges: np.ndarray, series: Sequence[tuple[str, np.ndarray]], x_title: str) -> str:
    """Counts of each bin side by side, on a logarithmic scale: wrong detections outnumber right ones by far."""
    top = max(1, math.ceil(math.log10(max(2, *(int(counts.max(initial=0)) for _, counts in series)))))
    parts = [_grid([(10.0**power, (power + 0.3) / (top + 0.3)) for power in range(top + 1)])]
    width = (WIDTH - LEFT - RIGHT) * float(edges[1] - edges[0])
    bar = 0.84 * width / len(series)
    for number, (name, counts) in enumerate(series):
        for low, high, count in zip(edges, edges[1:], counts.tolist(), strict=False):
            if count:
                share = (math.log10(count) + 0.3) / (top + 0.3)
                left, y = _x(low) + 0.08 * width + number * bar, _y(share)
                parts.append(
                    f'<rect class="s{number}" x="{left:.1f}" y="{y:.1f}" width="{bar:.1f}" height="{_y(0) - y:.1f}">'
                    f"<title>{escape(name)}, {low:.2f} to {high:.2f}: {count:,}</title></rect>"
                )
    parts += _axis_titles(x_title, "detections, logarithmic")
    return _svg("chart", WIDTH, HEIGHT, "histogram of scores", parts)


def spark_curve(recalls: np.ndarray, curves: Sequence[np.ndarray]) -> str:
    """Precision over recall without words, 100 x 60."""
    parts = ['<rect class="frame" x=".5" y=".5" width="99" height="59"/>']
    for number, values in enumerate(curves):
        points = _thinned(100 * recalls, 60 - 60 * values)
        parts.append(f'<polyline class="s{number}" points="{points}"/>')
    return _svg("spark", 100, 60, "precision over recall", parts)


def _svg(name: str, width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return f'<svg class="{name}" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{"".join(parts)}</svg>'


def _x(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)


def _grid(rows: Sequence[tuple[float, float]] = tuple((tick, tick) for tick in TICKS)) -> str:
    """Lines at 0..1 across, and at `rows`, (value, height in 0..1), up."""
    parts = []
    for value, share in rows:
        y = _y(share)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for tick in TICKS:
        parts.append(f'<text x="{_x(tick):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{tick:g}</text>')
    return "".join(parts)


def _short(value: float) -> str:
    """1000 -> 1k"""
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _line(recalls: np.ndarray, values: np.ndarray, name: str) -> str:
    points = _thinned(_x(recalls), _y(values))
    return f'<polyline class="{name}" points="{points}"/>'


def _thinned(xs: np.ndarray, ys: np.ndarray) -> str:
    """Points of a line, without those in the middle of a level stretch."""
    ys = ys.round(1)
    is_kept = np.ones(len(ys), bool)
    is_kept[1:-1] = (ys[1:-1] != ys[:-2]) | (ys[1:-1] != ys[2:])
    return " ".join(f"{x:.1f},{y:g}" for x, y in zip(xs[is_kept], ys[is_kept], strict=True))


def _axis_titles(x_title: str, y_title: str) -> list[str]:
    middle_x, middle_y = _x(0.5), _y(0.5)
    return [
        f'<text x="{middle_x:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>',
        f'<text transform="translate(12 {middle_y:.0f}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>',
    ]
