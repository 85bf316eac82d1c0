"""Weights as files: reading, checking against a model, restoring.

Two formats are read: tensorpack's .npz (`conv0/W`, `group0/block0/conv1/bn/mean/EMA`, ...; its published ImageNet
backbones and COCO models) and TensorFlow checkpoints under the same names. A file of this project also holds the
config it was trained with, as JSON under the name `config_json`.

Throughout, `weights` maps a variable's name (no ':0', no tower prefix) to its float32 array, and `variables` maps the
names of a model's variables to their shapes. A variable's part is what stands before its first '/': `fpn`, `rpn` ...
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow.compat.v1 as tf
import yaml

from FasterRCNN.engine.architecture import is_backbone_only, is_backbone_variable, way_out
from FasterRCNN.engine.class_layers import CLASS_LAYERS
from FasterRCNN.engine.npz import CONFIG_NAME, parse_config, read_npz, read_npz_config
from FasterRCNN.engine.run_folder import CONFIG_FILE
from FasterRCNN.engine.zoo import plain_name, with_background_box

_TRAINING_STATE = re.compile(r"(EMA|AccumGrad|loss_scale|tower[1-9]\d*)/|(global_step|learning_rate|beta[12]_power)$")
_CHECKPOINT_PART = re.compile(r"\.(index|meta|data-\d+-of-\d+)$")
_IMAGENET_CLASSIFIER = ("linear/W", "linear/b")
_KINDS = "a tensorpack .npz file, a TensorFlow checkpoint (model-STEP) or a run folder"


# ---------------------------------------------------------------------------------------------------------- reading


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every weight of an .npz file, a checkpoint (prefix, or any of its files) or a run folder (its last checkpoint).

    Optimizer slots, counters, moving averages of losses and the config are left out. Raises FileNotFoundError or
    ValueError with one line when there is no such file or it is damaged or of another kind.
    """
    location = _locate(path)
    read = read_npz if location.suffix == ".npz" else _read_checkpoint
    arrays = read(location, wanted=lambda name: name != CONFIG_NAME)
    arrays = {plain_name(name): value for name, value in arrays.items() if np.issubdtype(value.dtype, np.floating)}
    weights = {name: value.astype(np.float32, copy=False) for name, value in arrays.items()
               if not _TRAINING_STATE.match(name) and os.path.dirname(name) not in arrays}
    return with_background_box(weights)


def read_config(path: str | os.PathLike) -> dict | None:
    """The config that a run folder, checkpoint or .npz file carries, or None when it carries none.

    A run folder's config.yaml comes first, then `config_json` in the file, then a config.yaml beside a checkpoint.
    Raises as `read_weights`.
    """
    if Path(path).is_dir() and (Path(path) / CONFIG_FILE).is_file():
        return _read_yaml(Path(path) / CONFIG_FILE)
    location = _locate(path)
    if location.suffix == ".npz":
        return read_npz_config(location)
    stored = _read_checkpoint(location, wanted=lambda name: name == CONFIG_NAME)
    if stored:
        return parse_config(stored[CONFIG_NAME].item(), location)
    beside = location.parent / CONFIG_FILE
    return _read_yaml(beside) if beside.is_file() else None


def _locate(path: str | os.PathLike) -> Path:
    """The .npz file or checkpoint prefix meant by a path."""
    path = Path(path)
    if path.is_dir() or path.name == "checkpoint":
        return _last_checkpoint(path if path.is_dir() else path.parent)
    prefix = path.with_name(_CHECKPOINT_PART.sub("", path.name))
    if prefix.with_name(prefix.name + ".index").is_file():
        return prefix
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: give {_KINDS}{_neighbours(path)}")
    if path.suffix != ".npz":
        raise ValueError(f"{path} is no weights file that can be read here: give {_KINDS}")
    return path


def _last_checkpoint(folder: Path) -> Path:
    found = [file.with_suffix("") for file in folder.glob("*.index")]
    if not found:
        raise FileNotFoundError(f"{folder} holds no checkpoint (model-STEP.index): give {_KINDS}")
    state = tf.train.get_checkpoint_state(str(folder))
    # Only the name counts: the path may be absolute, and the folder copied or moved since.
    named = folder / Path(state.model_checkpoint_path).name if state else None
    if named in found:
        return named
    return max(found, key=lambda prefix: int((re.findall(r"-(\d+)$", prefix.name) or [-1])[0]))


def _neighbours(path: Path) -> str:
    found = sorted(file.name for file in path.parent.glob("*") if file.suffix in (".npz", ".index"))
    return f"; {path.parent} holds {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}" if found else ""


def _read_checkpoint(prefix: Path, *, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = reader.get_variable_to_shape_map()
        return {name: np.asarray(reader.get_tensor(name)) for name in sorted(names) if wanted(name)}
    except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"checkpoint {prefix} is damaged or incomplete ({reason}): "
                         "copy its .index and .data files again") from None


def _read_yaml(path: Path) -> dict:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold KEY: VALUE lines, not {type(config).__name__}")
    return config


# --------------------------------------------------------------------------------------------------------- checking


