"""Finds data sets by name: COCO's own, anybody's in COCO's or Pascal VOC's format, and users' own classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from FasterRCNN.datasets.annotations import Annotations, to_dataset
from FasterRCNN.datasets.cache import cache_folder, cached_dataset
from FasterRCNN.datasets.coco import read_coco
from FasterRCNN.datasets.custom import catalog_names, read_custom
from FasterRCNN.datasets.problems import Problems
from FasterRCNN.datasets.records import PackedRecords
from FasterRCNN.datasets.voc import read_voc
from FasterRCNN.structures import Categories, Dataset

__all__ = ["COCO_IMAGE_FOLDERS", "join_datasets", "load_dataset", "read_annotations"]

# coco_X is annotated by annotations/instances_X.json; the parts of a split have no image folder of their own.
COCO_IMAGE_FOLDERS = {
    "coco_train2017": "train2017",
    "coco_val2017": "val2017",
    "coco_val2017_100": "val2017",
    "coco_test2017": "test2017",
    "coco_test-dev2017": "test2017",
    "coco_train2014": "train2014",
    "coco_val2014": "val2014",
    "coco_minival2014": "val2014",
    "coco_valminusminival2014": "val2014",
}
FORMS = "path/to/instances.json:path/to/images, voc:DIR:SPLIT"


def read_annotations(
    spec: str,
    *,
    basedir: str | Path = "",
    absolute_coord: bool = True,
    catalog: str | Path = "",
    with_masks: bool = True,
) -> Annotations:
    """The annotations of the data set that `spec` names.

    spec: a key of COCO_IMAGE_FOLDERS (files under `basedir`), `path/to/instances.json:path/to/images`, `voc:DIR:SPLIT`,
    or a name in the user's own module `catalog`. absolute_coord=False: a COCO file's boxes are fractions of the image.
    with_masks=False: masks that lie in files of their own (VOC) are not read. Raises ValueError for an unknown name,
    FileNotFoundError for missing files, and what the format's reader raises.
    """
    if spec.startswith("voc:"):
        folder, _, split = spec.removeprefix("voc:").rpartition(":")
        return read_voc(Path(folder or split).expanduser(), split if folder else "", with_masks=with_masks)
    if catalog and spec in catalog_names(catalog):
        return read_custom(spec, catalog)
    name, annotation_file, image_dir = _locate(spec, basedir, catalog)
    return read_coco(annotation_file, image_dir, name=name, absolute_coord=absolute_coord)


def load_dataset(
    spec: str,
    *,
    basedir: str | Path = "",
    absolute_coord: bool = True,
    catalog: str | Path = "",
    with_truth: bool = True,
    with_masks: bool = True,
    masks_required: bool = False,
    stop_on_error: bool = False,
    categories: Categories | None = None,
    cache: str = "none",
) -> Dataset:
    """The data set that `spec` names, its objects checked: those that cannot be used are left out and counted.

    spec, basedir, absolute_coord, catalog: see `read_annotations`. with_truth=False: the images alone. masks_required:
    objects without a mask are left out. stop_on_error: raises ValueError instead of leaving anything out. categories:
    label as in this other (training) set, matched by id and name, or by name; without it labels follow the ids. cache:
    where records of large files are kept, see `cache_folder`. Raises ValueError for classes that the other set does not
    have, for a set without annotations, and where no object has the mask it must have; and what `read_annotations`
    raises.
    """
    read = partial(
        read_annotations,
        spec,
        basedir=basedir,
        absolute_coord=absolute_coord,
        catalog=catalog,
        with_masks=with_masks,
    )

    def load(problems: Problems) -> Dataset:
        return _checked_dataset(
            read(), categories, problems, with_truth=with_truth, with_masks=with_masks, masks_required=masks_required
        )

    sources, paths = _large_sources(spec, basedir, catalog)
    options = [absolute_coord, with_truth, with_masks, masks_required]
    problems = Problems(str(sources[0]) if sources else spec)
    dataset = cached_dataset(
        load,
        problems,
        key=[spec, paths, options, categories and [categories.names, categories.ids]],
        sources=sources,
        folder=cache_folder(cache),
    )
    dataset = replace(dataset, reread=read)
    problems.settle(stop=stop_on_error)
    _check_image_folder(dataset, problems.source)
    return dataset


def _large_sources(spec: str, basedir: str | Path, catalog: str | Path) -> tuple[list[Path], list[str]]:
    """(annotation files, where images lie) of a set worth keeping in a file: COCO's format is one large file."""
    if spec.startswith("voc:") or (catalog and spec in catalog_names(catalog)):
        return [], []
    _, annotation_file, image_dir = _locate(spec, basedir, catalog)
    return [annotation_file], [str(image_dir), str(image_dir.resolve())]


