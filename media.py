"""Photos and videos through a model: drawn pictures, drawn videos, and JSON of what was found.

Of each photo PHOTO, a picture PHOTO_detected.jpg (.png for a .png) and its detections, PHOTO_detected.json; of all
photos:
- detections.json: a list of the photos' JSON: image_id, file_name, height, width, detections.
- coco_results.json: COCO's results format, image ids as in detections.json.
- coco_images.json: the images and categories that it speaks of. With pycocotools,
  COCO("coco_images.json").loadRes("coco_results.json").

Of each video a drawn one, VIDEO_detected.mp4, at its frame rate, and VIDEO_detected.jsonl: a line for each frame, with
frame, time (seconds), height, width and detections.

A detection has the class's name, and category_id, bbox (x, y, width, height), score and segmentation (compressed RLE)
as in COCO's results, in the photo's pixels.
"""

from __future__ import annotations

import difflib
import glob
import itertools
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from eval import results_to_json, write_json
from FasterRCNN.imaging.read import IMAGE_SUFFIXES, read_image
from FasterRCNN.imaging.video import VIDEO_SUFFIXES, VideoReader, VideoWriter, is_video, video_title
from FasterRCNN.imaging.visualize import draw_detections
from FasterRCNN.imaging.window import open_window
from FasterRCNN.structures import BoxList, Categories
from inference import detect_files, unique_names

if TYPE_CHECKING:
    from FasterRCNN.engine.predictor import Predictor

logger = logging.getLogger(__name__)

DRAWING_THREADS = 2


# ---------------------------------------------------------------- which detections


@dataclass(frozen=True)
class Selection:
    """Which detections are drawn and written.

    score_threshold: of what is drawn; JSON holds the lower scores too. top_k: the most of an image, those of the
    highest scores. labels: of the classes wanted; None for all.
    """

    score_threshold: float = 0.5
    top_k: int | None = None
    labels: frozenset[int] | None = None

    def of(self, detections: BoxList) -> BoxList:
        """The detections of the classes wanted, at most top_k of them, in their order."""
        if self.labels is not None:
            detections = detections[np.isin(detections.get_field("labels"), list(self.labels))]
        if self.top_k is not None:
            best = np.argsort(-detections.get_field("scores"), kind="stable")[: self.top_k]
            detections = detections[np.sort(best)]
        return detections


def labels_of(names: Sequence[str], categories: Categories) -> frozenset[int]:
    """The labels of classes by their names; ValueError with the nearest name and the list for an unknown one."""
    by_name = {name.casefold(): label for label, name in enumerate(categories.names, 1)}
    for name in names:
        if name.casefold() not in by_name:
            nearest = difflib.get_close_matches(name.casefold(), by_name, n=1)
            hint = f" Did you mean {categories.name_of_label(by_name[nearest[0]])!r}?" if nearest else ""
            raise ValueError(f"the model has no class {name!r}.{hint} Its classes: {', '.join(categories.names)}")
    return frozenset(by_name[name.casefold()] for name in names)


# ---------------------------------------------------------------- what is named


def expand_inputs(inputs: Sequence[str | Path]) -> list[str]:
    """Files, URLs and cameras' numbers as they are, folders' photos and videos, globs' files; each once.

    Raises ValueError for a folder without any, and for a glob that matches no file.
    """
    files: list[str] = []
    for item in map(str, inputs):
        if os.path.isdir(item):
            suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
            found = sorted(str(path) for path in Path(item).iterdir() if path.suffix.lower() in suffixes)
            wanted = f"no image ({', '.join(IMAGE_SUFFIXES)}) or video ({', '.join(VIDEO_SUFFIXES)}) in folder {item}"
        elif glob.has_magic(item) and "://" not in item and not os.path.exists(item):
            found = sorted(path for path in glob.glob(item, recursive=True) if os.path.isfile(path))
            wanted = f"no file matches {item}"
        else:
            # Reading says whether it is there, so that one wrong name does not stop the others.
            found, wanted = [item], ""
        if not found:
            raise ValueError(wanted)
        files += found
    return list(dict.fromkeys(files))


# ---------------------------------------------------------------- photos and videos


@dataclass
class PredictedFiles:
    """pictures, videos: what was written, by input; detections_file: the JSON of all photos, if there was any.

    failures: input to reason.
    """

    detections_file: Path | None = None
    pictures: dict[str, Path] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    output_dir: str | Path,
    *,
    selection: Selection = Selection(),
    show: bool = False,
) -> PredictedFiles:
    """Predicts on photos, folders, globs, videos, streams and cameras; writes what this module's head lists.

    show: photos also in a window, where there is a display. What cannot be read is logged and left out. Ctrl-C ends a
    stream or a camera; it stops at a photo or a video file, and leaves a playable video.
    """
    files, output_dir = expand_inputs(inputs), Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    videos = [file for file in files if is_video(file)]
    photos = [file for file in files if file not in videos]
    done = PredictedFiles()
    if photos:
        _predict_photos(predictor, photos, output_dir, done, selection, show=show)
    for file, name in zip(videos, unique_names([video_title(video) for video in videos]), strict=True):
        try:
            path = output_dir / f"{name}_detected.mp4"
            problem = predict_video(predictor, file, path, selection=selection)
            done.videos[file] = path
        except (ValueError, FileNotFoundError) as error:
            problem = str(error)
        if problem:
            logger.error("%s", problem)
            done.failures[file] = problem
    return done


