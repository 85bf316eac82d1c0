#!/usr/bin/env python3
"""Photos and videos to drawn pictures and JSON, and data sets to COCO numbers.

TensorFlow is imported where a model is loaded, not before.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from config import add_config_arguments, run_command

from export import add_export_arguments, export_model
from FasterRCNN.datasets.shapes import draw_shapes_dataset
from FasterRCNN.imaging.read import read_image
from inference import check_writable, evaluate_sets, load_predictor
from media import PredictedFiles, Selection, expand_inputs, labels_of, predict_files

DRAWN_PHOTOS, DRAWN_SIZE = 8, 640


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """What the command line says of pictures and JSON; None where it says nothing.

    confidence: least score drawn. top_k: most detections of an image. classes: names. min_image_size: pixels.
    """

    confidence: float | None = None
    top_k: int | None = None
    classes: Sequence[str] | None = None
    min_image_size: int | None = None


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what ./predict.py and ./train.py --predict share."""
    parser.add_argument(
        "--output-dir", default="predictions", metavar="DIR", help="where pictures, videos and JSON are written"
    )
    parser.add_argument("--no-show", action="store_true", help="open no window even where there is a display")
    add_drawing_arguments(parser)
    parser.add_argument("--top-k", type=number_from(1, int), metavar="N", help="keep the N best detections of an image")
    parser.add_argument(
        "--classes", type=lambda text: text.split(","), metavar="NAME,NAME", help="keep detections of these classes"
    )


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every command that draws has: --confidence and --min-image-size."""
    parser.add_argument(
        "--confidence",
        type=number_from(0, float, 1),
        metavar="SCORE",
        help="draw detections of at least this score (default: the model's TEST.RESULT_SCORE_THRESH_VIS)",
    )
    parser.add_argument(
        "--min-image-size",
        type=number_from(1, int),
        metavar="PIXELS",
        help="resize the shorter side to this (default: the model's PREPROC.TEST_SHORT_EDGE_SIZE)",
    )


def number_from(least: float, kind: Callable[[str], float], most: float = float("inf")) -> Callable[[str], float]:
    """For argparse: a number in these bounds."""

    def parse(text: str) -> float:
        try:
            if least <= (value := kind(text)) <= most:
                return value
        except ValueError:
            pass
        bounds = f"from {least} to {most}" if most < float("inf") else f"of at least {least}"
        raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' * (kind is int)}number {bounds}")

    return parse


def picture_options(args: argparse.Namespace) -> PictureOptions:
    """The PictureOptions of `add_predict_arguments`."""
    return PictureOptions(args.confidence, args.top_k, args.classes, args.min_image_size)


def run_prediction(
    load_path: str | Path,
    *,
    overrides: Sequence[str] = (),
    config_file: str | Path | None = None,
    inputs: Sequence[str] = (),
    evaluate: str | None = None,
    output_dir: str | Path = "predictions",
    options: PictureOptions = PictureOptions(),
    show: bool = True,
) -> int:
    """Loads a model, predicts on the inputs and evaluates DATA.VAL, each if asked to; the command's exit status."""
    files = expand_inputs(inputs)
    if evaluate:
        check_writable(evaluate)
    predictor, cfg = load_predictor(load_path, [*overrides, *size_override(options.min_image_size)], config_file)
    errors: list[str] = []
    with predictor:
        if files:
            threshold = cfg.TEST.RESULT_SCORE_THRESH_VIS if options.confidence is None else options.confidence
            labels = labels_of(options.classes, predictor.categories) if options.classes else None
            selection = Selection(threshold, options.top_k, labels)
            done = predict_files(predictor, files, output_dir, selection=selection, show=show)
            errors += done.failures.values()
            announce(done)
        if evaluate:
            errors += evaluate_sets(predictor, cfg, evaluate)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def run_benchmark(
    load_path: str | Path,
    inputs: Sequence[str] = (),
    *,
    overrides: Sequence[str] = (),
    config_file: str | Path | None = None,
) -> int:
    """Prints how long each part of prediction takes on photos, without any on drawn ones; the command's exit status."""
    files = expand_inputs(inputs)
    predictor, cfg = load_predictor(load_path, overrides, config_file)
    from FasterRCNN.engine.benchmark import format_times, time_prediction

    with predictor, tempfile.TemporaryDirectory() as folder:
        if not files:
            draw_shapes_dataset(folder, num_train=DRAWN_PHOTOS, num_val=1, size=DRAWN_SIZE)
            files = expand_inputs([str(Path(folder, "train2017"))])
        times = time_prediction(predictor, [partial(read_image, file) for file in files])
    print(f"\n{format_times(times)}, TEST.PRECISION={cfg.TEST.PRECISION}")
    return 0


