"""What many devices should reach: formulae against cases worked out by hand, the document against the program."""
import subprocess
import sys
from pathlib import Path

import pytest

from tools import scaling
from tools.scaling import Link, hierarchical_seconds, ring_seconds, step_seconds

ROOT = Path(__file__).resolve().parent.parent
GIGABYTE = Link("1 GB/s", 1e9, 0.0)
SLOW_START = Link("1 GB/s, 1 ms a message", 1e9, 1e-3)
ENDLESS = Link("endless", float("inf"), 0.0)


def test_one_device_exchanges_nothing():
    assert ring_seconds(1e9, 1, SLOW_START, exchanges=7) == 0
    assert hierarchical_seconds(1e9, 1, per_node=8, inner=SLOW_START, outer=SLOW_START) == 0


def test_two_devices_send_all_bytes_once():
    """Half the sum to the other, then half the result: 1 GB in all, in two messages."""
    assert ring_seconds(1e9, 2, GIGABYTE) == pytest.approx(1.0)
    assert ring_seconds(1e9, 2, SLOW_START) == pytest.approx(1.002)
    assert ring_seconds(1e9, 2, SLOW_START, exchanges=10) == pytest.approx(1.02)


def test_four_devices_send_six_quarters():
    assert ring_seconds(1e9, 4, GIGABYTE) == pytest.approx(1.5)
    assert ring_seconds(1e9, 4, SLOW_START) == pytest.approx(1.506)


@pytest.mark.parametrize("count", [1, 2, 8, 512])
def test_an_endless_link_takes_no_time(count):
    assert ring_seconds(1e9, count, ENDLESS) == 0
    assert hierarchical_seconds(1e9, count, per_node=8, inner=ENDLESS, outer=ENDLESS) == 0


def test_a_ring_simulated_message_by_message():
    """In each of 2 (n − 1) rounds every device sends one of n parts, and then all hold the sum."""
    count = 5
    parts = [[float(10 * device + part) for part in range(count)] for device in range(count)]
    expected = [sum(column) for column in zip(*parts)]
    seconds = 0.0
    for turn in range(2 * (count - 1)):
        sent = [(device, (device - turn) % count, parts[device][(device - turn) % count]) for device in range(count)]
        for device, part, value in sent:
            neighbour = (device + 1) % count
            parts[neighbour][part] = value + (parts[neighbour][part] if turn < count - 1 else 0)
        seconds += 1e9 / count / SLOW_START.bandwidth + SLOW_START.latency
    assert all(held == pytest.approx(expected) for held in parts)
    assert ring_seconds(1e9, count, SLOW_START) == pytest.approx(seconds)


def test_two_nodes_of_two():
    """A node's two sum and share 1 GB over the fast link, 1 s / 10; its two halves cross the slow one together, 1 s."""
    fast = Link("10 GB/s", 1e10, 0.0)
    assert hierarchical_seconds(1e9, 4, per_node=2, inner=fast, outer=GIGABYTE) == pytest.approx(1.1)


def test_one_node_needs_no_network():
    dead = Link("none", 1e-9, 1e9)
    assert hierarchical_seconds(1e9, 4, per_node=8, inner=GIGABYTE, outer=dead) == ring_seconds(1e9, 4, GIGABYTE)


def test_nodes_of_one_are_a_ring():
    assert hierarchical_seconds(1e9, 4, per_node=1, inner=ENDLESS, outer=SLOW_START) == ring_seconds(1e9, 4, SLOW_START)


def test_nodes_must_be_full():
    with pytest.raises(ValueError, match="12 devices do not fill nodes of 8: choose a multiple, or --per-node"):
        hierarchical_seconds(1e9, 12, per_node=8, inner=ENDLESS, outer=ENDLESS)


@pytest.mark.parametrize("exchange, hidden_share, seconds", [
    (0.0, 1.0, 3.0),  # nothing to exchange
    (1.0, 0.0, 4.0),  # nothing hidden
    (1.0, 0.75, 3.25),
    (1.0, 1.0, 3.0),
    (5.0, 1.0, 6.0),  # 2 s of backward pass hide 2 s
])
def test_a_step_hides_exchange_behind_its_backward_pass(exchange, hidden_share, seconds):
    assert step_seconds(3.0, exchange, hidden_share=hidden_share, backward_share=2 / 3) == pytest.approx(seconds)


@pytest.mark.parametrize("device", [*scaling.GPUS, scaling.CPU])
@pytest.mark.parametrize("count", [64, 512])
def test_more_bandwidth_or_fewer_bytes_never_slow_a_step(device, count):
    links = [Link("", bandwidth, 14e-6) for bandwidth in (1e8, 1e9, 1e10, 1e11)]
    steps = [scaling.step_of(device, count, link, scaling.GRADIENT_BYTES) for link in links]
    assert steps == sorted(steps, reverse=True)
    halves = [scaling.step_of(device, count, link, scaling.GRADIENT_BYTES / 2) for link in links]
    assert all(half <= whole for half, whole in zip(halves, steps))
    assert min(halves) >= device.seconds_per_image * device.images_per_step


def test_bytes_are_those_of_the_graph():
    assert scaling.count_bytes() == (scaling.GRADIENT_BYTES, scaling.WEIGHT_BYTES)


def run(*arguments):
    return subprocess.run([sys.executable, ROOT / "tools" / "scaling.py", *arguments], capture_output=True, text=True)


def test_the_document_holds_what_the_program_prints():
    printed = run()
    assert printed.returncode == 0, printed.stderr[-2000:]
    assert printed.stdout.count("### ") == 7
    assert printed.stdout in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_one_device_alone_is_fully_efficient():
    assert "| 1         | NVLink 2 | 160        | 6.2        | 100.0%" in run("--devices", "1", "--images-per-device",
                                                                          "1").stdout


@pytest.mark.parametrize("arguments, message", [
    (["--devices", "12"], "12 devices do not fill nodes of 8"),
    (["--devices", "0"], "--devices and --seconds-per-image must be above 0"),
    (["--per-node", "0"], "--per-node 0: at least 1 is needed"),
])
def test_mistakes_are_told(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
