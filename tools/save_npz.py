#!/usr/bin/env python3
"""Write a trained model as one tensorpack .npz file, with its config inside.

    python tools/save_npz.py train_log/maskrcnn model.npz
    python tools/save_npz.py train_log/maskrcnn backbone.npz --backbone-only

The file is what --load and predict.py take; a backbone alone is what BACKBONE.WEIGHTS takes.
"""
import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import run_command  # noqa: E402


def save(model, out, *, backbone_only=False, overwrite=False):
    """Write the weights of a run folder, checkpoint or .npz file to the file `out`; return what was written, in a line.

    Raises FileNotFoundError or ValueError when there is nothing to read or `out` may not be written.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read once, at TensorFlow's import
    from FasterRCNN.engine.architecture import is_backbone_variable, number_of_classes
    from FasterRCNN.engine.npz import save_npz
    from FasterRCNN.engine.weights import read_config, read_weights

    if Path(out).exists() and not overwrite:
        raise ValueError(f"{out} exists already: give another name, or --overwrite")
    weights, config = read_weights(model), read_config(model)
    if backbone_only:
        weights = {name: value for name, value in weights.items() if is_backbone_variable(name)}
    if not weights:
        raise ValueError(f"{model} holds no {'backbone' if backbone_only else 'weights'}: give the model of a run")
    save_npz(out, weights, config)
    classes = number_of_classes({name: value.shape for name, value in weights.items()})
    parts = [f"{len(weights)} variables", f"{Path(out).stat().st_size / 1e6:.1f} MB"]
    parts += [f"{classes} classes"] if classes else []
    parts += ["with its config" if config is not None else f"without a config, as {model} carries none"]
    return f"{out}: {', '.join(parts)}"


def main(argv=None):
    """Run the command."""
    parser = argparse.ArgumentParser(description="Writes a trained model as one tensorpack .npz file.")
    parser.add_argument("model", metavar="MODEL", help="run folder, checkpoint or .npz file")
    parser.add_argument("out", metavar="OUT.npz", help="the file to write")
    parser.add_argument("--backbone-only", action="store_true", help="only the backbone, for BACKBONE.WEIGHTS")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.npz if it exists")
    args = parser.parse_args(argv)
    print(save(args.model, args.out, backbone_only=args.backbone_only, overwrite=args.overwrite))


if __name__ == "__main__":
    sys.exit(run_command(main))
