"""Keeps the records of large data sets in files, which all processes of a machine map: read once, held once.

A file holds what one reading gave. It is named after what that reading follows from, so a changed annotation file,
other options or a changed program make another. Where one is written, those not used for MAX_AGE_DAYS are removed, or
for MAX_AGE_DAYS_OF_OLD where it takes their place. Any may be deleted by hand.

Layout, little-endian: MAGIC; CRC-32 of all that follows the first 24 bytes, and the header's length, uint64 each; the
header, JSON filled up with spaces to a multiple of 8 bytes; PackedRecords' offsets, int64; its buffer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import IO

import numpy as np

from FasterRCNN.datasets.image_size import SIZE_PROBLEMS
from FasterRCNN.datasets.problems import KINDS, Problem, Problems
from FasterRCNN.datasets.records import PackedRecords
from FasterRCNN.structures import Categories, Dataset

__all__ = ["cache_folder", "cached_dataset"]

logger = logging.getLogger(__name__)

MAGIC = b"FRCNrec1"
MIN_SOURCE_BYTES = 20_000_000  # COCO val2017's size; reading less takes a second
MAX_AGE_DAYS, MAX_AGE_DAYS_OF_OLD = 30, 7  # no less: on a network's disk a run loses a file that is removed
_PREFIX = len(MAGIC) + 16
_OWN_FILE = re.compile(r"([0-9a-f]{16})-[0-9a-f]{16}\.records(\.lock|\.tmp)?")


def cache_folder(setting: str) -> Path | None:
    """The folder that DATA.CACHE names; "": $XDG_CACHE_HOME/fasterrcnn/records or that under ~/.cache; "none": None."""
    if setting == "none":
        return None
    if setting:
        return Path(setting).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "fasterrcnn" / "records"


def cached_dataset(
    read: Callable[[Problems], Dataset],
    problems: Problems,
    *,
    key: Sequence[object],
    sources: Sequence[Path],
    folder: Path | None,
) -> Dataset:
    """What `read(problems)` gives, from a file that was written when it was first read; its records are mapped.

    sources: the annotation files, told apart by path, size and time of change. key: what else the records follow from,
    as JSON can hold it. The errors among the problems are kept in the file and added to `problems` again; `reread` and
    `user_datasets` are not kept. Nothing is written without a folder, for sources of less than MIN_SOURCE_BYTES
    together, and where sizes had to be read from photos, which may change.

    The first process reads while others wait for it. A damaged file is replaced with a warning; where the folder cannot
    be written the records stay in this process's memory, with a warning.
    """
    if folder is None or sum(path.stat().st_size for path in sources if path.is_file()) < MIN_SOURCE_BYTES:
        return read(problems)
    path, full_key = _place(folder, key, sources)
    if (found := _find(path, full_key)) is None:
        with _lock(path) as is_locked:
            if not is_locked:
                return read(problems)
            if (found := _find(path, full_key)) is None:  # else another process wrote it meanwhile
                num_before = len(problems)
                dataset = read(problems)
                found_now = list(problems)[num_before:]
                if any(problem.kind in SIZE_PROBLEMS for problem in found_now):
                    return dataset
                errors = [problem for problem in found_now if KINDS[problem.kind].is_error]
                _write(path, full_key, dataset, errors)
                written = _find(path, full_key)
                return dataset if written is None else written[0]
    dataset, errors = found
    for kind, file, image_id, annotation_id, detail in map(astuple, errors):
        problems.add(kind, file=file, image_id=image_id, annotation_id=annotation_id, detail=detail)
    logger.info("%s: %d records from %s", dataset.name, len(dataset), path)
    return dataset


def _place(folder: Path, key: Sequence[object], sources: Sequence[Path]) -> tuple[Path, str]:
    """(file, all that its records follow from): the file's name begins alike for all versions of a set."""
    paths = [path.resolve() for path in sources if path.is_file()]
    stamps = [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    which = json.dumps([key, *map(str, paths)])
    full_key = json.dumps([_program(), which, stamps])
    names = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in (which, full_key)]
    return folder / f"{'-'.join(names)}.records", full_key


