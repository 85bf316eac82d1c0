#!/usr/bin/env python3
"""Compute what training Mask R-CNN R50-FPN on many devices should reach, from measured figures and stated link speeds.

    python tools/scaling.py
    python tools/scaling.py --devices 8 32 --images-per-device 4
    python tools/scaling.py --count   # the bytes, from the graph

docs/scaling.md says where each figure comes from, and holds what the first command prints. Sizes are in bytes, times in
seconds, bandwidths in bytes a second and direction; a node is a machine with its devices.
"""
import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import default_config, finalize_configs, run_command  # noqa: E402

from tabulate import tabulate  # noqa: E402

# ---------------------------------------------------------------- inputs; docs/scaling.md has their sources

GRADIENT_BYTES = 176_700_368  # counted: --count
WEIGHT_BYTES = 177_814_224
EXCHANGES = 40  # of fused gradients in a step; measured: benchmarks/distributed.py
HIDDEN_SHARE = 0.91  # of the exchange's time, before the last gradient; measured likewise
BACKWARD_SHARE = 0.62  # of a training step's time, in which an exchange can hide; measured: benchmarks/speed.py
ACTIVATION_BYTES = 1.6e9  # of an image in training; measured: benchmarks/memory.py
FUSION_BYTES = 128 << 20  # Horovod's buffer
JPEG_BYTES = 163e3  # mean of COCO train2017: 19.3 GB, 118,287 images
TRAIN_IMAGES = 118_287
USABLE = 0.8  # share of a link's line rate that an exchange gets; assumed


@dataclass(frozen=True)
class Link:
    """Between two devices of a ring. bandwidth: that an exchange gets; latency: of one message to the neighbour."""

    name: str
    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Device:
    """seconds_per_image: of a training step without exchange; hidden_share: of the exchange, at most."""

    name: str
    seconds_per_image: float
    images_per_step: int
    per_node: int
    hidden_share: float
    exchanges: int = EXCHANGES

    @property
    def compute(self) -> float:
        """Seconds of a step without exchange."""
        return self.seconds_per_image * self.images_per_step


NVLINK = Link("NVLink 2", USABLE * 150e9, 3.4e-6)
NETWORKS = (
    Link("10 Gbit Ethernet", USABLE * 10e9 / 8, 50e-6),
    Link("25 Gbit Ethernet", USABLE * 25e9 / 8, 50e-6),
    Link("100 Gbit Ethernet", USABLE * 100e9 / 8, 50e-6),
    Link("200 Gbit InfiniBand", USABLE * 200e9 / 8, 14e-6),
)
CPU = Device("2 CPU cores, measured", 4.79, 1, 1, 0.0)  # what is hidden takes the same cores
GPUS = (
    Device("V100, published", 0.16, 2, 8, HIDDEN_SHARE),
    Device("four times a V100, assumed", 0.04, 2, 8, HIDDEN_SHARE),
)


# ---------------------------------------------------------------- the calculation


def ring_seconds(size: float, count: int, link: Link, exchanges: int = 1) -> float:
    """The time of a ring all-reduce of `size` bytes over `count` devices, in `exchanges` parts.

    Each device sends 2 (count − 1) messages of size / count bytes (Patarasuk & Yuan 2009).
    """
    messages = 2 * (count - 1)
    return messages / count * size / link.bandwidth + exchanges * messages * link.latency


