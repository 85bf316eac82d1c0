#!/usr/bin/env python3
"""The models of configs/ as a table, read from the files' headers; and what any configuration costs, counted.

A header is the comment that opens a file. Its first line says what the model is, more about it after a colon; then come
the command that runs it, a predecessor's figures (none or several lines), and the cost as this module counts it:

    # Mask R-CNN, R50-FPN, 2x
    #   ./train.py --config-file configs/mask_rcnn_R50_FPN_2x.yaml --config DATA.BASEDIR=...
    # Published by SOURCE: box AP 38.8, mask AP 35.4; weights FILE
    # Cost: 44.4 M parameters, 538 GFLOP (one 800×1333 image, 80 classes)
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from config import Config, add_config_arguments, default_config, finalize_configs, run_command

from tabulate import tabulate

CONFIGS = Path(__file__).resolve().parent / "configs"
NUM_CLASSES = 80  # COCO's, where a file leaves the number to the annotations

TITLE = "Mask R-CNN, R50-FPN, 2x"
# What a line begins with -> an example of the line, and how it is read.
_LINES = {
    "Published": (
        "Published by SOURCE: box AP 38.8, mask AP 35.4; weights FILE",
        re.compile(
            r"Published by (?P<source>[^:]+): box AP (?P<box_ap>\d+\.\d)(, mask AP (?P<mask_ap>\d+\.\d))?"
            r"(; weights (?P<weights>\S+))?"
        ),
    ),
    "Cost": (
        "Cost: 44.4 M parameters, 538 GFLOP (one 800×1333 image, 80 classes)",
        re.compile(
            r"Cost: (?P<parameters>\d+\.\d) M parameters, (?P<gflop>\d+) GFLOP \(one 800×1333 image, \d+ classes\)"
        ),
    ),
}


@dataclass(frozen=True)
class Published:
    """A predecessor's own figures of a model: APs × 100, and the file of its weights."""

    source: str
    box_ap: str
    mask_ap: str | None
    weights: str | None


@dataclass(frozen=True)
class Header:
    """What the header of a config file says; cost is the whole line, parameters (in millions) and gflop its figures."""

    name: str
    title: str
    published: tuple[Published, ...]
    cost: str
    parameters: str
    gflop: str


# ---------------------------------------------------------------- headers


def read_headers(folder: Path = CONFIGS) -> list[Header]:
    """The headers of all files of a folder, by name; ValueError as `read_header`."""
    return [read_header(path) for path in sorted(folder.glob("*.yaml"))]


def read_header(path: Path) -> Header:
    """The header of a config file; ValueError naming the file and the line that is wanted."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    title = lines[0].partition(":")[0].rstrip(".") if lines else ""
    if not title:
        raise ValueError(f"{path}: its first line does not say what the model is; wanted is one like '# {TITLE}'")
    published = tuple(Published(**found.groupdict()) for found in _find("Published", lines, path))
    costs = _find("Cost", lines, path)
    if len(costs) != 1:
        raise ValueError(f"{path}: {len(costs)} lines '# Cost: …' in its header, wanted is one; "
                         f"./model_table.py --config-file {path} prints it")
    return Header(path.name, title, published, costs[0].group(), costs[0]["parameters"], costs[0]["gflop"])


def _find(start: str, lines: list[str], path: Path) -> list[re.Match]:
    """The lines that begin with `start`, read."""
    example, pattern = _LINES[start]
    found = [(line, pattern.fullmatch(line)) for line in lines if line.startswith(start)]
    for line, match in found:
        if not match:
            raise ValueError(f"{path}: '# {line}' in its header cannot be read; wanted is a line like '# {example}'")
    return [match for _, match in found]


def format_table(headers: Iterable[Header]) -> str:
    """The headers as a table, with the first figures published for each model."""
    rows = []
    for header in headers:
        first = header.published[0] if header.published else Published("", "", None, None)
        rows.append([header.name, header.title, header.parameters, header.gflop, first.box_ap, first.mask_ap,
                     first.source])
    columns = ["configs/", "what it is", "M parameters", "GFLOP", "box AP", "mask AP", "published by"]
    align = ("left", "left", "right", "right", "right", "right", "left")
    return tabulate(rows, headers=columns, colalign=align, disable_numparse=True)


# ---------------------------------------------------------------- costs


def count_cost(cfg: Config) -> str:
    """The cost of the model that `cfg` (not finalized) describes, as a header says it."""
    from FasterRCNN.engine.cost import IMAGE_SIZE, measure_cost
    from FasterRCNN.modeling.build import build_detector

    cfg = cfg.clone()
    if not cfg.DATA.CLASS_NAMES:
        cfg.DATA.NUM_CLASS = cfg.DATA.NUM_CLASS or NUM_CLASSES
    finalize_configs(cfg, is_training=False)
    cost = measure_cost(build_detector(cfg))
    height, width = IMAGE_SIZE
    return (f"Cost: {cost.parameters / 1e6:.1f} M parameters, {cost.flops / 1e9:.0f} GFLOP "
            f"(one {height}×{width} image, {cfg.DATA.NUM_CLASS} classes)")


def main() -> int:
    """Prints the table, or the cost of a configuration."""
    parser = argparse.ArgumentParser(
        description="The models of configs/, as ./train.py --list-configs prints them; "
        "with --config-file or --config, the parameters of that model and the GFLOP of one 800×1333 image."
    )
    add_config_arguments(parser)
    args = parser.parse_args()
    if not args.config_file and not args.config:
        print(format_table(read_headers()))
        return 0
    cfg = default_config()
    cfg.update_given(args.config_file, args.config)
    print(count_cost(cfg))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
