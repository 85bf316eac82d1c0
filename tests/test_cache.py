"""Records kept in files: read once, mapped by all processes, never half written."""

import logging
import multiprocessing
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from test_records import assert_same, make_record

from FasterRCNN.datasets import cache
from FasterRCNN.datasets.cache import cache_folder, cached_dataset
from FasterRCNN.datasets.problems import Problems
from FasterRCNN.datasets.records import PackedRecords
from FasterRCNN.structures import Categories, Dataset


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MIN_SOURCE_BYTES", 1)
    path = tmp_path / "instances.json"
    path.write_text("content")
    return path


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Reader:
    """A reader of annotations that counts how often it is asked."""

    def __init__(self, num_records=3):
        self.num_records = num_records
        self.calls = 0

    def __call__(self, problems):
        self.calls += 1
        problems.add("zero_area_box", image_id=7, annotation_id=8, detail="bbox [1, 2, 0, 3]")
        problems.add("flat_polygon", image_id=7)
        records = [make_record(image_id=number, objects=number) for number in range(self.num_records)]
        return Dataset("mine", PackedRecords.from_iterable(records), Categories(["cat", "ä"], [3, 18]))


def load(read, source, folder, key=("a", True, None), sources=None):
    problems = Problems(str(source))
    dataset = cached_dataset(read, problems, key=key, sources=sources or [source], folder=folder)
    return dataset, problems


def record_files(folder):
    return sorted(folder.glob("*.records"))


def backing_file(array):
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return Path(array.filename) if isinstance(array, np.memmap) else None


def test_what_is_found_again_is_what_was_read(source, tmp_path):
    read = Reader()
    for _ in range(2):
        dataset, problems = load(read, source, tmp_path / "cache")
        assert dataset.name == "mine"
        assert dataset.categories == Categories(["cat", "ä"], [3, 18])
        assert len(dataset) == 3
        for number, record in enumerate(dataset.records):
            assert_same(record, make_record(image_id=number, objects=number))
        (error,) = problems.by_kind()["zero_area_box"]
        assert (error.image_id, error.annotation_id, error.detail) == (7, 8, "bbox [1, 2, 0, 3]")
        assert backing_file(dataset.records.buffer) == record_files(tmp_path / "cache")[0]
    assert read.calls == 1


def test_what_was_read_from_photos_is_not_kept(source, tmp_path):
    """They may be there, or others, the next time."""
    class Measuring(Reader):
        def __call__(self, problems):
            problems.add("missing_image", image_id=1)
            return super().__call__(problems)

    read = Measuring()
    for _ in range(2):
        assert len(load(read, source, tmp_path / "cache")[0]) == 3
    assert read.calls == 2 and record_files(tmp_path / "cache") == []


def test_a_set_without_images_is_kept_too(source, tmp_path):
    read = Reader(num_records=0)
    assert [len(load(read, source, tmp_path / "cache")[0]) for _ in range(2)] == [0, 0]
    assert read.calls == 1


def test_warnings_are_said_on_every_load(source, tmp_path, messages, caplog):
    said = []
    for _ in range(2):
        load(Reader(), source, tmp_path / "cache")[1].settle()
        said.append(messages())
        caplog.clear()
    assert said[0] == said[1]
    assert len(said[0]) == 1
    assert "left out 1 x" in said[0][0] and "bbox [1, 2, 0, 3]" in said[0][0]


def test_what_the_records_follow_from_tells_files_apart(source, tmp_path, monkeypatch):
    read, folder = Reader(), tmp_path / "cache"
    other = tmp_path / "other.json"
    other.write_text("content")
    os.utime(other, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))

    def is_read_anew(**changed):
        before = read.calls
        load(read, source, folder, **changed)
        load(read, source, folder, **changed)
        return read.calls - before

    assert is_read_anew() == 1
    assert is_read_anew(key=("a", False, None)) == 1
    assert is_read_anew(sources=[other]) == 1
    assert is_read_anew(sources=[source, other]) == 1
    os.utime(source, ns=(0, 12_345))
    assert is_read_anew() == 1
    source.write_text("other content")
    os.utime(source, ns=(0, 12_345))
    assert is_read_anew() == 1
    monkeypatch.setattr(cache, "_program", lambda: "the next version")
    assert is_read_anew() == 1


def test_a_damaged_file_is_read_anew_with_one_warning(source, tmp_path, messages, caplog):
    read, folder = Reader(), tmp_path / "cache"
    load(read, source, folder)
    (path,) = record_files(folder)
    good = path.read_bytes()
    flipped = good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :]
    for number, damaged in enumerate([b"", good[:10], good[:24], good[:-1], flipped, b"something else" * 100], start=2):
        path.write_bytes(damaged)
        caplog.clear()
        dataset, _ = load(read, source, folder)
        assert_same(dataset.records[2], make_record(image_id=2, objects=2))
        assert read.calls == number
        (message,) = messages()
        assert "not a whole file of records" in message and str(path) in message
        assert path.read_bytes() == good


