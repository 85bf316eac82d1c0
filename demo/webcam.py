#!/usr/bin/env python3
"""A camera, a video or a stream with its objects drawn as it runs, in a window or into a file.

    demo/webcam.py --load train_log/maskrcnn                                 the first camera, in a window
    demo/webcam.py --load train_log/maskrcnn --source street.mp4 --output drawn.mp4

Of a camera or a stream the newest frame is taken, so that the picture does not fall behind; of a file, each. The window
closes with q or Escape. Without a display no window is opened, and --output says where to write; Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import add_config_arguments, run_command  # noqa: E402

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from FasterRCNN.imaging.video import VideoReader, VideoWriter  # noqa: E402
from FasterRCNN.imaging.visualize import draw_caption, draw_detections  # noqa: E402
from FasterRCNN.imaging.window import Window, has_display, open_window  # noqa: E402
from inference import load_predictor  # noqa: E402
from predict import add_drawing_arguments, size_override  # noqa: E402

if TYPE_CHECKING:
    from FasterRCNN.engine.predictor import Predictor

RATE_WINDOW = 20  # frames over which frames per second are measured


def drawn_frames(
    predictor: Predictor, reader: VideoReader, score_threshold: float
) -> Iterator[tuple[float, np.ndarray]]:
    """(time, picture) of each frame: boxes, masks and, in the corner, the frames shown in a second."""
    ends = deque([time.monotonic()], RATE_WINDOW + 1)
    for at, frame in reader:
        (detections,) = predictor.predict([frame])
        picture = draw_detections(frame, detections, predictor.categories, score_threshold=score_threshold)
        ends.append(time.monotonic())
        rate = (len(ends) - 1) / max(ends[-1] - ends[0], 1e-6)
        yield at, draw_caption(picture, f"{rate:.1f} frames/s")


def run(
    predictor: Predictor, reader: VideoReader, *, score_threshold: float, window: Window | None, output: Path | None
) -> int:
    """Shows and writes until the source ends, the window is closed or Ctrl-C; the number of pictures made."""
    made = 0
    with ExitStack() as stack:
        writer = stack.enter_context(VideoWriter(output, reader.fps)) if output else None
        bar = stack.enter_context(tqdm(desc=reader.title, total=reader.num_frames, unit="frame", disable=None))
        stack.enter_context(suppress(KeyboardInterrupt))
        for at, picture in drawn_frames(predictor, reader, score_threshold):
            if writer:
                writer.write(picture, at)
            made += 1
            bar.update()
            if window:
                window.update(picture)
                if not window.is_open:
                    break
        else:
            if problem := reader.shortfall():
                raise ValueError(f"{problem}; {made} are written" if output and made else problem)
    return made


def main() -> int:
    """Draws what a camera, a video or a stream shows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--load", required=True, metavar="MODEL", help="run folder, checkpoint or .npz file")
    parser.add_argument("--source", default="0", help="a camera's number (0), a video file or a URL")
    parser.add_argument("--output", type=Path, metavar="OUT.mp4", help="write the drawn video here (.mp4, .webm, .avi)")
    add_drawing_arguments(parser)
    add_config_arguments(parser)
    args = parser.parse_args()
    if not has_display() and args.output is None:
        parser.error("there is no display to show a window on: say with --output OUT.mp4 where to write the video")
    with VideoReader(args.source) as reader, ExitStack() as stack:
        overrides = [*args.config, *size_override(args.min_image_size), "TEST.IMS_PER_GPU=1"]
        predictor, cfg = load_predictor(args.load, overrides, args.config_file)
        stack.enter_context(predictor)
        window = open_window(args.output.parent if args.output else Path())
        if window is None and args.output is None:
            raise ValueError("no window can be opened: say with --output OUT.mp4 where to write the video")
        if window:
            stack.enter_context(window)
        threshold = cfg.TEST.RESULT_SCORE_THRESH_VIS if args.confidence is None else args.confidence
        made = run(predictor, reader, score_threshold=threshold, window=window, output=args.output)
    print(f"{made} frames of {reader.title}" + (f" -> {args.output}" if args.output else ""))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
