#!/usr/bin/env python3
"""The whole road on drawn shapes: draw a data set, train, evaluate, predict, and look. `make demo` runs this.

Runs the commands that a user would type, prints each of them, and exits with 1 when the accuracy is missed.
"""
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import run_command  # noqa: E402

GOAL = 0.50  # box and mask AP on the held-out images
NUM_PICTURES = 12


def run(*command):
    """Run one of the program's commands and print it; raises ValueError when it fails."""
    script, *arguments = map(str, command)
    print(f"\n$ ./{script} {' '.join(arguments)}", flush=True)
    status = subprocess.run([sys.executable, ROOT / script, *arguments]).returncode
    if status:
        raise ValueError(f"./{script} ended with exit status {status}; its message is above")


def write_comparisons(model, base, output):
    """Write pictures of held-out images, truth beside prediction."""
    from FasterRCNN.datasets.catalog import load_dataset
    from inference import draw_comparisons, load_predictor

    output.mkdir(parents=True, exist_ok=True)
    predictor, cfg = load_predictor(model, [f"DATA.BASEDIR={base}"])
    dataset = load_dataset(cfg.DATA.VAL[0], basedir=str(base))
    with predictor:
        pictures = draw_comparisons(predictor, dataset, NUM_PICTURES, score_threshold=cfg.TEST.RESULT_SCORE_THRESH_VIS)
    for image_id, picture in pictures.items():
        cv2.imwrite(str(output / f"{image_id}.png"), picture)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("demo_output"), help="default: %(default)s")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="changes to configs/shapes.yaml")
    args = parser.parse_args()
    start = time.monotonic()
    base, model, pictures = args.output_dir / "shapes", args.output_dir / "model", args.output_dir / "pictures"
    results = args.output_dir / "results.json"
    run("data.py", "--draw", base)
    run("train.py", "--config-file", ROOT / "configs" / "shapes.yaml", "--logdir", model, "--overwrite",
        "--config", f"DATA.BASEDIR={base}", *args.config)
    run("predict.py", "--load", model, "--evaluate", results)
    photos = sorted((base / "val2017").glob("*.jpg"))[:NUM_PICTURES]
    run("predict.py", *photos, "--load", model, "--output-dir", args.output_dir / "detections", "--no-show")
    write_comparisons(model, base, pictures)
    metrics = json.loads(results.with_suffix(".metrics.json").read_text())
    box_ap, mask_ap = metrics["bbox"]["AP"], metrics["segm"]["AP"]
    reached = min(box_ap, mask_ap) >= GOAL
    print(f"""
model            {model}
curves           tensorboard --logdir {model}
results          {results}
detections       {args.output_dir / 'detections'}
truth|prediction {pictures}
box AP {box_ap:.3f}, mask AP {mask_ap:.3f} on the held-out images
goal of {GOAL:.2f} for both: {'reached' if reached else 'MISSED'}
{(time.monotonic() - start) / 60:.1f} minutes""")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
