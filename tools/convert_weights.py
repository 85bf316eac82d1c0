#!/usr/bin/env python3
"""Turn the weights of another program into an .npz file of this one, with its config inside, or the other way.

    python tools/convert_weights.py mask_rcnn_R_50_FPN_3x.pkl model.npz
    python tools/convert_weights.py resnet50.pth backbone.npz
    python tools/convert_weights.py train_log/maskrcnn model.safetensors --to torchvision

Read are Detectron's .pkl, detectron2's .pkl and .pth, maskrcnn-benchmark's .pth, torchvision's .pth and .safetensors,
and tensorpack's .npz. The program is recognised from the names in the file. Nothing that the file holds is run.
"""
import argparse
import dataclasses
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import KEYS, default_config, run_command  # noqa: E402

from FasterRCNN.engine.architecture import number_of_classes  # noqa: E402
from FasterRCNN.engine.npz import save_npz  # noqa: E402
from FasterRCNN.foreign.containers import read_contents  # noqa: E402
from FasterRCNN.foreign.convert import convert  # noqa: E402
from FasterRCNN.foreign.outward import TARGETS, differences, give  # noqa: E402
from FasterRCNN.foreign.settings import SETTINGS  # noqa: E402
from FasterRCNN.foreign.sources import SOURCES, File, choose_source  # noqa: E402
from FasterRCNN.foreign.writers import WRITERS, write_arrays  # noqa: E402


def convert_file(path, *, source=None, is_rgb=None, epsilon=None, changes=()):
    """Read and convert a file of weights: (Source, Conversion), its config a nested dict of all keys.

    source, is_rgb, epsilon: instead of what the file tells. changes: KEY=VALUE, applied last. Raises as
    `read_contents`, `choose_source`, `convert` and the config do.
    """
    contents = read_contents(path)
    file = File(contents.arrays, contents.texts)
    chosen = choose_source(file, source)
    told = {name: value for name, value in (("is_rgb", is_rgb), ("epsilon", epsilon)) if value is not None}
    if told:
        adapted = chosen.adapt
        chosen = dataclasses.replace(chosen, adapt=lambda file: adapted(file) | told)
    chosen = dataclasses.replace(chosen, **chosen.adapt(file))
    conversion = convert(file, chosen)
    cfg = default_config()
    cfg.update_dict(conversion.config)
    cfg.update_args(changes)
    return chosen, dataclasses.replace(conversion, config=cfg.to_dict())


def write_for(program, model, out, changes=()):
    """Write a model of ours for another program; what that must be told besides, and the keys it cannot follow.

    Raises ValueError when it has no place for a part of the model, FileNotFoundError or ValueError for the files.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read once, at TensorFlow's import
    from FasterRCNN.engine.weights import read_config, read_weights

    weights, cfg = read_weights(model), default_config()
    cfg.update_dict(read_config(model) or {})
    cfg.update_args(changes)
    cfg.DATA.NUM_CLASS = number_of_classes({name: value.shape for name, value in weights.items()}) or 0
    config = {key: cfg[key] for key in KEYS}
    settings = SETTINGS[program](config, str(out))
    write_arrays(out, give(weights, config, program), TARGETS[program].texts)
    return settings, differences(config, program)


def _assumed(source, config):
    """What files of weights do not tell, in a line."""
    if not source.layers:
        return "its config is the one that the file carries, or the defaults; --config changes it"
    mean, std = (config["PREPROC"][f"PIXEL_{what}"] for what in ("MEAN", "STD"))
    return (f"assumed, as of its published models: colours {'RGB' if source.is_rgb else 'BGR'} (--channels), epsilon "
            f"{source.epsilon:g} (--epsilon), PREPROC.PIXEL_MEAN={mean} PREPROC.PIXEL_STD={std} "
            f"BACKBONE.STRIDE_1X1={config['BACKBONE']['STRIDE_1X1']} (--config KEY=VALUE)")


def main(argv=None):
    """Run the command; 1 when the model is not whole, in which case nothing is written."""
    parser = argparse.ArgumentParser(description="Turns weights of other programs into an .npz file with its config.")
    parser.add_argument("file", metavar="IN", help="a .pth, .pkl, .safetensors or .npz file")
    parser.add_argument("out", metavar="OUT.npz", help="the file to write; with --to a .safetensors or .pkl")
    parser.add_argument("--to", choices=list(TARGETS), help="the other way: write IN, a run folder, checkpoint or .npz "
                        "of this project, for that program, and print what it must be told besides")
    parser.add_argument("--source", choices=list(SOURCES), help="the program that wrote IN; default: from its names")
    parser.add_argument("--channels", choices=["bgr", "rgb"], help="what IN's first convolution takes; default: "
                        "as the source's published models")
    parser.add_argument("--epsilon", type=float, metavar="E",
                        help="of IN's batch normalisations; default: as the source's published models")
    parser.add_argument("--config", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="config keys to carry, where IN does not tell them, e.g. BACKBONE.STRIDE_1X1=False")
    parser.add_argument("--quiet", action="store_true", help="print only what is missing or refused, and the counts")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.npz if it exists")
    args = parser.parse_args(argv)
    endings = tuple(WRITERS) if args.to else (".npz",)
    if Path(args.out).suffix not in endings:
        raise ValueError(f"{args.out}: weights are written as {' or '.join(endings)}, give a name that ends so")
    if Path(args.out).exists() and not args.overwrite:
        raise ValueError(f"{args.out} exists already: give another name, or --overwrite")
    if args.to:
        settings, others = write_for(args.to, args.file, args.out, args.config)
        print(settings, *(f"# DIFFERS   {line}" for line in others), sep="\n")
        return 0

    is_rgb = None if args.channels is None else args.channels == "rgb"
    source, conversion = convert_file(
        args.file, source=args.source, is_rgb=is_rgb, epsilon=args.epsilon, changes=args.config)
    report = conversion.report
    for line in report.lines():
        if not args.quiet or line.startswith(("MISSING", "REFUSED")):
            print(line)
    print(f"{args.file}: weights of {source.title}; {report.summary()}")
    print(_assumed(source, conversion.config))
    if not report.is_complete:
        print(f"not written: {args.out} would not give the source's detections", file=sys.stderr)
        return 1
    save_npz(args.out, conversion.weights, conversion.config)
    print(f"{args.out}: {len(conversion.weights)} variables, {Path(args.out).stat().st_size / 1e6:.1f} MB, with config")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
