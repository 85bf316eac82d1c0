"""The page of demo/web.py: its functions, and the page itself in a headless browser where there is one."""

import contextlib
import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from tiny_model import CLASS_NAMES, photos, write_model

from demo import web
from predictor import Predictor

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 300  # seconds, of a machine that does other things too


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("web") / "model.npz")


@pytest.fixture(scope="module")
def model(model_file):
    with Predictor(model_file, 0.0, None) as predictor:
        yield predictor


def test_picture_and_table_are_those_of_the_predictor(model):
    image = photos()[0]
    everything = model.compute_prediction(image)
    threshold = float(everything.get_field("scores")[5])
    picture, rows, line = web.show(model, web.detect(model, image[..., ::-1]), threshold, [], True)
    wanted = everything[:6]
    np.testing.assert_array_equal(picture[..., ::-1], model.draw(image, wanted))
    assert line == f"**6 objects** of a score of at least {threshold:.2f}"
    bitmaps = np.asarray(wanted.get_field("masks"))
    for row, box, score, label, bitmap in zip(
        rows, wanted.boxes, wanted.get_field("scores"), wanted.get_field("labels"), bitmaps, strict=True
    ):
        shown = dict(zip(web.COLUMNS, row, strict=True))
        assert shown["class"] == CLASS_NAMES[label - 1] and shown["mask area"] == bitmap.sum()
        assert shown["score"] == pytest.approx(score, abs=1e-3)
        np.testing.assert_allclose([shown[side] for side in ("x1", "y1", "x2", "y2")], box, atol=0.06)


def test_the_controls_choose_classes_and_masks(model):
    found = web.detect(model, photos()[1][..., ::-1])
    everything, some = (web.show(model, found, 0.0, classes, True)[1] for classes in ([], ["square"]))
    assert {row[0] for row in everything} > {"square"}
    assert some == [row for row in everything if row[0] == "square"]
    with_masks, without = (web.show(model, found, 0.0, [], masks) for masks in (True, False))
    assert (with_masks[0] != without[0]).any()
    assert [row[:-1] for row in without[1]] == [row[:-1] for row in with_masks[1]]
    assert {row[-1] for row in without[1]} == {None}


def test_nothing_to_show(model):
    assert web.detect(model, None) is None
    assert web.show(model, None, 0.5, [], True) == (None, [], web.INVITATION)
    image = photos()[0]
    picture, rows, line = web.show(model, web.detect(model, image[..., ::-1]), 1.0, [], True)
    assert rows == [] and line == "**0 objects** of a score of at least 1.00"
    np.testing.assert_array_equal(picture[..., ::-1], model.draw(image, model.compute_prediction(image)[:0]))


def test_without_gradio_one_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["web.py", "--load", "model"])
    assert web.run_command(web.main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the page needs Gradio: ") and line.endswith("requirements-demo.txt")


def free_port():
    with socket.socket() as listener:
        listener.bind((web.HOST, 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def served(model_file, folder):
    """The address of the command's page; `folder`: where it may put temporary files."""
    port = free_port()
    options = ["--load", model_file, "--port", str(port), "--confidence", "0.1"]
    command = [sys.executable, ROOT / "demo" / "web.py", *options]
    with open(folder / "log.txt", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=web.os.environ | {"TMPDIR": str(folder)})
    try:
        give_up = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection((web.HOST, port)):
                break
            said = (folder / "log.txt").read_text()
            assert server.poll() is None and time.monotonic() < give_up, said
            time.sleep(0.2)
        yield f"http://{web.HOST}:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(PATIENCE)


@pytest.fixture
def browser():
    pytest.importorskip("gradio", reason="no Gradio here: requirements-demo.txt")
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright here: pip install playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}")
    with api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


def test_a_photo_dropped_in_a_browser(browser, model_file, model, tmp_path):
    from playwright.sync_api import expect

    image = photos()[0]
    cv2.imwrite(str(tmp_path / "photo.png"), image)
    picture, rows, _ = web.show(model, web.detect(model, image[..., ::-1]), 0.1, [], True)
    with served(model_file, tmp_path) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(1000 * PATIENCE)
        expect.set_options(timeout=1000 * PATIENCE)
        asked = set()
        page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
        page.goto(address)
        page.get_by_text(web.INVITATION).wait_for()
        page.locator("input[type=file]").first.set_input_files(tmp_path / "photo.png")
        page.get_by_text(f"{len(rows)} objects", exact=True).wait_for()
        expect(page.get_by_test_id("cell-0-0")).to_contain_text(rows[0][0])
        sources = page.locator("img").evaluate_all("images => images.map(image => image.src)")
        shown = [page.request.get(source).body() for source in sources if source.startswith("http")]
        shown = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in shown]
        assert any(np.array_equal(one, picture[..., ::-1]) for one in shown)
        page.get_by_test_id("number-input").fill("0.99")
        page.get_by_test_id("number-input").press("Enter")
        page.get_by_text("0 objects", exact=True).wait_for()
        assert asked - {None} == {web.HOST}
    assert not list(tmp_path.glob("detections-*"))
