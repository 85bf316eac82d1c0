"""The curves of training runs as PNG files: losses, heads, evaluations, speed. Reads a run's folder; no TensorFlow."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from FasterRCNN.engine.run_folder import RUN_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
SCHEDULE_AND_SPEED = ("learning_rate", "gradient_norm", "loss_scale", "steps_not_made", "images_per_second",
                      "data_wait_seconds")
NOT_NOISY = ("learning_rate", "loss_scale", "wd")
SMOOTHING = 0.02  # standard deviation of the smoothing, as a share of a run's points

_COLOURS = ("#2f6db3", "#d1495b", "#3a9a6e", "#c98a1b", "#7a5aa6", "#4f5b66", "#c45f9b", "#3fa7b5")
_QUIET = "#8a8f98"


@dataclass(frozen=True)
class Run:
    """What a run has written: its points by rising step, and the last steps before it was resumed."""

    name: str
    points: list[dict[str, float]]
    resumed_after: list[int]

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a scalar, where it is a finite number."""
        pairs = [(point["step"], point[name]) for point in self.points if math.isfinite(point.get(name, math.nan))]
        steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
        return steps, values


def plot_runs(folders: Sequence[str | Path], output_dir: str | Path | None = None) -> list[Path]:
    """Draws the curves of a run, or of several over each other; returns the PNG files, one for each group of scalars.

    output_dir: by default `curves` in the run's folder; of several runs `comparison` in the first one's. Raises
    FileNotFoundError for a folder without a run, ValueError for a run that has written no point yet.
    """
    runs = read_runs(folders)
    if output_dir is None:
        output_dir = Path(folders[0]) / ("curves" if len(runs) == 1 else "comparison")
    names = list(dict.fromkeys(name for run in runs for point in run.points for name in point))
    groups: dict[str, list[str]] = {}
    for name in names:
        if name not in ("step", "time"):
            groups.setdefault(_group(name), []).append(name)
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    files = []
    for group in sorted(groups, key=list(_GROUPS).index):
        path = Path(output_dir) / f"{group}.png"
        _draw_group(group, sorted(groups[group], key=_place), runs, path)
        files.append(path)
    return files


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs of some folders, each once, named by their folders: by the whole path where the last parts are alike."""
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    last_parts = [path.name for path in paths]
    return [read_run(path, path.name if last_parts.count(path.name) == 1 else str(path)) for path in paths]


def read_run(folder: Path, name: str) -> Run:
    """The points of a run's folder; those that a resumed run made again count once, as made last."""
    path = folder / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run ({METRICS_FILE} is not there): name the --logdir of a training")
    points: list[dict[str, float]] = []
    unreadable = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        point = _parse(line)
        if point is None:
            unreadable += 1
            continue
        while points and points[-1]["step"] >= point["step"]:
            points.pop()
        points.append(point)
    if unreadable:
        logger.warning("%s: %d lines are not whole, as a killed run leaves them, and are left out", path, unreadable)
    if not points:
        raise ValueError(f"{path} holds no point yet: the first is written after TRAIN.SUMMARY_PERIOD steps")
    return Run(name, points, _resumed_after(folder, points))


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean around each value, by a Gaussian of SMOOTHING of their number; few values stay as they are."""
    deviation = SMOOTHING * len(values)
    if deviation < 0.5:
        return values
    reach = min(math.ceil(3 * deviation), (len(values) - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    # Divided by the weights that lie on the curve, so that its ends are means too.
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _parse(line: str) -> dict[str, float] | None:
    try:
        point = json.loads(line)
    except ValueError:
        return None
    return point if isinstance(point, dict) and {"step", "time"} <= point.keys() else None


def _resumed_after(folder: Path, points: Sequence[dict[str, float]]) -> list[int]:
    """The last kept step before each start but the first."""
    path = folder / RUN_FILE
    starts = json.loads(path.read_text(encoding="utf-8"))["starts"][1:] if path.is_file() else []
    times = [point["time"] for point in points]
    places = np.searchsorted(times, [datetime.fromisoformat(start["date"]).timestamp() for start in starts])
    return [int(points[place - 1]["step"]) for place in dict.fromkeys(places.tolist()) if 0 < place < len(points)]


# ---------------------------------------------------------------- groups of scalars


def _is_evaluation(name: str) -> bool:
    return not {"bbox", "segm"}.isdisjoint(name.split("/")[:-1])


def _is_loss(name: str) -> bool:
    return name in ("total_loss", "wd") or "/loss" in name


# File name -> (title, which scalars, panels in a row); a scalar belongs to the first that takes it.
_GROUPS: dict[str, tuple[str, Callable[[str], bool], int]] = {
    "losses": ("losses", _is_loss, 3),
    "evaluation": ("evaluation", _is_evaluation, 6),
    "speed": ("learning rate and speed", lambda name: name in SCHEDULE_AND_SPEED, 2),
    "heads": ("what the heads get right", lambda name: True, 4),
}


def _group(name: str) -> str:
    return next(group for group, (_, takes, _) in _GROUPS.items() if takes(name))


def _place(name: str) -> tuple:
    """Where a panel stands in its group: the total loss first, the RPN before the boxes, weight decay last."""
    if name in SCHEDULE_AND_SPEED:
        return (SCHEDULE_AND_SPEED.index(name),)
    return name == "wd", name != "total_loss", not name.startswith("rpn/"), name.rpartition("/")[0]


# ---------------------------------------------------------------- pictures


def _draw_group(group: str, names: Sequence[str], runs: Sequence[Run], path: Path) -> None:
    from matplotlib.figure import Figure  # takes half a second

    title, _, most = _GROUPS[group]
    columns = min(most, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(max(3.3 * columns, 6.6), 2.5 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(grid, names):
        _draw_panel(axes, name, runs, is_evaluation=group == "evaluation")
    for axes in grid[len(names):]:
        axes.set_visible(False)
    name = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    figure.suptitle(f"{name}: {title}", x=0.01, ha="left", fontsize=13, fontweight="bold")
    if len(runs) > 1:
        lines = [grid[0].plot([], [], color=colour, linewidth=2)[0] for colour, _ in _coloured(runs)]
        figure.legend(lines, [run.name for run in runs], loc="outside upper right", ncols=min(len(runs), 4),
                      frameon=False)
    figure.savefig(path, dpi=110)


def _draw_panel(axes: Axes, name: str, runs: Sequence[Run], *, is_evaluation: bool) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    said, top = "", 0.0
    for colour, run in _coloured(runs):
        steps, values = run.curve(name)
        if not len(steps):
            continue
        if is_evaluation:
            said = _draw_evaluation(axes, steps, values, colour)
        else:
            said = _draw_curve(axes, steps, values, colour, is_noisy=name not in NOT_NOISY)
        top = max(top, values.max() if is_evaluation else max(smooth(values).max(), np.percentile(values, 98)))
        for step in run.resumed_after:
            axes.axvline(step, color=colour if len(runs) > 1 else _QUIET, linewidth=0.9, linestyle=(0, (2, 3)))
    axes.set_title(name, loc="left", fontsize=10)
    if len(runs) == 1:
        axes.set_title(said, loc="right", fontsize=8.5, color=_QUIET)
    if name != "wd" and top > 0:  # weight decay falls by a hair's breadth of itself; no scalar is negative
        axes.set_ylim(-0.03 * top, 1.1 * top)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step", fontsize=8, color=_QUIET)
    axes.tick_params(labelsize=8, colors="#4f5b66", length=0)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _draw_curve(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, *, is_noisy: bool) -> str:
    """Draws the smoothed values over the raw ones; returns the last in words."""
    smoothed = smooth(values) if is_noisy else values
    if smoothed is not values:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(steps, smoothed, color=colour, linewidth=1.7, marker="o" if len(steps) == 1 else "", markersize=4)
    return f"last {smoothed[-1]:.3g}"


def _draw_evaluation(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str) -> str:
    """Draws each evaluation as a point, the best of them ringed; returns the best in words."""
    axes.plot(steps, values, color=colour, linewidth=1.4, marker="o", markersize=3.5)
    best = len(values) - 1 - int(np.argmax(values[::-1]))  # of equal ones the last, as for the checkpoint that is kept
    axes.plot(steps[best], values[best], "o", markersize=9, markerfacecolor="none", markeredgecolor=colour)
    return f"best {values[best]:.3f} at {steps[best]:g}"


def _coloured(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    return [(_COLOURS[number % len(_COLOURS)], run) for number, run in enumerate(runs)]