@dataclass(frozen=True)
class WeightReport:
    """How a file's weights meet a model's variables; `mismatched`: name -> (shape in the file, shape in the model)."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def summary(self) -> str:
        """A line each for what is loaded, missing, not used and of another shape, counted by part."""
        return "\n".join([f"loaded: {_by_part(self.matched)}", *self.problems()])

    def problems(self) -> list[str]:
        """The lines of the summary that tell of something else than a match; none when everything matches."""
        lines = []
        if self.missing:
            lines.append(f"missing in the file: {_by_part(self.missing)}")
        if self.mismatched:
            lines.append(f"of another shape: {_shapes_by_part(self.mismatched)}")
        if self.unexpected:
            lines.append(f"in the file, not in the model: {_by_part(self.unexpected)}")
        return lines


def match_weights(weights: Mapping[str, np.ndarray], variables: Mapping[str, tuple[int, ...]]) -> WeightReport:
    """Compare a file's names and shapes with a model's; the classifier of an ImageNet backbone is not mentioned."""
    common = [name for name in variables if name in weights]
    shapes = {name: (tuple(weights[name].shape), tuple(variables[name])) for name in common}
    return WeightReport(
        matched=tuple(name for name in common if shapes[name][0] == shapes[name][1]),
        missing=tuple(name for name in variables if name not in weights),
        unexpected=tuple(name for name in weights if name not in variables and name not in _IMAGENET_CLASSIFIER),
        mismatched={name: pair for name, pair in shapes.items() if pair[0] != pair[1]},
    )


def select_for_prediction(weights: Mapping[str, np.ndarray], variables: Mapping[str, tuple[int, ...]], *,
                          config: Mapping | None = None, source: str = "the weights file",
                          ) -> tuple[dict[str, np.ndarray], WeightReport]:
    """The weights of every variable of a model, or ValueError that says what does not fit and which keys would.

    A part that the model does not have (`maskrcnn` with MODE_MASK=False) may stand in the file; further variables in
    a part that it has (more blocks in `group2`) mean another architecture. `config`, nested or with dotted keys, is
    what the model was built from: only keys of another value are proposed. `source` names the file in messages.
    """
    report = match_weights(weights, variables)
    if is_backbone_only(weights):
        raise ValueError(f"{source} is an ImageNet backbone without the detector's heads: use it as "
                         "BACKBONE.WEIGHTS for training, and load a trained detector here\n  "
                         f"missing in the file: {_by_part(report.missing)}")
    parts = {_part(name) for name in variables}
    surplus = [name for name in report.unexpected if _part(name) in parts]
    misfit = WeightReport(report.matched, report.missing, tuple(surplus), report.mismatched)
    if misfit.missing or misfit.mismatched or misfit.unexpected:
        raise ValueError(_refusal(weights, variables, misfit, config, source))
    return {name: weights[name] for name in report.matched}, report


def select_for_training(weights: Mapping[str, np.ndarray], variables: Mapping[str, tuple[int, ...]], *,
                        config: Mapping | None = None, source: str = "the weights file",
                        ) -> tuple[dict[str, np.ndarray], WeightReport]:
    """The weights that training starts from; what the file does not have outside the backbone keeps its start value.

    The backbone must be there as a whole. The heads' last layers may have another shape (another number of classes):
    they are left out and stand in `report.mismatched`. Anything else of another shape raises ValueError, as do
    further variables in the backbone. Arguments as in `select_for_prediction`.
    """
    report = match_weights(weights, variables)
    misfit = WeightReport(
        matched=report.matched,
        missing=tuple(filter(is_backbone_variable, report.missing)),
        unexpected=tuple(filter(is_backbone_variable, report.unexpected)),
        mismatched={name: pair for name, pair in report.mismatched.items() if not CLASS_LAYERS.fullmatch(name)},
    )
    if misfit.missing or misfit.mismatched or misfit.unexpected:
        raise ValueError(_refusal(weights, variables, misfit, config, source))
    return {name: weights[name] for name in report.matched}, report


def _refusal(weights: Mapping, variables: Mapping, misfit: WeightReport, config: Mapping | None, source: str) -> str:
    """The message for weights that do not fit: the way out first, then the variables by part."""
    if not misfit.matched and not misfit.mismatched:
        return (f"{source} has no variable of this model: it holds {', '.join(list(weights)[:3]) or 'none at all'}; "
                f"wanted are tensorpack's names, such as {', '.join(list(variables)[:3])}")
    advice = way_out({name: value.shape for name, value in weights.items()}, variables, config)
    return "\n  ".join([f"{source} does not fit the configured model: {advice}", *misfit.problems()])


def _part(name: str) -> str:
    return name.split("/")[0]


def _grouped(names) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_part(name), []).append(name)
    return groups


def _by_part(names) -> str:
    """'fpn 16, rpn 6': how many variables of each part."""
    return ", ".join(f"{part} {len(group)}" for part, group in sorted(_grouped(names).items())) or "nothing"


def _shapes_by_part(mismatched: Mapping) -> str:
    def line(name: str) -> str:
        given, wanted = ("x".join(map(str, shape)) or "scalar" for shape in mismatched[name])
        return f"{name} is {given}, the model's {wanted}"
    texts = []
    for group in _grouped(mismatched).values():
        shown = group if len(group) <= 4 else group[:2]
        rest = len(group) - len(shown)
        texts += [line(name) for name in shown] + ([f"and {rest} more in {_part(group[0])}"] if rest else [])
    return "; ".join(texts)


# ----------------------------------------------------------------------------------------------------- restoring


def restore(session: tf.Session, weights: Mapping[str, np.ndarray]) -> None:
    """Set the variables of the session's graph to the given values, in one run and without adding to the graph.

    Raises ValueError when the graph has no variable of a name.
    """
    variables = {variable.op.name: variable for variable in session.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)}
    unknown = [name for name in weights if name not in variables]
    if unknown:
        raise ValueError(f"the graph has no variable {', '.join(unknown[:5])}: select the weights for this model first")
    initializers = [variables[name].initializer for name in weights]
    # An initializer assigns its second input, for reference and resource variables alike: feeding it adds no operation.
    feeds = {op.inputs[1].name: value for op, value in zip(initializers, weights.values(), strict=True)}
    session.run(initializers, feed_dict=feeds)
