"""The ONNX export, run by ONNX Runtime, beside TensorFlow's results."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import C4, random_image, reference_value, tiny_config

from FasterRCNN.engine import onnx_export, serving_graph
from FasterRCNN.engine.predictor import build_constant_graph
from FasterRCNN.engine.serving_resize import Resizing
from FasterRCNN.modeling.build import build_detector
from FasterRCNN.structures import Categories

ROOT = Path(__file__).resolve().parent.parent
CATEGORIES = Categories(names=["cat", "dög", "sofa"], ids=[17, 3, 90])
MISSING = [name for name in onnx_export.PACKAGES if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here: make export-extras")
MODELS = {
    "mask_fpn": {"MODE_MASK": True},
    "mask_c4": {"MODE_MASK": True, **C4},
}


def plain_graph(changes):
    cfg = tiny_config(changes)
    detector = build_detector(cfg, form="crops")
    with tf.Graph().as_default():
        detector.detect(tf.placeholder(tf.uint8, [1, None, None, 3]), tf.placeholder(tf.int32, [1, 2]))
        weights = {v.op.name: reference_value(v.op.name, v.shape.as_list()) for v in tf.global_variables()}
    network, _, _ = build_constant_graph(detector, weights, batch_size=1)
    return serving_graph.build_plain_graph(network, Resizing(96, 128), pad_multiple=detector.pad_multiple)


@needs_onnx
@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_finds_what_tensorflow_finds(name, tmp_path):
    """Photos of several sizes, padded and not, and several at once."""
    plain, file = plain_graph(MODELS[name]), tmp_path / "model.onnx"
    onnx_export.write_onnx(plain, file, CATEGORIES)
    batches = [[random_image(90, 120, 0)], [random_image(200, 180, 1)], [random_image(33, 50, 5)],
               [random_image(70, 128, seed) for seed in (2, 3, 4)]]
    with onnx_export.open_onnx(file) as run, tf.Session(graph=plain.graph) as session:
        for photos in batches:
            found = run(images=np.stack(photos))
            for i, photo in enumerate(photos):
                expected = session.run(plain.outputs, {plain.inputs["images"]: photo[None]})
                assert set(found) == set(expected)
                np.testing.assert_array_equal(found["num_detections"][i], expected["num_detections"][0])
                np.testing.assert_array_equal(found["labels"][i], expected["labels"][0])
                for output, atol in (("boxes", 1e-3), ("scores", 1e-3), ("masks", 1e-2)):
                    if output in expected:
                        np.testing.assert_allclose(found[output][i], expected[output][0], atol=atol)


def run_the_lines_of_the_page(folder):
    """What docs/deploy.md's lines find in a black photo by the model.onnx of a folder: num_detections."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(session = onnxruntime.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    start = "import numpy as np\nimport onnxruntime\nphoto_rgb = np.zeros([90, 120, 3], np.uint8)\n"
    program = f"{start}{lines}print(found['num_detections'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_onnx
def test_nothing_found_and_what_the_metadata_tell(tmp_path):
    import onnx

    plain, file = plain_graph({**MODELS["mask_c4"], "TEST.RESULT_SCORE_THRESH": 0.9999999}), tmp_path / "model.onnx"
    onnx_export.write_onnx(plain, file, CATEGORIES)
    with onnx_export.open_onnx(file) as run:
        found = run(images=np.zeros([2, 90, 120, 3], np.uint8))
    assert found["num_detections"].tolist() == [0, 0] and not any(found[name].any() for name in found)
    assert run_the_lines_of_the_page(tmp_path) == "[0]"
    properties = {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}
    assert json.loads(properties["categories"])[1] == {"label": 2, "id": 3, "name": "dög"}
    assert properties["colours"] == "RGB"


@needs_onnx
def test_the_folders_that_tf2onnx_installs_do_not_hide_ours():
    """Its wheel has tools/ and tests/ at the top of site-packages."""
    import tf2onnx  # noqa: F401

    import tools
    assert Path(tools.__file__).parent == ROOT / "tools"


def test_what_to_install_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_export, "PACKAGES", ("json", "no_such_package"))
    with pytest.raises(ValueError, match="^ONNX needs no_such_package: .* --requirement requirements-export.txt"):
        onnx_export.write_onnx(None, tmp_path / "model.onnx", CATEGORIES)