def _predict_photos(
    predictor: Predictor,
    files: Sequence[str],
    output_dir: Path,
    done: PredictedFiles,
    selection: Selection,
    *,
    show: bool,
) -> None:
    names = unique_names([Path(file).stem for file in files])
    categories = predictor.categories
    entries, results = [], []
    photos = detect_files(predictor, [(file, partial(read_image, file)) for file in files], done.failures)
    with (open_window(output_dir) if show else None) or nullcontext() as window:
        for index, photo, detections in tqdm(photos, total=len(files), unit="photo", disable=None):
            detections = selection.of(detections)
            size = {"height": photo.shape[0], "width": photo.shape[1]}
            entry = {"image_id": len(entries) + 1, "file_name": files[index], **size}
            results += results_to_json({entry["image_id"]: detections}, categories)
            entries.append(entry | {"detections": describe_detections(detections, categories)})
            write_json(entries[-1], output_dir / f"{names[index]}_detected.json")
            picture = draw_detections(photo, detections, categories, score_threshold=selection.score_threshold)
            path = output_dir / f"{names[index]}_detected{'.png' if Path(files[index]).suffix == '.png' else '.jpg'}"
            if not cv2.imwrite(str(path), picture):
                raise ValueError(f"{path} cannot be written")
            done.pictures[files[index]] = path
            if window:
                window.show(picture)
    done.detections_file = output_dir / "detections.json"
    write_json(entries, done.detections_file)
    write_json(results, output_dir / "coco_results.json")
    write_json(_coco_images(entries, categories), output_dir / "coco_images.json")


def describe_detections(detections: BoxList, categories: Categories) -> list[dict[str, object]]:
    """An image's detections as its JSON holds them: COCO results with the class's name, without the image's id."""
    return [
        {"name": categories.name_of_label(int(label))} | {key: result[key] for key in result if key != "image_id"}
        for label, result in zip(detections.get_field("labels"), results_to_json({0: detections}, categories))
    ]


def _coco_images(entries: Sequence[dict], categories: Categories) -> dict[str, list]:
    images = [
        {"id": entry["image_id"]} | {key: entry[key] for key in ("file_name", "height", "width")} for entry in entries
    ]
    named = [{"id": category_id, "name": name} for category_id, name in categories.by_id.items()]
    return {"images": images, "annotations": [], "categories": named}


def predict_video(
    predictor: Predictor, source: str, output: Path, *, selection: Selection = Selection()
) -> str:
    """Predicts on each frame of a video, stream or camera; writes a drawn video, and JSON lines beside it.

    Returns what is to be said of a video that ends early, or "". Reading, network, drawing and writing overlap. Raises
    FileNotFoundError or ValueError when it cannot be read; KeyboardInterrupt, with the files whole, on Ctrl-C, unless
    it is a stream or a camera, which that ends.
    """
    from FasterRCNN.engine.predictor import map_ahead

    with VideoReader(source) as reader:
        with (
            closing(_read_ahead(reader, predictor.ims_per_batch)) as frames,
            open(output.with_suffix(".jsonl"), "w", encoding="utf-8") as lines,
            VideoWriter(output, reader.fps) as writer,
        ):

            def draw(found: tuple[float, np.ndarray, BoxList]) -> tuple[float, np.ndarray, dict]:
                at, frame, detections = found
                detections = selection.of(detections)
                height, width = frame.shape[:2]
                described = describe_detections(detections, predictor.categories)
                line = {"time": round(at, 3), "height": height, "width": width, "detections": described}
                threshold = selection.score_threshold
                return at, draw_detections(frame, detections, predictor.categories, score_threshold=threshold), line

            def write(numbered: tuple[int, tuple[float, np.ndarray, dict]]) -> None:
                number, (at, picture, line) = numbered
                writer.write(picture, at)
                lines.write(json.dumps({"frame": number} | line) + "\n")

            drawn = map_ahead(draw, _detect_frames(predictor, frames, reader.is_live), threads=DRAWING_THREADS)
            bar = tqdm(desc=reader.title, total=reader.num_frames, unit="frame", disable=None)
            try:
                with bar, closing(map_ahead(write, enumerate(drawn), threads=1)) as written:
                    for _ in written:
                        bar.update()
            except KeyboardInterrupt:
                logger.warning("%s: interrupted; the frames so far are in %s", reader.title, output)
                if not reader.is_live:
                    raise
        if reader.count == 0:
            output.with_suffix(".jsonl").unlink()
            raise ValueError(reader.shortfall())
        if reader.is_damaged():
            return reader.shortfall()
        return ""


def _read_ahead(reader: VideoReader, ahead: int) -> Iterator[tuple[float, np.ndarray]]:
    """The reader's (time, frame), read in a thread; of what is live the newest, as it is asked for."""
    from FasterRCNN.engine.predictor import map_ahead

    frames = iter(reader)
    if reader.is_live:
        yield from frames
        return
    with closing(map_ahead(lambda _: next(frames, None), itertools.count(), threads=1, ahead=ahead)) as read:
        for item in read:
            if item is None:
                return
            yield item


def _detect_frames(
    predictor: Predictor, frames: Iterator[tuple[float, np.ndarray]], is_live: bool
) -> Iterator[tuple[float, np.ndarray, BoxList]]:
    """(time, frame, detections) in order. Live frames one by one: batches would take some at once, then none."""
    if is_live:
        for at, frame in frames:
            yield at, frame, predictor.predict([frame])[0]
        return
    waiting: deque[tuple[float, np.ndarray]] = deque()

    def images() -> Iterator[np.ndarray]:
        for item in frames:
            waiting.append(item)
            yield item[1]

    for detections in predictor.predict_stream(images()):
        yield *waiting.popleft(), detections
