"""demo/predict.ipynb, run from top to bottom as a user would."""

import base64
import json
from pathlib import Path

import cv2
import nbformat
import numpy as np
from nbclient import NotebookClient
from tiny_model import photos, write_model

NOTEBOOK = Path(__file__).resolve().parent.parent / "demo" / "predict.ipynb"


def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    for number, image in enumerate(photos()):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    monkeypatch.setenv("MODEL", str(write_model(tmp_path / "model.npz")))
    monkeypatch.setenv("PHOTOS", str(tmp_path))
    monkeypatch.setenv("CONFIDENCE", "0.2")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "3 classes: circle, square, triangle" in printed
    assert "of at least" not in printed and "ms a photo, 1 at a time" in printed
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3  # detections, masks, thresholds
    for picture in pictures:
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR)
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def test_it_is_stored_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
