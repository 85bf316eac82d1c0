"""The operations in C++: types, what they refuse, how they are built. Results: test_roi_align.py, test_nms.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate

from FasterRCNN.ops import kernels
from FasterRCNN.ops.kernels import library_file
from FasterRCNN.ops.pooling_kernel import pool_by_kernel
from FasterRCNN.ops.roi_align import form_for_this_machine, multilevel_roi_align

ROOT = Path(__file__).resolve().parent.parent
STEP = {"float32": 1e-5, "bfloat16": 2**-8, "float16": 2**-11}  # relative, of a number rounded once


@pytest.mark.parametrize("channels", [3, 32, 45, 160])
@pytest.mark.parametrize("dtype", STEP)
@pytest.mark.parametrize("samples", [0, 2])
def test_each_type_and_number_of_channels_gives_what_the_matrix_gives_of_float32(dtype, channels, samples):
    """45: what is left over after pairs of vectors; 160: many pairs at once, and one more."""
    random, strides = np.random.default_rng(0), (4, 8)
    maps = [random.normal(size=[2, 96 // s, 128 // s, channels]).astype(np.float32) for s in strides]
    corner, sides = random.uniform(-20, 60, [24, 2]), random.uniform([[1]] * 12 + [[115]] * 12, 150, [24, 2])
    boxes, images = np.concatenate([corner, corner + sides], axis=1).astype(np.float32), np.arange(24) % 2
    upstream = random.normal(size=[24, 3, 3, channels]).astype(np.float32)

    def build(*features):
        rounded = [tf.cast(feature, dtype) for feature in features]
        weights = tf.cast(upstream, dtype)
        results = []
        for form, levels, of_pooled in (
                ("matrix", [tf.cast(x, tf.float32) for x in rounded], tf.cast(weights, tf.float32)),
                ("kernel", rounded, weights)):
            pooled = multilevel_roi_align(levels, boxes, tf.constant(images), 3, strides, form=form, samples=samples)
            results += [pooled, *tf.gradients(pooled, levels, of_pooled)]
        return [tf.cast(result, tf.float32) for result in results]

    found = evaluate(build, *maps)
    for expected, ours in zip(found[:3], found[3:]):
        assert expected.any()
        assert np.abs(ours - expected).max() <= STEP[dtype] * np.abs(expected).max()


def test_bfloat16_is_rounded_to_the_nearest_even_and_keeps_what_is_no_number():
    """Bins of two cells, whose mean lies between two numbers of 8 bits or exactly in their middle."""
    step = 2.0**-7
    pairs = [(1, 1 + step), (1 + step, 1 + 2 * step), (-1, -1 - step), (1, 1.25 + step), (3e38, 3e38), (np.inf, 1),
             (np.nan, 1), (0, 0)]
    cells = np.resize(np.array(pairs, np.float32).T, [1, 1, 2, 8]).repeat(4, axis=3)

    def build(feature):
        rounded = tf.cast(feature, tf.bfloat16)
        pooled = pool_by_kernel([rounded], tf.constant([[0.0, 0.0, 2.0, 1.0]]), tf.constant([0]), tf.constant([0]),
                                1, 2, [tf.constant([[1, 2]])])
        mean = tf.reduce_sum(tf.cast(rounded, tf.float32) * 0.5, axis=2, keepdims=True)
        return tf.cast(pooled, tf.float32), tf.cast(tf.cast(mean, tf.bfloat16), tf.float32)

    ours, expected = evaluate(build, cells)
    assert np.array_equal(ours, expected, equal_nan=True)
    assert ours[0, 0, 0, ::4][:3].tolist() == [1, 1 + 2 * step, -1]


@pytest.mark.parametrize("change, words", [
    ({"level": [1]}, "RoI 0 is of level 1 of 1 and image 0 of 2"),
    ({"image_index": [2]}, "RoI 0 is of level 0 of 1 and image 2 of 2"),
    ({"image_index": [-1]}, "RoI 0 is of level 0 of 1 and image -1 of 2"),
    ({"image_index": [0, 0]}, "boxes must be R×4, level and image R"),
    ({"map_sizes": [[[4, 4]] * 3]}, "map_sizes must be B×2 or 1×2"),
    ({"map_sizes": [[[0, 4]]]}, "a map has no cells"),
])
def test_what_lies_outside_the_maps_is_refused(change, words):
    arguments = {"features": [np.ones([2, 4, 4, 1], np.float32)], "boxes": [[0.0, 0.0, 2.0, 2.0]], "level": [0],
                 "image_index": [0], "size": 2, "samples": 2, "map_sizes": [[[4, 4]]], **change}
    with tf.Graph().as_default(), tf.Session() as session, pytest.raises(tf.errors.InvalidArgumentError, match=words):
        session.run(pool_by_kernel(**arguments))


def test_maps_without_channels_or_images_have_empty_gradients():
    def gradient(feature, num_rois, map_sizes):
        index = tf.zeros([num_rois], tf.int32)
        pooled = pool_by_kernel([feature], tf.zeros([num_rois, 4]), index, index, 2, 2, [map_sizes])
        return tf.gradients(pooled, feature)[0]

    def build(no_channels, no_images):
        return gradient(no_channels, 1, tf.constant([[4, 4]])), gradient(no_images, 0, tf.zeros([0, 2], tf.int32))

    gradients = evaluate(build, np.zeros([1, 4, 4, 0], np.float32), np.zeros([0, 4, 0, 3], np.float32))
    assert [found.shape for found in gradients] == [(1, 4, 4, 0), (0, 4, 0, 3)]


def test_a_map_that_claims_more_cells_than_it_has_ends_at_its_own():
    pooled = evaluate(lambda x: pool_by_kernel([x], tf.constant([[0.0, 0.0, 9.0, 9.0]]), tf.constant([0]),
                                               tf.constant([0]), 3, 2, [tf.constant([[9, 9]])]),
                      np.ones([1, 4, 4, 1], np.float32))
    assert pooled[0, 0, 0, 0] == pytest.approx(1) and pooled[0, 2, 2, 0] == 0


@pytest.mark.parametrize("older, words", [
    ([], ""),
    (["kernels-old.so"], "note: kernels-old.so is of another TensorFlow or an older source, so slower operations take "
                         "its place: run tools/build_kernels.py\n"),
])
def test_without_them_the_matrix_takes_their_place(monkeypatch, tmp_path, capsys, older, words):
    assert form_for_this_machine() == "kernel"
    for name in older:
        (tmp_path / name).touch()
    monkeypatch.setattr(kernels, "library_file", lambda: tmp_path / "kernels-this.so")
    kernels.library.cache_clear()
    try:
        assert form_for_this_machine() == form_for_this_machine() == "matrix"
        assert capsys.readouterr().err == words
        with pytest.raises(RuntimeError, match="kernels are not built: tools/build_kernels.py does that"):
            pool_by_kernel([], None, None, None, 7, 2, [])
    finally:
        kernels.library.cache_clear()


def test_a_library_that_cannot_be_loaded_is_named(monkeypatch, tmp_path):
    file = tmp_path / "broken.so"
    file.write_bytes(b"no library")
    monkeypatch.setattr(kernels, "library_file", lambda: file)
    kernels.library.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="broken.so cannot be loaded: .* Delete it, and tools/build_kernels.py"):
            form_for_this_machine()
    finally:
        kernels.library.cache_clear()


def build(compiler):
    return subprocess.run([sys.executable, str(ROOT / "tools" / "build_kernels.py")], capture_output=True, text=True,
                          env={**os.environ, "CXX": compiler})


def test_what_is_built_is_left_and_named():
    before = library_file().stat().st_mtime_ns
    run = build("no-such-compiler")
    assert run.returncode == 0 and library_file().name in run.stdout
    assert library_file().stat().st_mtime_ns == before


@pytest.mark.parametrize("compiler, words", [
    ("no-such-compiler", "error: no-such-compiler cannot be found. Install: sudo apt-get install g++"),
    ("false", "error: false could not compile the operations"),
    ("false -O2", "error: false -O2 could not compile the operations"),
])
def test_a_build_that_fails_says_why(tmp_path, compiler, words):
    """With a source of its own, which nothing is built of."""
    sources = [ROOT / "FasterRCNN" / "__init__.py", ROOT / "FasterRCNN" / "ops" / "__init__.py",
               *(ROOT / "FasterRCNN" / "ops" / "kernels").glob("*.[cph]*"), ROOT / "tools" / "build_kernels.py"]
    for file in sources:
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    run = subprocess.run([sys.executable, str(tmp_path / "tools" / "build_kernels.py")], capture_output=True, text=True,
                         env={**os.environ, "CXX": compiler})
    assert run.returncode == 1 and words in run.stderr and "Traceback" not in run.stderr
    assert not list(tmp_path.rglob("*.so")) and not list(tmp_path.rglob("*.part"))
