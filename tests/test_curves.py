"""Curves: what counts of a run's points, smoothing, panels by name, several runs, and the errors."""

import json
from datetime import datetime, timezone

import cv2
import numpy as np
import pytest

from FasterRCNN.engine.curves import METRICS_FILE, plot_runs, read_runs, smooth
from FasterRCNN.engine.run_folder import RUN_FILE

SCALARS = ("total_loss", "rpn/loss_cls", "box/accuracy", "learning_rate", "images_per_second")
START = 1_700_000_000


def point(step, time, value=0.5, names=SCALARS):
    return json.dumps({"step": step, "time": START + time, **dict.fromkeys(names, value)})


def write_run(folder, lines, starts=(0,)):
    folder.mkdir(parents=True)
    (folder / METRICS_FILE).write_text("\n".join(lines) + "\n")
    dates = [datetime.fromtimestamp(START + start, timezone.utc).isoformat(timespec="seconds") for start in starts]
    (folder / RUN_FILE).write_text(json.dumps({"starts": [{"date": date} for date in dates]}))
    return folder


def whole_run(folder, count=60, evaluations=(20, 40, 60)):
    lines = [point(10 * i, i, 1 / i) for i in range(1, count + 1)]
    for place in evaluations:
        last = json.loads(lines[place - 1])
        lines[place - 1] = json.dumps({**last, "bbox/AP": place / 100, "bbox/AP50": 0.5, "mine/segm/AP": 0.0})
    return write_run(folder, lines)


def test_points_made_again_count_as_made_last(tmp_path):
    """Killed after step 50, resumed from a checkpoint at 20 with longer periods: the old 30 to 50 are of no account."""
    first = [point(step, step, 1.0) for step in (10, 20, 30, 40, 50)]
    again = [point(step, 100 + step, 2.0) for step in (30, 60)]
    run, = read_runs([write_run(tmp_path / "run", first + again, starts=(0, 100))])
    steps, values = run.curve("total_loss")
    assert steps.tolist() == [10, 20, 30, 60] and values.tolist() == [1, 1, 2, 2]
    assert run.resumed_after == [20]


def test_a_start_that_wrote_nothing_is_no_mark(tmp_path):
    lines = [point(10, 1), point(20, 2)]
    run, = read_runs([write_run(tmp_path / "run", lines, starts=(0, 50, 60))])
    assert run.resumed_after == []


def test_two_starts_before_the_next_point_are_one_mark(tmp_path):
    run, = read_runs([write_run(tmp_path / "run", [point(10, 1), point(20, 99)], starts=(0, 50, 60))])
    assert run.resumed_after == [10]


def test_a_point_cut_off_and_the_one_behind_it_are_left_out_and_told(tmp_path, caplog):
    cut = point(20, 2)[:30]
    lines = [point(10, 1), cut + point(20, 2), point(30, 3), "7", cut]
    run, = read_runs([write_run(tmp_path / "run", lines)])
    assert run.curve("total_loss")[0].tolist() == [10, 30]
    assert "3 lines are not whole" in caplog.text


def test_values_that_are_no_numbers_leave_gaps(tmp_path):
    run, = read_runs([write_run(tmp_path / "run", [point(10, 1, float("nan")), point(20, 2), point(30, 3, names=())])])
    assert run.curve("total_loss")[0].tolist() == [20]
    assert len(run.curve("unknown")[0]) == 0


def test_smoothing_against_weighted_means():
    values = np.random.default_rng(0).normal(size=200)
    places = np.arange(200)
    for place in (0, 3, 100, 199):
        weights = np.exp(-0.5 * ((places - place) / 4) ** 2) * (abs(places - place) <= 12)
        assert smooth(values)[place] == pytest.approx(np.average(values, weights=weights))
    assert np.allclose(smooth(np.full(50, 3.0)), 3)


@pytest.mark.parametrize("count", [0, 1, 2, 24, 25, 26, 75, 76])
def test_smoothing_keeps_the_number_of_values(count):
    assert smooth(np.arange(count, dtype=float)).shape == (count,)


def test_pictures_of_a_run(tmp_path):
    folder = whole_run(tmp_path / "run")
    files = plot_runs([folder])
    assert files == [folder / "curves" / f"{group}.png" for group in ("losses", "evaluation", "speed", "heads")]
    for file in files:
        picture = cv2.imread(str(file))
        assert (picture < 200).any() and (picture > 250).mean() > 0.5


def test_every_scalar_has_a_panel(tmp_path):
    few = write_run(tmp_path / "few", [point(10, 1, names=["total_loss"]), point(20, 2, names=["total_loss"])])
    many = write_run(tmp_path / "many", [point(10 * i, i, names=["total_loss", *(f"box/stage{n}/loss_cls" for n in
                                                                                range(1, 8))]) for i in (1, 2)])
    (small,), (large,) = (plot_runs([folder]) for folder in (few, many))
    assert small.name == large.name == "losses.png"
    small, large = (cv2.imread(str(file)).shape for file in (small, large))
    assert large[0] > 2 * small[0] and large[1] > small[1]  # 8 panels in 3 rows of 3


def test_several_runs_are_drawn_over_each_other(tmp_path):
    folders = [whole_run(tmp_path / name / "run", count) for name, count in (("a", 60), ("b", 80))]
    files = plot_runs([*folders, folders[0]], tmp_path / "out" / "here")
    assert {file.parent for file in files} == {tmp_path / "out" / "here"}
    assert plot_runs(folders)[0].parent == folders[0] / "comparison"
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]  # both are called "run"
    picture = cv2.imread(str(files[0])).reshape(-1, 3).astype(int)
    for colour in ((0x2F, 0x6D, 0xB3), (0xD1, 0x49, 0x5B)):
        assert (abs(picture - colour[::-1]).max(axis=1) < 3).any()


def test_a_run_of_one_point(tmp_path):
    assert len(plot_runs([write_run(tmp_path / "run", [point(1, 1, 0.0)])])) == 3


def test_no_such_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run \(metrics.jsonl is not there\): name the --logdir"):
        plot_runs([tmp_path / "nowhere"])
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_written_nothing_yet(tmp_path):
    (tmp_path / METRICS_FILE).touch()
    with pytest.raises(ValueError, match=r"holds no point yet: the first is written after TRAIN.SUMMARY_PERIOD steps"):
        plot_runs([tmp_path])
