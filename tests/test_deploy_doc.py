"""The code of docs/deploy.md does what the page says."""

import base64
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from bright_box import CATEGORIES, PHOTOS, WEIGHTS, BrightBoxDetector

from FasterRCNN.engine import export, serving_graph
from FasterRCNN.engine.predictor import build_constant_graph
from FasterRCNN.engine.serving_resize import Resizing
from FasterRCNN.imaging import postprocess

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def block(beginning):
    (found,) = [code for code in BLOCKS if code.startswith(beginning)]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's exported/1, of a detector that finds what is bright."""
    network, _, _ = build_constant_graph(BrightBoxDetector(), WEIGHTS, batch_size=None)
    serving = serving_graph.build_serving_graph(network, Resizing(64, 120), pad_multiple=32)
    root = tmp_path_factory.mktemp("deploy")
    export.write_saved_model(serving, root / "exported" / "1", CATEGORIES)
    cv2.imwrite(str(root / "photo.jpg"), PHOTOS[0][0])
    return root


@pytest.fixture(scope="module")
def address(folder):
    (folder / "server.py").write_text(block("# server.py"))
    command = [sys.executable, "server.py", "exported/1", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.terminate()


def post(address, instances):
    body = json.dumps({"signature_name": "encoded", "instances": instances}).encode()
    with urllib.request.urlopen(urllib.request.Request(address, body), timeout=120) as answer:
        return json.load(answer)["predictions"]


def test_the_server_answers_for_each_photo(address):
    photos = [cv2.imencode(".png", photo)[1].tobytes() for photo, _ in PHOTOS]
    predictions = post(address, [{"b64": base64.b64encode(photo).decode()} for photo in photos])
    assert len(predictions) == len(PHOTOS)
    for found, (_, truth) in zip(predictions, PHOTOS):
        assert found["num_detections"] == (2 if truth else 0)
        if truth:
            np.testing.assert_allclose(found["boxes"][0], truth, atol=4)
            assert found["labels"][:2] == [2, 1] and np.shape(found["masks"]) == (3, 4, 4)


def test_the_server_says_what_is_wrong(address):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(address, [{"b64": base64.b64encode(b"no image").decode()}])
    assert caught.value.code == 400 and "error" in json.load(caught.value)


def test_the_lines_in_python(folder):
    program = f"import tensorflow as tf\n{block('model = tf.saved_model')}"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\[", done.stdout)) == 3  # an array of two boxes


@pytest.mark.parametrize("box", [(3.3, 4.7, 30.2, 22.9), (-2.0, 10.0, 18.5, 60.0), (5.0, 5.0, 5.0, 9.0)])
def test_the_paste_is_the_projects(box, tmp_path):
    (tmp_path / "page_paste.py").write_text("import numpy as np\n\n\n" + block("def paste_mask"))
    sys.path.insert(0, str(tmp_path))
    try:
        import page_paste
    finally:
        sys.path.remove(str(tmp_path))
    mask, box = np.random.default_rng(0).random((14, 14), np.float32), np.float32(box)
    expected = postprocess.paste_mask(mask, box, 50, 40)
    assert (page_paste.paste_mask(mask, box, 50, 40) != expected).sum() <= 1
