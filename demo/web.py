#!/usr/bin/env python3
"""A page for this machine's browser: drop a photo and see what a trained model finds in it.

Listens on 127.0.0.1 alone, calls no other host, and keeps photos no longer than it runs. Gradio is an optional extra:
pip install --requirement requirements-demo.txt.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import add_config_arguments, run_command  # noqa: E402

import numpy as np  # noqa: E402
from pycocotools import mask as mask_utils  # noqa: E402

from FasterRCNN.structures import BoxList  # noqa: E402

if TYPE_CHECKING:
    import gradio

    from predictor import Predictor

HOST = "127.0.0.1"
INVITATION = "Drop a photo on the left."
COLUMNS = ("class", "score", "x1", "y1", "x2", "y2", "mask area")
SECONDS_KEPT = 600


Found = tuple[np.ndarray, BoxList]  # a photo (BGR) and all its detections


def detect(model: Predictor, photo: np.ndarray | None) -> Found | None:
    """All that the model finds in a photo of the page, uint8 H×W×3 RGB; None for none."""
    if photo is None:
        return None
    image = np.ascontiguousarray(photo[..., ::-1])
    return image, model.compute_prediction(image)


def show(
    model: Predictor, found: Found | None, confidence: float, classes: Sequence[str], with_masks: bool
) -> tuple[np.ndarray | None, list[list], str]:
    """What the page shows of it: the drawn picture (RGB), a row of COLUMNS for each detection, and a line of text.

    classes: names of the only ones to show; of none, all are shown.
    """
    if found is None:
        return None, [], INVITATION
    image, detections = found
    chosen = model.select_top_predictions(detections, confidence)
    if classes:
        wanted = [label for label, name in enumerate(model.class_names, start=1) if name in classes]
        chosen = chosen[np.isin(chosen.get_field("labels"), wanted)]
    if not with_masks:
        chosen = chosen.copy_with_fields(["scores", "labels"])
    noun = "object" if len(chosen) == 1 else "objects"
    line = f"**{len(chosen)} {noun}** of a score of at least {confidence:.2f}"
    return model.draw(image, chosen)[..., ::-1], table(model, chosen), line


def table(model: Predictor, detections: BoxList) -> list[list]:
    """A row of COLUMNS for each detection, in pixels of the photo."""
    areas = [None] * len(detections)
    if detections.has_field("masks"):
        areas = [int(mask_utils.area(rle)) for rle in detections.get_field("masks").segmentations]
    labels, scores = map(detections.get_field, ("labels", "scores"))
    return [
        [model.categories.name_of_label(label), round(score, 3), *(round(side, 1) for side in box), area]
        for label, score, box, area in zip(labels.tolist(), scores.tolist(), detections.boxes.tolist(), areas)
    ]


def build_page(model: Predictor, *, confidence: float = 0.7) -> gradio.Blocks:
    """The page, ready to `launch`; model: with a confidence threshold of 0, so that the page can choose any."""
    import gradio as gr

    with gr.Blocks(title="Detections", analytics_enabled=False, delete_cache=(60, SECONDS_KEPT)) as page:
        found = gr.State(time_to_live=SECONDS_KEPT)
        with gr.Row():
            with gr.Column(scale=2):
                photo = gr.Image(type="numpy", image_mode="RGB", sources=["upload", "clipboard"], label="Photo")
                least = gr.Slider(0.0, 1.0, value=confidence, step=0.01, label="Confidence")
                classes = gr.Dropdown(list(model.class_names), multiselect=True, label="Classes (none: all)")
                masks = gr.Checkbox(value=model.with_masks, visible=model.with_masks, label="Masks")
            with gr.Column(scale=3):
                picture = gr.Image(format="png", interactive=False, label="Detections")
                line = gr.Markdown(INVITATION)
                rows = gr.Dataframe(headers=list(COLUMNS), interactive=False, label="Best first, in the photo's pixels")
        # The network runs once a photo; the controls only choose among what it found.
        shown = partial(show, model), [found, least, classes, masks], [picture, rows, line]
        photo.change(partial(detect, model), photo, found, api_visibility="private").then(*shown)
        for control in (least, classes, masks):
            control.change(*shown, show_progress="hidden")
    return page


def main() -> int:
    """Serves the page until it is interrupted."""
    parser = argparse.ArgumentParser(description="Serve a page where one drops a photo and sees a model's detections.")
    parser.add_argument("--load", required=True, metavar="MODEL", help="run folder, checkpoint or .npz file")
    parser.add_argument("--port", type=int, default=7860, help=f"on {HOST} (default: %(default)s)")
    parser.add_argument("--confidence", type=float, default=0.7, help="where the slider starts (default: %(default)s)")
    parser.add_argument(
        "--min-image-size", type=int, metavar="PIXELS", help="of a photo's shorter side (default: the model's own)"
    )
    add_config_arguments(parser)
    args = parser.parse_args()
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(f"the page needs Gradio: {sys.executable} -m pip install --requirement requirements-demo.txt")
    from predictor import Predictor

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder goes however the page is ended
    model = Predictor(args.load, 0.0, args.min_image_size, config=args.config, config_file=args.config_file)
    with model, tempfile.TemporaryDirectory(prefix="detections-") as folder:
        # Read when Gradio is imported: where uploads lie until the page ends, and no calls to anyone.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        page = build_page(model, confidence=args.confidence)
        page.launch(
            server_name=HOST,
            server_port=args.port,
            share=False,
            run_history=False,  # it would keep photos in the browser
            enable_monitoring=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
        print(f"http://{HOST}:{args.port} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
