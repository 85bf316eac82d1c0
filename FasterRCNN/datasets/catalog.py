"""Finds data sets by name: COCO's own, anybody's in COCO's or Pascal VOC's format, and users' own classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from FasterRCNN.datasets.annotations import Annotations, to_dataset
from FasterRCNN.datasets.cache import cache_folder, cached_dataset
from FasterRCNN.datasets.coco import read_coco
from FasterRCNN.datasets.custom import catalog_entry, catalog_names, read_custom
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
# maskrcnn-benchmark's own classes, as a catalog names them: the form of spec for their files, and its arguments.
BENCHMARK_FACTORIES = {
    "COCODataset": ("{}:{}", ("ann_file", "root")),
    "PascalVOCDataset": ("voc:{}:{}", ("data_dir", "split")),
}
# What labelling tools name their exports, whatever is in them.
USUAL_NAMES = ("_annotations.coco", "annotations", "instances", "instances_default", "result")
USUAL_FOLDERS, SPLIT_FOLDERS = ("annotations",), ("train", "valid", "val", "validation", "test")
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
    or a name in the user's own module `catalog`, of a class there or of maskrcnn-benchmark's COCODataset or
    PascalVOCDataset, whose files are read as those of the other forms. absolute_coord=False: a COCO file's boxes are
    fractions of the image. with_masks=False: masks that lie in files of their own (VOC) are not read. Raises ValueError
    for an unknown name, FileNotFoundError for missing files, and what the format's reader raises.
    """
    name, spec = spec, _spec_of_entry(spec, catalog)
    if spec != name:
        in_files = read_annotations(spec, absolute_coord=absolute_coord, with_masks=with_masks)
        return replace(in_files, name=name)
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
    spec = _spec_of_entry(spec, catalog)
    if spec.startswith("voc:") or (catalog and spec in catalog_names(catalog)):
        return [], []
    _, annotation_file, image_dir = _locate(spec, basedir, catalog)
    return [annotation_file], [str(image_dir), str(image_dir.resolve())]


def _spec_of_entry(name: str, catalog: str | Path) -> str:
    """What else names the files of a catalog's entry, where its factory is a class of maskrcnn-benchmark's own.

    Any other name is given back. A class of that name in the user's module goes before.
    """
    if not catalog or name.startswith("voc:") or name not in catalog_names(catalog):
        return name
    factory, args = catalog_entry(name, catalog)
    wanted = BENCHMARK_FACTORIES.get(factory) if isinstance(factory, str) else None
    if wanted is None:
        return name
    form, keys = wanted
    if not all(args.get(key) for key in keys):
        raise ValueError(f"{catalog}: {name}: a {factory} has the args {' and '.join(keys)}, this one {args}")
    return form.format(*(args[key] for key in keys))


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
    """Raises FileNotFoundError where none of the images' folders is there; single ones are missing images."""
    if not len(dataset) or dataset.user_datasets:
        return
    missing: dict[Path, None] = {}
    for record in dataset.records:
        folder = Path(record.file_name).parent
        if folder not in missing and folder.is_dir():
            return
        missing[folder] = None
    raise FileNotFoundError(f"{next(iter(missing))}: no such image folder (for {source})")


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
    if len(id_of_name) < len(own):
        twice = sorted({name for name in own.names if own.names.count(name) > 1})
        raise ValueError(
            f"{source}: several of its classes are named alike, so that they cannot be matched by name: "
            f"{', '.join(twice)}. Make them one class, or give each a name of its own"
        )
    if not id_of_name.keys() <= set(wanted.names):
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
    return _name_of(annotation_path), annotation_path, Path(image_dir).expanduser()


def _name_of(annotation_file: Path) -> str:
    """A set's name: its file's; where a tool names all alike its folder's, of a split with the folder above."""
    if annotation_file.stem not in USUAL_NAMES:
        return annotation_file.stem
    folder = annotation_file.absolute().parent
    if folder.name in USUAL_FOLDERS:
        folder = folder.parent
    names = [folder.parent.name, folder.name] if folder.name in SPLIT_FOLDERS else [folder.name]
    return "_".join(filter(None, names)) or annotation_file.stem