def _checked_dataset(
    annotations: Annotations,
    categories: Categories | None,
    problems: Problems,
    *,
    with_truth: bool,
    with_masks: bool,
    masks_required: bool,
) -> Dataset:
    """See load_dataset."""
    if with_truth and not annotations.has_truth:
        raise ValueError(f"{annotations.source}: no list 'annotations': there is nothing to train on or to score with")
    own = annotations.categories
    dataset = to_dataset(
        annotations,
        own if categories is None else align_categories(own, categories, annotations.source),
        problems,
        with_truth=with_truth,
        with_masks=with_masks,
        masks_required=masks_required,
    )
    without_mask = problems.by_kind().get("no_mask", ())
    if without_mask and not any((~record.is_crowd).any() for record in dataset.records):
        raise ValueError(
            f"{annotations.source}: none of its {len(without_mask)} objects has a mask; for boxes alone set "
            "MODE_MASK=False"
        )
    return dataset


def _check_image_folder(dataset: Dataset, source: str) -> None:
    if len(dataset) and not dataset.user_datasets:
        folder = Path(dataset.records[0].file_name).parent
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such image folder (for {source})")


def join_datasets(datasets: Sequence[Dataset]) -> Dataset:
    """Several sets, labelled alike, as one; ValueError when there is none."""
    if not datasets:
        raise ValueError("no data set is given: name at least one in DATA.TRAIN")
    if len(datasets) == 1:
        return datasets[0]
    return Dataset(
        name="+".join(dataset.name for dataset in datasets),
        records=PackedRecords.concat([dataset.records for dataset in datasets]),
        categories=datasets[0].categories,
        user_datasets={name: user for dataset in datasets for name, user in dataset.user_datasets.items()},
    )


def align_categories(own: Categories, wanted: Categories, source: str) -> Categories:
    """`wanted`'s classes in its order, with the ids that they have in the file `source`, whose classes are `own`.

    Classes that the file does not have keep their ids, or get new ones where those are taken. Raises ValueError naming
    the classes that only one of the two has, when the file has one that is not wanted.
    """
    if own.by_id.items() <= wanted.by_id.items():
        return wanted
    id_of_name = {name: category_id for category_id, name in own.by_id.items()}
    if len(id_of_name) < len(own) or not id_of_name.keys() <= set(wanted.names):
        ours = [name for name in own.names if name not in wanted.names]
        theirs = [name for name in wanted.names if name not in own.names]
        raise ValueError(
            f"{source}: its classes are not those of the training set. Only here: {', '.join(ours) or '-'}; only in "
            f"training: {', '.join(theirs) or '-'}. Use the same names in both"
        )
    free = max((*own.ids, *wanted.ids)) + 1
    ids = []
    for name, category_id in zip(wanted.names, wanted.ids, strict=True):
        if name not in id_of_name and category_id in own.by_id:
            category_id, free = free, free + 1
        ids.append(id_of_name.get(name, category_id))
    return Categories(names=wanted.names, ids=ids)


def _annotations_of(spec: str, basedir: Path) -> Path:
    prefix = "image_info" if spec.startswith("coco_test") else "instances"
    return basedir / "annotations" / f"{prefix}_{spec.removeprefix('coco_')}.json"


def _locate(spec: str, basedir: str | Path, catalog: str | Path) -> tuple[str, Path, Path]:
    """(name, annotation file, image folder) of a set in COCO's format."""
    basedir = Path(basedir).expanduser()
    if spec in COCO_IMAGE_FOLDERS:
        annotation_file = _annotations_of(spec, basedir)
        if not annotation_file.is_file():
            there = [name for name in COCO_IMAGE_FOLDERS if _annotations_of(name, basedir).is_file()]
            raise FileNotFoundError(
                f"data set {spec}: no such annotation file {annotation_file}. "
                + (f"The folder has those of {', '.join(there)}: name them in DATA.TRAIN or DATA.VAL" if there else
                   "Give the folder that holds annotations/ with DATA.BASEDIR=/path/to/COCO/DIR, or name your own data "
                   f"in DATA.TRAIN and DATA.VAL as {FORMS}")
            )
        return spec, annotation_file, basedir / COCO_IMAGE_FOLDERS[spec]
    annotation_file, colon, image_dir = spec.rpartition(":")
    if not colon or not annotation_file or not image_dir:
        own = f"; {catalog} has {', '.join(catalog_names(catalog))}" if catalog else ", or a name in DATA.CATALOG"
        raise ValueError(
            f"unknown data set {spec!r}: give one of {', '.join(COCO_IMAGE_FOLDERS)}, or your own as {FORMS}{own}"
        )
    annotation_path = Path(annotation_file).expanduser()
    return annotation_path.stem, annotation_path, Path(image_dir).expanduser()
