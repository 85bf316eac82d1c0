#!/usr/bin/env python3
"""Train on the first few photos of a COCO-format set until they are known by heart, and evaluate on the same photos.

    python benchmarks/overfit.py COCO/annotations/instances_train2017.json COCO/train2017 --output-dir overfit

Exits with 1 when the mask AP on those photos stays under the goal.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import run_command  # noqa: E402


def first_images(annotations, number, smallest):
    """Return the annotations of the first `number` images, by id, with objects of `smallest` pixels or more alone."""
    sizes = {}
    for annotation in annotations["annotations"]:
        if not annotation.get("iscrowd", 0):
            sizes.setdefault(annotation["image_id"], []).append(annotation["area"] ** 0.5)
    images = [image for image in annotations["images"] if min(sizes.get(image["id"], [0])) >= smallest]
    images = sorted(images, key=lambda image: image["id"])[:number]
    ids = {image["id"] for image in images}
    return {**annotations, "images": images,
            "annotations": [a for a in annotations["annotations"] if a["image_id"] in ids]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--number", type=int, default=8, help="photos (%(default)s)")
    parser.add_argument("--smallest", type=float, default=24, metavar="PIXELS",
                        help="leave out photos with an object of less than this side, √area (%(default)s)")
    parser.add_argument("--goal", type=float, default=0.80, help="mask AP (%(default)s)")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="changes to configs/overfit.yaml")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    subset = args.output_dir / "annotations.json"
    subset.write_text(json.dumps(first_images(json.loads(args.annotations.read_text()), args.number, args.smallest)))
    data = f"{subset}:{args.images}"
    model, results = args.output_dir / "model", args.output_dir / "results.json"
    train = [sys.executable, ROOT / "train.py", "--config-file", ROOT / "configs" / "overfit.yaml", "--logdir", model,
             "--overwrite", "--config", f"DATA.TRAIN={data}", f"DATA.VAL={data}", *args.config]
    subprocess.run(train, check=True)
    subprocess.run([sys.executable, ROOT / "predict.py", "--load", model, "--evaluate", results], check=True)
    ap = json.loads(results.with_suffix(".metrics.json").read_text())["segm"]["AP"]
    reached = ap >= args.goal
    print(f"mask AP {ap:.3f} on the {args.number} photos; goal {args.goal:.2f}: {'reached' if reached else 'MISSED'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