def test_a_file_of_other_records_under_this_name_is_read_anew(source, tmp_path, messages):
    folder = tmp_path / "cache"
    load(Reader(num_records=1), source, folder, key=["one"])
    (one,) = record_files(folder)
    load(Reader(num_records=2), source, folder, key=["two"])
    (two,) = set(record_files(folder)) - {one}
    two.write_bytes(one.read_bytes())
    assert len(load(Reader(num_records=2), source, folder, key=["two"])[0]) == 2
    (message,) = messages()
    assert "it holds other records" in message


def test_a_failed_reading_leaves_nothing_and_frees_the_lock(source, tmp_path):
    def fail(problems):
        raise ValueError("not a JSON file")

    folder = tmp_path / "cache"
    with pytest.raises(ValueError, match="not a JSON file"):
        load(fail, source, folder)
    assert record_files(folder) == []
    assert len(load(Reader(), source, folder)[0]) == 3


def test_small_sets_and_switched_off_ones_are_read_each_time(source, tmp_path, monkeypatch):
    read = Reader()
    load(read, source, None)
    monkeypatch.setattr(cache, "MIN_SOURCE_BYTES", source.stat().st_size + 1)
    dataset, _ = load(read, source, tmp_path / "cache")
    assert read.calls == 2
    assert backing_file(dataset.records.buffer) is None
    assert not (tmp_path / "cache").exists()


def test_where_nothing_can_be_written_the_records_stay_in_memory(source, tmp_path, messages):
    (tmp_path / "a file").write_text("")
    dataset, problems = load(Reader(), source, tmp_path / "a file" / "cache")
    assert len(dataset) == 3 and len(problems) == 2
    (message,) = messages()
    assert "cannot be written" in message and "DATA.CACHE=none" in message


def test_a_full_disk_leaves_no_part_of_a_file(source, tmp_path, messages, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    dataset, _ = load(Reader(), source, tmp_path / "cache")
    assert len(dataset) == 3
    (message,) = messages()
    assert "No space left on device" in message
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def set_age(folder, days):
    for path in folder.iterdir():
        os.utime(path, (time.time() - days * 24 * 3600,) * 2)


def test_files_long_unused_are_removed_and_nothing_else(source, tmp_path):
    folder = tmp_path / "cache"
    load(Reader(), source, folder, key=["old"])
    load(Reader(), source, folder, key=["used again"])
    theirs = folder / "theirs.records"
    theirs.write_text("")
    set_age(folder, cache.MAX_AGE_DAYS + 1)
    read = Reader()
    load(read, source, folder, key=["used again"])
    load(read, source, folder, key=["new"])
    assert read.calls == 1
    assert theirs.exists()
    assert len(record_files(folder)) == 3  # "used again", "new" and theirs


def test_older_versions_of_a_set_are_removed_sooner(source, tmp_path):
    folder = tmp_path / "cache"
    load(Reader(), source, folder, key=["other"])
    load(Reader(), source, folder)
    set_age(folder, cache.MAX_AGE_DAYS_OF_OLD - 1)
    source.write_text("the second version")
    load(Reader(), source, folder)
    assert len(record_files(folder)) == 3
    set_age(folder, cache.MAX_AGE_DAYS_OF_OLD + 1)
    source.write_text("the third version..")
    load(Reader(), source, folder)
    assert len(record_files(folder)) == 2  # of the other set and the third version


def test_a_mapped_file_that_is_removed_can_still_be_read(source, tmp_path):
    folder = tmp_path / "cache"
    dataset, _ = load(Reader(), source, folder)
    (path,) = record_files(folder)
    path.unlink()
    assert_same(dataset.records[2], make_record(image_id=2, objects=2))


def test_a_record_is_read_without_reading_the_others(source, tmp_path):
    dataset, _ = load(Reader(num_records=400), source, tmp_path / "cache")
    assert dataset.records.nbytes > 4_000_000
    dataset.records[200]
    tracemalloc.start()
    record = dataset.records[200]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(record) == 200
    assert peak < 20 * dataset.records.nbytes / 400


def _load_slowly(source, folder, log, ready):
    cache.MIN_SOURCE_BYTES = 1
    logging.basicConfig(filename=log, level=logging.INFO, force=True)

    def read(problems):
        ready.set()
        time.sleep(1)
        return Reader()(problems)

    dataset, _ = load(read, source, folder)
    assert len(dataset) == 3


def test_processes_read_once_and_the_others_wait(source, tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    processes = [context.Process(target=_load_slowly, args=(source, tmp_path / "cache", log, ready)) for log in logs]
    processes[0].start()
    assert ready.wait(30)
    ready.clear()
    for process in processes[1:]:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not ready.is_set()  # neither of the others read
    assert "waiting" not in logs[0].read_text()
    for log in logs[1:]:
        assert "another process is reading the same annotations: waiting" in log.read_text()
        assert "3 records from" in log.read_text()


def test_where_the_files_are(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder("") == Path("/somewhere/fasterrcnn/records")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder("") == Path("/home/me/.cache/fasterrcnn/records")
    assert cache_folder("~/records") == Path("/home/me/records")
    assert cache_folder("none") is None


def test_a_key_that_json_cannot_hold_is_a_mistake(source, tmp_path):
    with pytest.raises(TypeError):
        load(Reader(), source, tmp_path / "cache", key=[object()])
