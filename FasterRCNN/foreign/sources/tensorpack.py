"""tensorpack: its names and conventions are ours. A file of this project brings its config along."""

from FasterRCNN.engine.npz import CONFIG_NAME, parse_config
from FasterRCNN.foreign.sources.base import File, Source


def _config(file: File, keys, source) -> dict:
    stored = file.arrays.get(CONFIG_NAME)
    return {} if stored is None else parse_config(stored.tobytes(), "the file")


SOURCE = Source(
    name="tensorpack", title="tensorpack", marks=(r"(tower0/)?conv0/W(:0)?",), separator="/",
    ignored=(
        (r"(tower0/)?linear/[Wb](:0)?", "ImageNet's classifier"),
        (r".*(EMA/.*|AccumGrad.*|global_step|learning_rate|loss_scale|beta[12]_power)(:0)?",
         "the state of a training run"),
        (CONFIG_NAME, "goes into the config"),
    ),
    config=_config,
)