def hierarchical_seconds(
    size: float, count: int, *, per_node: int, inner: Link, outer: Link, exchanges: int = 1
) -> float:
    """The time of an all-reduce that sums in each node, then over the nodes, then spreads in each node.

    Over the nodes each device exchanges its share of the sum with its like; together they send through the node's one
    link what a ring of nodes would. Raises ValueError where nodes would be unlike.
    """
    local = min(count, per_node)
    if count % local:
        raise ValueError(f"{count} devices do not fill nodes of {per_node}: choose a multiple, or --per-node")
    return ring_seconds(size, local, inner, exchanges) + ring_seconds(size, count // local, outer, exchanges)


def step_seconds(compute: float, exchange: float, *, hidden_share: float, backward_share: float) -> float:
    """The time of a step: what of the exchange is not hidden behind the backward pass comes on top of `compute`."""
    hidden = min(hidden_share * exchange, backward_share * compute)
    return compute + exchange - hidden


# ---------------------------------------------------------------- tables


def exchange_of(device: Device, count: int, network: Link, size: float) -> float:
    """The time of a step's exchange over `count` devices."""
    return hierarchical_seconds(
        size, count, per_node=device.per_node, inner=NVLINK, outer=network, exchanges=device.exchanges
    )


def step_of(device: Device, count: int, network: Link, size: float) -> float:
    """The time of a step on `count` devices."""
    exchange = exchange_of(device, count, network, size)
    return step_seconds(device.compute, exchange, hidden_share=device.hidden_share, backward_share=BACKWARD_SHARE)


def networks_of(device: Device, count: int) -> Sequence[Link]:
    """The networks that make a difference: none does within a node."""
    return NETWORKS if count > device.per_node else (NVLINK,)


def exchange_table(device: Device, counts: Sequence[int]) -> str:
    """Times of exchanging all gradients of a step."""
    rows = []
    for count in counts:
        for network in networks_of(device, count):
            sizes = GRADIENT_BYTES, GRADIENT_BYTES / 2
            seconds = [ring_seconds(size, count, network, device.exchanges) for size in sizes]
            seconds += [exchange_of(device, count, network, size) for size in sizes]
            rows.append([count, network.name, *(f"{1000 * each:.1f}" for each in seconds)])
    headers = ["devices", "link", "ring, ms", "ring, float16", "by nodes, ms", "by nodes, float16"]
    return format_table(rows, headers)


def speed_table(device: Device, counts: Sequence[int]) -> str:
    """Weak scaling: the same images on each device, however many there are."""
    rows = []
    for count in counts:
        for network in networks_of(device, count):
            whole, half = (step_of(device, count, network, size) for size in (GRADIENT_BYTES, GRADIENT_BYTES / 2))
            images = count * device.images_per_step
            rows.append([count, network.name, f"{1000 * whole:.0f}", f"{images / whole:.1f}",
                         f"{device.compute / whole:.1%}", f"{images / half:.1f}", f"{device.compute / half:.1%}"])
    headers = ["devices", "link", "step, ms", "images/s", "efficiency", "float16: images/s", "efficiency"]
    return format_table(rows, headers)


def schedule_table(device: Device, counts: Sequence[int]) -> str:
    """The 1x schedule as train.py makes it from the global batch, over the fastest network."""
    from FasterRCNN.engine.optim import RECIPE_BATCH, lr_schedule

    cfg = default_config().TRAIN
    rows = []
    for count in counts:
        batch = count * device.images_per_step
        schedule = lr_schedule("1x", base_lr=cfg.BASE_LR, global_batch=batch, warmup=cfg.WARMUP,
                               warmup_init_lr=cfg.WARMUP_INIT_LR)
        seconds = schedule.total_steps * step_of(device, count, networks_of(device, count)[-1], GRADIENT_BYTES)
        epoch = -(-TRAIN_IMAGES // batch)
        rows.append([count, batch, ", ".join(f"{step:,}" for step in schedule.boundaries), f"{schedule.peak_lr:g}",
                     schedule.warmup_steps, epoch, -(-TRAIN_IMAGES // RECIPE_BATCH), f"{seconds / 3600:.2f}"])
    headers = ["devices", "global batch", "steps", "peak rate", "warm-up, steps", "steps of an epoch",
               "TRAIN.WARMUP for one epoch", "1x, hours"]
    return format_table(rows, headers)


def memory_table(device: Device) -> str:
    """What a device holds, the same however many there are."""
    parts = {
        "weights": WEIGHT_BYTES,
        "gradients": GRADIENT_BYTES,
        "momentum": GRADIENT_BYTES,
        "Horovod's fusion buffer": FUSION_BYTES,
        f"activations of {device.images_per_step} images": ACTIVATION_BYTES * device.images_per_step,
    }
    rows = [[name, f"{size / 1e9:.2f}"] for name, size in [*parts.items(), ("together", sum(parts.values()))]]
    return format_table(rows, ["on each device", "GB"])


def disk_table(devices: Sequence[Device]) -> str:
    """What a node reads when no exchange holds it up, images that are read again included."""
    rows = []
    for device in devices:
        images = device.per_node / device.seconds_per_image
        rows.append([device.name, device.per_node, f"{images:.1f}", f"{images * JPEG_BYTES / 1e6:.2f}"])
    return format_table(rows, ["device", "of a node", "images/s of a node", "MB/s from its disk"])


def format_table(rows: Sequence[Sequence], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def report(counts: Sequence[int], gpus: Sequence[Device]) -> str:
    """All tables, in Markdown."""
    gpu, half = gpus[0], GRADIENT_BYTES // 2
    parts = [
        f"Gradients of a step: {GRADIENT_BYTES:,} bytes as float32, {half:,} as float16.",
        f"### Exchange of a step, nodes of {gpu.per_node} devices", exchange_table(gpu, counts),
        *(part for device in (*gpus, CPU) for part in (f"### Speed: {describe(device)}", speed_table(device, counts))),
        f"### Schedule: {describe(gpu)}", schedule_table(gpu, counts),
        "### Memory", memory_table(gpu),
        "### Disk", disk_table([*gpus, CPU]),
    ]
    return "\n\n".join(parts)


def describe(device: Device) -> str:
    return f"{device.name}, {device.images_per_step} image(s) in {device.compute:g} s a device and step"


def count_bytes() -> tuple[int, int]:
    """(bytes of the trained variables, bytes of all variables) of Mask R-CNN R50-FPN, 80 classes, from its graph."""
    import tensorflow.compat.v1 as tf

    from FasterRCNN.modeling.build import build_detector

    cfg = default_config()
    cfg.update_dict({"MODE_FPN": True, "MODE_MASK": True, "DATA.NUM_CLASS": 80})
    finalize_configs(cfg, is_training=True, starts_from_weights=True)
    with tf.Graph().as_default():
        build_detector(cfg, is_training=True).losses(
            image=tf.placeholder(tf.uint8, [1, 64, 64, 3]), image_size=tf.constant([[64, 64]]),
            gt_boxes=tf.zeros([1, 8, 4]), gt_labels=tf.zeros([1, 8], tf.int32),
            gt_masks=tf.zeros([1, 8, 112, 14], tf.uint8), image_seeds=tf.zeros([1, 2], tf.int32))
        return tuple(sum(v.shape.num_elements() * v.dtype.size for v in variables)
                     for variables in (tf.trainable_variables(), tf.global_variables()))


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 512], metavar="N")
    parser.add_argument("--seconds-per-image", type=float, metavar="S", help="of a step without exchange, on a device")
    parser.add_argument("--images-per-device", type=int, default=2, metavar="N", help="a step (%(default)s)")
    parser.add_argument("--per-node", type=int, default=8, metavar="N", help="devices of a node (%(default)s)")
    parser.add_argument("--exchanges", type=int, default=EXCHANGES, metavar="N",
                        help="of a step's fused gradients (%(default)s)")
    parser.add_argument("--count", action="store_true", help="count the bytes of gradients and weights instead")
    args = parser.parse_args()
    if args.count:
        print("{:,} bytes of gradients, {:,} of weights".format(*count_bytes()))
        return 0
    for name in ("images_per_device", "per_node", "exchanges"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1 is needed")
    if min(args.devices) < 1 or (args.seconds_per_image is not None and args.seconds_per_image <= 0):
        raise ValueError("--devices and --seconds-per-image must be above 0")
    shape = args.images_per_device, args.per_node, HIDDEN_SHARE, args.exchanges
    gpus = [Device(gpu.name, gpu.seconds_per_image, *shape) for gpu in GPUS]
    if args.seconds_per_image:
        gpus = [Device("given", args.seconds_per_image, *shape)]
    print(report(args.devices, gpus))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
