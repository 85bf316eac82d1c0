"""Finds data sets by name: COCO's own in its layout under a base folder, anybody's as `instances.json:images`."""

from collections.abc import Sequence
from pathlib import Path

from FasterRCNN.datasets.coco import load_coco
from FasterRCNN.structures import Categories, Dataset, PackedRecords

__all__ = ["COCO_IMAGE_FOLDERS", "load_dataset", "load_datasets", "locate_dataset"]

# coco_X is annotated by annotations/instances_X.json; the parts of a split have no image folder of their own.
COCO_IMAGE_FOLDERS = {
    "coco_train2017": "train2017",
    "coco_val2017": "val2017",
    "coco_val2017_100": "val2017",
    "coco_train2014": "train2014",
    "coco_val2014": "val2014",
    "coco_minival2014": "val2014",
    "coco_valminusminival2014": "val2014",
}


def load_dataset(
    spec: str,
    *,
    basedir: str | Path,
    absolute_coord: bool = True,
    with_ground_truth: bool = True,
    with_masks: bool = True,
    masks_required: bool = False,
    categories: Categories | None = None,
) -> Dataset:
    """The data set that `spec` names.

    spec: a key of COCO_IMAGE_FOLDERS (files under `basedir`), or `path/to/instances.json:path/to/images`. The
    other arguments are `load_coco`'s. Raises ValueError for an unknown name, and what `load_coco` raises.
    """
    name, annotation_file, image_dir = locate_dataset(spec, basedir=basedir)
    return load_coco(
        annotation_file,
        image_dir,
        name=name,
        absolute_coord=absolute_coord,
        with_ground_truth=with_ground_truth,
        with_masks=with_masks,
        masks_required=masks_required,
        categories=categories,
    )


def load_datasets(
    specs: Sequence[str],
    *,
    basedir: str | Path,
    absolute_coord: bool = True,
    with_masks: bool = True,
    categories: Categories | None = None,
) -> Dataset:
    """Several sets joined into one for training, labelled as the first (or as `categories`).

    with_masks: every object must have one. Raises ValueError when no set is given or their categories differ, and what
    `load_dataset` raises.
    """
    if not specs:
        raise ValueError("no data set is given: name at least one in DATA.TRAIN")
    datasets = []
    for spec in specs:
        first = datasets[0].categories if datasets else categories
        dataset = load_dataset(
            spec,
            basedir=basedir,
            absolute_coord=absolute_coord,
            with_masks=with_masks,
            masks_required=with_masks,
            categories=first,
        )
        datasets.append(dataset)
    if len(datasets) == 1:
        return datasets[0]
    return Dataset(
        name="+".join(dataset.name for dataset in datasets),
        records=PackedRecords.concat([dataset.records for dataset in datasets]),
        categories=datasets[0].categories,
    )


def _annotations_of(spec: str, basedir: Path) -> Path:
    return basedir / "annotations" / f"instances_{spec.removeprefix('coco_')}.json"


def locate_dataset(spec: str, *, basedir: str | Path) -> tuple[str, Path, Path]:
    """(name, annotation file, image folder) that `spec` names, see `load_dataset`."""
    basedir = Path(basedir).expanduser()
    if spec in COCO_IMAGE_FOLDERS:
        annotation_file = _annotations_of(spec, basedir)
        if not annotation_file.is_file():
            there = [name for name in COCO_IMAGE_FOLDERS if _annotations_of(name, basedir).is_file()]
            raise FileNotFoundError(
                f"data set {spec}: no such annotation file {annotation_file}. "
                + (f"The folder has those of {', '.join(there)}: name them in DATA.TRAIN or DATA.VAL" if there else
                   "Give the folder that holds annotations/ with DATA.BASEDIR=/path/to/COCO/DIR, or name your own data "
                   "as path/to/instances.json:path/to/images in DATA.TRAIN and DATA.VAL")
            )
        return spec, annotation_file, basedir / COCO_IMAGE_FOLDERS[spec]
    annotation_file, colon, image_dir = spec.rpartition(":")
    if not colon or not annotation_file or not image_dir:
        raise ValueError(
            f"unknown data set {spec!r}: give one of {', '.join(COCO_IMAGE_FOLDERS)}, "
            "or your own as path/to/instances.json:path/to/images"
        )
    annotation_path = Path(annotation_file).expanduser()
    return annotation_path.stem, annotation_path, Path(image_dir).expanduser()