def _program() -> str:
    """Stands for the rules by which annotations become records: a hash of the text of this package's modules."""
    digest = hashlib.sha256()
    for path in sorted([*Path(__file__).parent.glob("*.py"), Path(__file__).parent.parent / "structures.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- one at a time


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Holds the right to write `path`, waiting for whoever has it; False, with a warning, where nothing can be written.

    The system frees it when a process dies.
    """
    lock_path = path.with_name(path.name + ".lock")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _wait_for(stack.enter_context(open(lock_path, "ab")))
            os.utime(lock_path)  # counts as use
            is_locked = True
        except OSError as error:
            _warn_unwritten(path, error)
            is_locked = False
        yield is_locked


def _wait_for(file: IO[bytes]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("another process is reading the same annotations: waiting for its records")
        fcntl.flock(file, fcntl.LOCK_EX)


def _warn_unwritten(path: Path, error: OSError) -> None:
    logger.warning(
        "%s cannot be written (%s): each process holds the records in its own memory. Name another folder with "
        "DATA.CACHE, or switch this off with DATA.CACHE=none",
        path,
        error.strerror or error,
    )


# ---------------------------------------------------------------- the file


def _find(path: Path, key: str) -> tuple[Dataset, list[Problem]] | None:
    """The file's content; None where there is none. A damaged file is removed, with a warning."""
    try:
        found = _read(path, key)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s: not a whole file of records (%s): reading the annotations again", path, error)
        with suppress(OSError):
            path.unlink()
        return None
    with suppress(OSError):
        os.utime(path)  # counts as use
    return found


def _read(path: Path, key: str) -> tuple[Dataset, list[Problem]]:
    """The data set and its errors; ValueError for a file that is damaged or another's."""
    with open(path, "rb") as file:
        start = file.read(_PREFIX)
    if len(start) < _PREFIX or not start.startswith(MAGIC):
        raise ValueError("it begins otherwise")
    checksum, header_size = np.frombuffer(start, "<u8", offset=len(MAGIC)).tolist()
    content = np.memmap(path, np.uint8, mode="r").view(np.ndarray)[_PREFIX:]
    if zlib.crc32(content) != checksum:
        raise ValueError("its checksum does not fit")
    header = json.loads(content[:header_size].tobytes())
    if header["key"] != key:
        raise ValueError("it holds other records")
    offsets_end = header_size + 8 * header["num_offsets"]
    return Dataset(
        name=header["name"],
        records=PackedRecords(content[offsets_end:], content[header_size:offsets_end].view("<i8")),
        categories=Categories(header["names"], header["ids"]),
    ), [Problem(*fields) for fields in header["errors"]]


def _write(path: Path, key: str, dataset: Dataset, errors: Sequence[Problem]) -> None:
    """Writes the whole file, or none, with a warning."""
    records = dataset.records
    header = json.dumps({
        "key": key,
        "name": dataset.name,
        "names": dataset.categories.names,
        "ids": dataset.categories.ids,
        "errors": [astuple(problem) for problem in errors],
        "num_offsets": len(records.offsets),
    }).encode()
    header += b" " * (-len(header) % 8)
    parts = [header, records.offsets.astype("<i8").data, records.buffer.data]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    temporary = path.with_name(path.name + ".tmp")
    try:
        _remove_unused(path)
        with open(temporary, "wb") as file:
            file.write(MAGIC + np.array([checksum, len(header)], "<u8").tobytes())
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())  # or a power failure could leave a named file of zeros
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        _warn_unwritten(path, error)


def _remove_unused(new: Path) -> None:
    now = time.time()
    for path in new.parent.iterdir():
        if match := _OWN_FILE.fullmatch(path.name):
            days = MAX_AGE_DAYS_OF_OLD if new.name.startswith(match[1]) else MAX_AGE_DAYS
            with suppress(OSError):
                if path.stat().st_mtime < now - days * 24 * 3600:
                    path.unlink()
