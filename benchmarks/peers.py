#!/usr/bin/env python3
"""Time torchvision's Mask R-CNN R50-FPN on the work of benchmarks/speed.py, beside TensorFlow's convolution speed.

    python benchmarks/peers.py                                       # all four, of the torchvision installed here
    python benchmarks/peers.py --python OTHER_VENV/bin/python        # of another virtual environment's
    python benchmarks/peers.py inference training --precisions bf16

One 800×1333 image, 1,000 proposals, 100 detections, 8 objects, frozen normalisation, stem and first stage not trained;
weights are random. Torchvision is run by its own interpreter, since it is no dependency of this project and may want
other packages; TensorFlow's convolution is measured in this process before and after it.
"""
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

HEIGHT, WIDTH, NUM_OBJECTS, NUM_CLASSES = 800, 1333, 8, 80


# ---------------------------------------------------------------- in torchvision's interpreter


def run_torchvision(args):
    """Print, as JSON, the seconds of each run and what was found."""
    import torch
    import torchvision

    torch.manual_seed(0)
    model = make_model(torch, torchvision)
    image = [torch.rand(3, HEIGHT, WIDTH)]
    time_it = {"inference": time_inference, "training": time_training}[args.what[0]]
    with torch.autocast("cpu", torch.bfloat16, enabled=args.precisions == ["bf16"]):
        result = time_it(torch, model, image, args.repeats)
    result["versions"] = f"torchvision {torchvision.__version__}, {torch.get_num_threads()} threads"
    print(json.dumps(result))


def make_model(torch, torchvision):
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3,
                                   norm_layer=torchvision.ops.FrozenBatchNorm2d)
    for name, buffer in backbone.named_buffers():
        if name.endswith("bn3.weight"):
            buffer.fill_(0.25)  # keeps the activations of random weights bounded
    model = torchvision.models.detection.MaskRCNN(
        backbone, NUM_CLASSES + 1, min_size=HEIGHT, max_size=WIDTH, rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=1000, box_detections_per_img=100)
    spread_scores(torch, model)
    return model


def spread_scores(torch, model):
    """Scale the class scores of random weights to a deviation of 1: about one in fifty passes torchvision's threshold.

    So there are more than 100 detections, without a suppression of 80,000 boxes, which no trained network asks for.
    """
    layer, scores = model.roi_heads.box_predictor.cls_score, []
    hook = layer.register_forward_hook(lambda _layer, _inputs, output: scores.append(output))
    with torch.no_grad():
        model.eval()([torch.rand(3, HEIGHT, WIDTH)])
        layer.weight /= scores[0].std()
    hook.remove()


def time_inference(torch, model, image, repeats):
    model.eval()

    def network_only():
        images, _ = model.transform(image)
        features = model.backbone(images.tensors)
        proposals, _ = model.rpn(images, features)
        detections, _ = model.roi_heads(features, proposals, images.image_sizes)
        return proposals, detections

    with torch.inference_mode():
        proposals, detections = network_only()
        counts = {"proposals": len(proposals[0]), "detections": len(detections[0]["boxes"])}
        return {"seconds": timed(network_only, repeats), "with pasting": timed(lambda: model(image), repeats),
                "counts": counts}


def time_training(torch, model, image, repeats):
    model.train()
    random = np.random.default_rng(0)
    corners = random.uniform(0, [WIDTH - 300, HEIGHT - 300], (NUM_OBJECTS, 2))
    boxes = np.concatenate([corners, corners + random.uniform(40, 300, (NUM_OBJECTS, 2))], axis=1)
    masks = np.zeros((NUM_OBJECTS, HEIGHT, WIDTH), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int)):
        mask[y1:y2, x1:x2] = 1
    target = [{"boxes": torch.tensor(boxes, dtype=torch.float32), "masks": torch.tensor(masks),
               "labels": torch.tensor(random.integers(1, NUM_CLASSES + 1, NUM_OBJECTS))}]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def step():
        optimizer.zero_grad()
        sum(model(image, target).values()).backward()
        optimizer.step()

    return {"seconds": timed(step, repeats), "counts": {"objects": NUM_OBJECTS}}


def timed(run, repeats):
    """Return the seconds of each of `repeats` runs, after one to warm up."""
    run()
    times = [time.perf_counter()]
    for _ in range(repeats):
        run()
        times.append(time.perf_counter())
    return np.diff(times).tolist()


# ---------------------------------------------------------------- in this project's


def compare(args):
    import tensorflow.compat.v1 as tf

    from benchmarks.speed import INFERENCE_GFLOP, TRAINING_GFLOP, TYPES, convolution_speed

    tf.disable_eager_execution()
    for what in args.what:
        for precision in args.precisions:
            before = convolution_speed(TYPES[precision])
            result = ask_peer(args, what, precision)
            speed = max(before, convolution_speed(TYPES[precision]))
            limit = (INFERENCE_GFLOP if what == "inference" else TRAINING_GFLOP) / speed
            best = min(result["seconds"])
            pasting = f" (with pasting {min(result['with pasting']):.2f} s)" if "with pasting" in result else ""
            counts = ", ".join(f"{number} {name}" for name, number in result["counts"].items())
            print(f"{result['versions']}: {what} {precision}: best {best:.2f} s{pasting}, median "
                  f"{np.median(result['seconds']):.2f} s, {counts}; TensorFlow's 3x3 convolution {speed:.0f} GFLOP/s: "
                  f"limit {limit:.2f} s, best / limit {best / limit:.2f}", flush=True)


def ask_peer(args, what, precision):
    command = [args.python, __file__, what, "--precisions", precision, "--repeats", str(args.repeats), "--here"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{args.python} cannot run torchvision's model (see above): name one that can with --python")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["inference", "training"], metavar="inference|training",
                        help="default: both")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"],
                        help="default: both")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with torchvision (this one)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (%(default)s)")
    parser.add_argument("--here", action="store_true", help="run the one case in this process")
    args = parser.parse_args()
    if unknown := set(args.what) - {"inference", "training"}:
        parser.error(f"nothing to time called {', '.join(unknown)}: choose of inference, training")
    if args.here:
        run_torchvision(args)
        return 0
    from config import run_command

    return run_command(lambda: compare(args))


if __name__ == "__main__":
    sys.exit(main())