def size_override(min_image_size: int | None) -> list[str]:
    """--min-image-size as a change to the config."""
    return [] if min_image_size is None else [f"PREPROC.TEST_SHORT_EDGE_SIZE={min_image_size}"]


def announce(done: PredictedFiles) -> None:
    """Says what was written where."""
    for file, path in (done.pictures | done.videos).items():
        print(f"{file} -> {path}")
    if done.detections_file:
        print(f"detections of all photos: {done.detections_file} (COCO: coco_results.json, coco_images.json)")


def check_combination(parser: argparse.ArgumentParser, args: argparse.Namespace, *, is_export: bool) -> None:
    """Ends the command, saying why, where its options do not go together."""
    if sum(map(bool, (args.benchmark, args.evaluate, is_export))) > 1:
        parser.error("--benchmark, --evaluate and exports are runs of their own: give one of them")
    if args.export_for and not (args.export_saved_model or args.export_frozen):
        parser.error("--export-for is of --export-saved-model and --export-frozen: give one of them too")
    if not (args.inputs or args.evaluate or args.benchmark or is_export):
        parser.error("nothing to do: name photos or videos, --evaluate OUT.json, --benchmark, or an export")
    drawing = ("output_dir", "no_show", "confidence", "top_k", "classes")
    given = [f"--{name.replace('_', '-')}" for name in drawing if getattr(args, name) != parser.get_default(name)]
    if given and (is_export or args.benchmark or not args.inputs):
        run = "an export" if is_export else "--benchmark" if args.benchmark else "--evaluate without photos"
        parser.error(
            f"{', '.join(given)}: {run} draws nothing; what a model finds is chosen by --config "
            "TEST.RESULT_SCORE_THRESH=… TEST.RESULTS_PER_IM=…"
        )


def main() -> int:
    """Predicts on photos and videos, or evaluates a trained model."""
    parser = argparse.ArgumentParser(
        description="Draw a trained model's detections on photos and videos, or evaluate it on the sets of DATA.VAL."
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="photos, videos, folders of them, quoted globs, streams (rtsp://..., http://...), a camera's number",
    )
    parser.add_argument("--load", required=True, metavar="MODEL", help="run folder, checkpoint or .npz file")
    parser.add_argument("--evaluate", metavar="OUT.json", help="evaluate DATA.VAL and write COCO results here")
    parser.add_argument(
        "--benchmark",
        action="store_true",
        help="time each part of prediction on the photos (without any: on drawn ones), TEST.IMS_PER_GPU at a time",
    )
    add_export_arguments(parser)
    add_predict_arguments(parser)
    add_config_arguments(parser)
    args = parser.parse_args()
    exports = {name: getattr(args, f"export_{name}") for name in ("saved_model", "frozen", "onnx")}
    check_combination(parser, args, is_export=any(exports.values()))
    changes = [*args.config, *size_override(args.min_image_size)]
    if args.benchmark:
        return run_benchmark(args.load, args.inputs, overrides=changes, config_file=args.config_file)
    if any(exports.values()):
        return export_model(
            args.load, args.inputs, overrides=changes, config_file=args.config_file, machine=args.export_for, **exports
        )
    return run_prediction(
        args.load,
        overrides=args.config,
        config_file=args.config_file,
        inputs=args.inputs,
        evaluate=args.evaluate,
        output_dir=args.output_dir,
        options=picture_options(args),
        show=not args.no_show,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
