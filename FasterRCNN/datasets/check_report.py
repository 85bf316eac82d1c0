"""What `./data.py --check` found, as text for the terminal and as a JSON of all the details."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from FasterRCNN.datasets.problems import KINDS, MASK_KINDS, Problem

__all__ = ["CheckReport", "CheckedSet", "format_report", "report_to_json"]

FINDINGS_SHOWN = 5
USUAL_WIDTH = 120  # of the text, in characters, where the terminal does not say
TITLE_WIDTH, NARROW_COLUMNS, LEAST_WIDTH = 30, 24, 20  # of the table's columns, in characters


@dataclass
class CheckedSet:
    """A data set and what was found in it.

    name: as in the annotations, or as the user gave it for a set that cannot be read; source: the annotation file or
    folder; role: "training", "validation" or "".
    """

    name: str
    source: str
    role: str = ""
    num_images: int = 0
    num_objects: int = 0
    class_names: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)


@dataclass
class CheckReport:
    """The sets in the order they were named. with_masks=False: masks are not trained, and flawed ones are no errors."""

    sets: list[CheckedSet]
    with_masks: bool = True

    def is_error(self, kind: str) -> bool:
        """Whether training cannot use what has this kind of problem."""
        return KINDS[kind].is_error and (self.with_masks or kind not in MASK_KINDS)

    def severity(self, kind: str) -> str:
        """"error" or "warning"."""
        return "error" if self.is_error(kind) else "warning"

    def by_kind(self) -> dict[str, list[tuple[CheckedSet, Problem]]]:
        """The problems of each kind that was found, errors first, then in the order of KINDS."""
        groups = defaultdict(list)
        for checked in self.sets:
            for problem in checked.problems:
                groups[problem.kind].append((checked, problem))
        order = list(KINDS)
        return {kind: groups[kind] for kind in sorted(groups, key=lambda k: (not self.is_error(k), order.index(k)))}

    def count(self, *, is_error: bool) -> int:
        """How many errors, or warnings, there are."""
        return sum(self.is_error(problem.kind) is is_error for one in self.sets for problem in one.problems)

    @property
    def exit_code(self) -> int:
        """1 when there is any error, 0 for warnings alone."""
        return int(self.count(is_error=True) > 0)


def report_to_json(report: CheckReport) -> dict:
    """{"exit_code", "sets": [...], "kinds": [...], "problems": [...]}, in JSON's types; one entry a problem."""
    return {
        "exit_code": report.exit_code,
        "sets": [
            {
                "name": one.name,
                "source": one.source,
                "role": one.role,
                "images": one.num_images,
                "objects": one.num_objects,
                "classes": list(one.class_names),
            }
            for one in report.sets
        ],
        "kinds": [
            {"kind": kind, "title": KINDS[kind].title, "severity": report.severity(kind), "count": len(found),
             "advice": KINDS[kind].advice}
            for kind, found in report.by_kind().items()
        ],
        "problems": [
            {
                "set": one.name,
                "kind": kind,
                "severity": report.severity(kind),
                "file": problem.file,
                "image_id": _plain(problem.image_id),
                "annotation_id": _plain(problem.annotation_id),
                "detail": problem.detail,
            }
            for kind, found in report.by_kind().items()
            for one, problem in found
        ],
    }


def _plain(value: object) -> int | str | None:
    return value if value is None or isinstance(value, (int, str)) else str(value)


def format_report(
    report: CheckReport, *, details_file: str | Path = "", most: int = FINDINGS_SHOWN, width: int | None = None
) -> str:
    """The sets, a table of the kinds of problems, and the first `most` of each kind with their places.

    details_file: where all of them are, for the reader to look up. width: of the table, in characters; by default the
    terminal's.
    """
    width = width or shutil.get_terminal_size((USUAL_WIDTH, 0)).columns
    parts = [_sets_table(report.sets)]
    groups = report.by_kind()
    if groups:
        parts.append(_kinds_table(report, groups, width))
        parts += ["\n".join(_places(report.severity(kind), kind, found, most)) for kind, found in groups.items()]
    if not report.with_masks and MASK_KINDS & groups.keys():
        parts.append("Masks are not trained (MODE_MASK=False): what is wrong with them are warnings.")
    errors, warnings = (report.count(is_error=is_error) for is_error in (True, False))
    end = f"{_plural(errors, 'error')}, {_plural(warnings, 'warning')}" if groups else "No problems found."
    parts.append(end + (f"; all of them in {details_file}" if groups and details_file else ""))
    return "\n\n".join(parts)


def _sets_table(sets: Sequence[CheckedSet]) -> str:
    rows = [
        (one.name, one.role or "-", f"{one.num_images:,}", f"{one.num_objects:,}", len(one.class_names))
        for one in sets
    ]
    headers = ["data set", "used for", "images", "objects", "classes"]
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", "left", "right", "right", "right"))


def _kinds_table(report: CheckReport, groups: dict[str, list[tuple[CheckedSet, Problem]]], width: int) -> str:
    wide = max(LEAST_WIDTH, (width - TITLE_WIDTH - NARROW_COLUMNS) // 2)
    rows = [
        (KINDS[kind].title, report.severity(kind), f"{len(found):,}", _first_place(found[0][1]), KINDS[kind].advice)
        for kind, found in groups.items()
    ]
    return tabulate(
        rows,
        ["problem", "severity", "count", "first place", "what to do"],
        disable_numparse=True,
        colalign=("left", "left", "right", "left", "left"),
        maxcolwidths=[TITLE_WIDTH, None, None, wide, wide],
    )


def _first_place(problem: Problem) -> str:
    file = problem.file if problem.image_id is None else Path(problem.file).name
    return ", ".join(part for part in (file, problem.place) if part)


def _places(severity: str, kind: str, found: Sequence[tuple[CheckedSet, Problem]], most: int) -> Iterator[str]:
    """A heading, then a line for each of the first problems; those of one file follow each other."""
    yield f"{severity.capitalize()}: {KINDS[kind].title} ({len(found):,})"
    for _, problem in found[:most]:
        place = ", ".join(part for part in (problem.file, problem.place) if part)
        yield f"  {place}" + (f": {problem.detail}" if problem.detail else "")
    if len(found) > most:
        yield f"  and {len(found) - most:,} more"


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"
