"""A trained model as files for other programs: what predict.py does for --export-saved-model and its like.

TensorFlow is imported where a model is loaded, not before.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from FasterRCNN.datasets.shapes import draw_shapes_dataset
from FasterRCNN.imaging.read import JPEG_START, read_image
from inference import build_predictor, load_model
from media import expand_inputs

if TYPE_CHECKING:
    from config import Config

    from FasterRCNN.engine.export_check import CheckPhoto
    from FasterRCNN.engine.serving_graph import ServingGraph

__all__ = ["add_export_arguments", "export_model"]

DRAWN_SIZES = ((480, 360), (300, 480), (480, 480))  # (h, w) of the photos drawn for the check
MOST_PHOTOS = 16  # for the check


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of predict.py that export a model."""
    parser.add_argument("--export-saved-model", metavar="DIR", help="write a SavedModel (docs/deploy.md)")
    parser.add_argument("--export-frozen", metavar="FILE.pb", help="write a frozen TensorFlow graph")
    parser.add_argument("--export-onnx", metavar="FILE.onnx", help="write an ONNX model")
    parser.add_argument(
        "--export-for",
        choices=["cpu", "gpu"],
        help="what a SavedModel or frozen graph will run on (like this machine); it runs on the other too, slower",
    )


def export_model(
    load_path: str | Path,
    photos: Sequence[str] = (),
    *,
    overrides: Sequence[str] = (),
    config_file: str | Path | None = None,
    saved_model: str | None = None,
    frozen: str | None = None,
    onnx: str | None = None,
    machine: str | None = None,
) -> int:
    """Writes a model in each form that a path is given for, and prints how it compares with the predictor on photos.

    photos: files, folders, globs; pictures are drawn where none is named. machine: "cpu" or "gpu", what a SavedModel or
    frozen graph is to run on; by default "gpu" where there is one. Returns the command's exit status. Raises
    ValueError, and keeps nothing of that form, when the results differ by more than the precision explains.
    """
    from FasterRCNN.engine import export, onnx_export, serving_graph
    from FasterRCNN.engine.compat import quieten
    from FasterRCNN.engine.export_check import TOLERANCES, check_export, check_free, kept_if_good
    from FasterRCNN.engine.predictor import build_constant_graph
    from FasterRCNN.engine.serving_resize import Resizing
    from FasterRCNN.modeling.build import build_detector
    from FasterRCNN.ops.roi_align import portable_form

    quieten()
    for target in filter(None, (saved_model, frozen, onnx)):
        check_free(target)
    if onnx:
        onnx_export.check_packages()
    check_photos = read_photos(photos)
    cfg, weights = load_model(load_path, overrides, config_file)
    check_config(cfg, for_onnx=bool(onnx))
    resizing = Resizing(
        cfg.PREPROC.TEST_SHORT_EDGE_SIZE, cfg.PREPROC.MAX_SIZE, cfg.PREPROC.RESIZE, cfg.PREPROC.SIZE_ROUNDING
    )

    def build(make: Callable, batch_size: int | None, *, form: str) -> ServingGraph:
        detector = build_detector(cfg, form=form)
        network, _, _ = build_constant_graph(
            detector,
            weights,
            batch_size=batch_size,
            image_dtype=resizing.dtype.as_numpy_dtype,
            config=cfg.to_dict(),
        )
        return make(
            network, resizing, pad_multiple=detector.pad_multiple, inclusive_boxes=cfg.ROIALIGN.INCLUSIVE
        )

    def keep(graph: ServingGraph, target: str, write: Callable, opened: Callable, **options: bool) -> None:
        with kept_if_good(target) as place:
            write(graph, place, predictor.categories)
            with opened(place) as run:
                tolerance, alone = TOLERANCES[cfg.TEST.PRECISION], cfg.RPN.FIT_STRIDES
                print(check_export(run, predictor, check_photos, tolerance=tolerance, alone=alone, **options))
        print(f"written: {target}\n")

    with build_predictor(cfg, weights, source=str(load_path)) as predictor:
        if saved_model or frozen:
            graph = build(serving_graph.build_serving_graph, None, form=portable_form(machine))
        if saved_model:
            keep(graph, saved_model, export.write_saved_model, export.open_saved_model)
        if frozen:
            keep(graph, frozen, export.write_frozen, lambda file: export.open_frozen(file, graph.outputs))
        if onnx:
            graph = build(serving_graph.build_plain_graph, 1, form="crops")  # ONNX has no sparse matrices
            keep(graph, onnx, onnx_export.write_onnx, onnx_export.open_onnx, takes_encoded=False)
    return 0


def check_config(cfg: Config, *, for_onnx: bool) -> None:
    """ValueError for what an exported model, or one in ONNX, cannot do."""
    if for_onnx and cfg.TEST.PRECISION != "fp32":
        raise ValueError(f"TEST.PRECISION is {cfg.TEST.PRECISION}: ONNX is written in fp32 only")
    if for_onnx and cfg.ROIALIGN.SAMPLES == 0:
        raise ValueError(
            "ROIALIGN.SAMPLES is 0, as many samples as a bin spans cells: ONNX needs their number. Write a SavedModel "
            "or frozen graph, or set ROIALIGN.SAMPLES=2, which moves detections a little"
        )
    if cfg.TEST.AUGMENT_SCALES or cfg.TEST.AUGMENT_FLIPS:
        raise ValueError(
            "an exported model looks at each photo once: leave test-time augmentation out, with --config "
            "TEST.AUGMENT_SCALES=[] TEST.AUGMENT_FLIPS=[]"
        )


def read_photos(inputs: Sequence[str]) -> list[CheckPhoto]:
    """The photos that are named, or drawn pictures. JPEGs keep their files' bytes, the rest becomes PNG."""
    from FasterRCNN.engine.export_check import CheckPhoto

    if inputs:
        files = expand_inputs(inputs)
        if len(files) > MOST_PHOTOS:
            print(f"the export is compared on the first {MOST_PHOTOS} of {len(files)} photos")
        files = files[:MOST_PHOTOS]
        photos = [(Path(file).name, read_image(file), Path(file).read_bytes()) for file in files]
    else:
        photos = [(f"drawn {picture.shape[1]}×{picture.shape[0]}", picture, b"") for picture in draw_pictures()]
    return [
        CheckPhoto(name, picture, data if data.startswith(JPEG_START) else cv2.imencode(".png", picture)[1].tobytes())
        for name, picture, data in photos
    ]


def draw_pictures() -> list[np.ndarray]:
    """A picture of shapes of each of DRAWN_SIZES."""
    with tempfile.TemporaryDirectory() as folder:
        draw_shapes_dataset(folder, num_train=1, num_val=len(DRAWN_SIZES), size=max(map(max, DRAWN_SIZES)))
        files = sorted(Path(folder, "val2017").iterdir())
        return [read_image(file)[:h, :w] for file, (h, w) in zip(files, DRAWN_SIZES, strict=True)]
