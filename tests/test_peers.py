"""benchmarks/peers.py: what it says of a folder that is not the reference, and of what a program's process answers."""

import subprocess
import sys

import pytest

from benchmarks import peers, speed


@pytest.fixture
def reference(tmp_path):
    (tmp_path / "modeling").mkdir()
    (tmp_path / "modeling" / "generalized_rcnn.py").touch()
    return tmp_path


@pytest.fixture
def speeds(monkeypatch):
    """The convolution's speed before the program and after it."""
    values = iter([100.0, 125.0])
    monkeypatch.setattr(speed, "convolution_speed", lambda dtype: next(values))


def test_a_folder_without_the_reference_is_one_line(tmp_path):
    for folder in (tmp_path / "missing", tmp_path):
        done = subprocess.run([sys.executable, peers.__file__, "--reference", folder], capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr == (f"error: --reference {folder}: no modeling/generalized_rcnn.py there; give the folder "
                               "examples/FasterRCNN of a copy of tensorpack's repository\n")


def test_the_reference_computes_in_fp32_only(reference):
    peers.check_reference(reference, None)
    peers.check_reference(reference, ["fp32"])
    with pytest.raises(ValueError, match=r"--precisions fp32 bf16: the reference computes in fp32 only; leave it out"):
        peers.check_reference(reference, ["fp32", "bf16"])


def test_cases(reference):
    commands = dict(peers.torchvision_commands("training", None))
    assert {precision: command[1:] for precision, command in commands.items()} == {
        "fp32": ["training", "fp32"], "bf16": ["training", "bf16"]}
    assert [command[1:] for precision, command in peers.reference_commands(reference, "inference")] == [
        [reference, "inference", "own"], [reference, "inference", "all"]]
    assert all(command[0].is_file() for command in [*commands.values(), next(peers.reference_commands("", ""))[1]])


def test_the_last_line_of_the_programs_process_is_shown(tmp_path, speeds):
    script = tmp_path / "program.py"
    script.write_text("""print("loading")
print('{"program": "it 1.0", "seconds": [8.608, 9.0, 10.0], "also": {"with pasting": [9.5, 9.25]},'
      '"counts": {"proposals": 1000, "detections": 100}}')""")
    result, gflops = peers.measure("fp32", [sys.executable, script])
    assert peers.format_case("inference", "fp32", result, gflops) == (
        "it 1.0: inference fp32: best 8.61 s (with pasting 9.25 s), median 9.00 s, 1000 proposals, 100 detections; "
        "TensorFlow's 3x3 convolution 125 GFLOP/s: limit 4.30 s, best / limit 2.00")


def test_a_program_that_fails(tmp_path, speeds):
    script = tmp_path / "program.py"
    script.write_text("import sys; sys.exit(1)")
    with pytest.raises(ValueError, match=r"cannot run program.py \(see above\): name an interpreter .* with --python"):
        peers.measure("fp32", [sys.executable, script])
