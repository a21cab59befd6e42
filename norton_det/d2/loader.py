"""Training batches that follow from the seed and their number alone.

Detectron2 draws images from a stream whose state is not saved, augments them from random numbers of its worker
processes, and groups them by shape in every process for itself. Here the batches of all processes together are made of
indices first, and each process takes its share; what is random in reading an image follows from the seed and the
image's place in the stream. So a run that is resumed goes on with the very images it would have had, whatever the
number of workers, and several processes see together what one would.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_test_loader
from detectron2.data.build import _train_loader_from_config, trivial_batch_collator
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils import comm
from pycocotools import mask as mask_utils
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.coco import mask_to_polygons
from ..data.decode import UnreadableImage
from ..models.input_size import ThinPicture
from ..utils.errors import InputError, first_line
from ..utils.seeds import seeded
from .datasets import check_training_sets, mapper_config, training_records
from .mapper import EvaluationMapper, ImageMapper

UNREADABLE = (UnreadableImage, ThinPicture, OSError, SyntaxError, EOFError)  # the others are of a mapper of one's own
ATTEMPTS = 100  # of other images, where one has nothing to train on
Item = tuple[int, int]


class SeededImages(Dataset):
    """Images as the model takes them, asked for by (place in the stream, index).

    One that cannot be read is passed over for another; ``unreadable`` of that one then lists files and reasons.

    Args:
        records: Detectron2's dicts.
        mapper: from a dict to what the model takes; ``None`` where there is nothing to train on.
        seed: of the augmentation.
    """

    def __init__(self, records: Any, mapper: Callable[[Any], Any], seed: int) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: Item) -> Any:
        place, index = item
        with seeded(self.seed, place):
            unreadable: list[tuple[str, str]] = []
            for _ in range(ATTEMPTS):
                record = self.records[index]
                try:
                    sample = self.mapper(record)
                except UNREADABLE as error:
                    reason = error.reason if isinstance(error, UnreadableImage | ThinPicture) else first_line(error)
                    unreadable.append((str(record["file_name"]), reason[:80]))
                    sample = None
                except SizeMismatchError as error:
                    raise InputError(
                        f"{record['file_name']}: expected the image of the annotations, got another file "
                        f"({first_line(error, 80)}); replace it"
                    ) from None
                except ValueError as error:
                    reason = first_line(error)
                    mend = "masks in runs need INPUT.MASK_FORMAT bitmask" if "mask" in reason else "mend them"
                    raise InputError(
                        f"{record['file_name']}: expected annotations that fit the config, got {reason}; {mend}"
                    ) from None
                if sample is not None:
                    return sample | {"unreadable": unreadable} if unreadable else sample
                index = random.randrange(len(self.records))
        if unreadable:
            file, reason = unreadable[0]
            raise InputError(
                f"{file}: expected the image of the annotations, got another file ({reason}), as {len(unreadable) - 1} "
                "times more in a row; replace them"
            )
        raise InputError(f"training images: expected some with objects, got {ATTEMPTS} without; check the data set")


class BatchStream(Sampler[list[Item]]):
    """An endless stream of batches of one process, by shape: wide images go with wide ones.

    Args:
        indices: endless, the same for all processes; Detectron2's samplers give them.
        wide: whether an image is wider than high, by index.
        size: images in a batch of all processes together.
        rank, processes: which share of it.

    Attributes:
        start: number of the first batch; those before it are passed over.
    """

    def __init__(
        self, indices: Iterable[int], wide: Sequence[bool], size: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.indices, self.wide, self.size = indices, wide, size
        self.rank, self.processes, self.start = rank, processes, 0

    def __iter__(self) -> Iterator[list[Item]]:
        groups: dict[bool, list[Item]] = {False: [], True: []}
        number = 0
        for place, index in enumerate(self.indices):
            group = groups[self.wide[index]]
            group.append((place, index))
            if len(group) == self.size:
                if number >= self.start:
                    yield group[self.rank :: self.processes]
                number += 1
                group.clear()


def build_train_loader(cfg: CfgNode, mapper: Callable[[Any], Any] | None = None) -> DataLoader:
    """Detectron2's training loader of a config, with its sampler, as such a stream; ``cfg.SEED`` is used.

    Args:
        cfg: of Detectron2.
        mapper: from a record to what the model takes; ``ImageMapper`` by default.

    Raises:
        InputError: a batch that cannot be shared evenly among the processes.
    """
    size, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if size < 1 or size % processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH: expected a multiple of {processes} processes, got {size}; choose such a number"
        )
    check_training_sets(cfg, cfg.DATASETS.TRAIN)
    records = training_records(cfg)
    parts = _train_loader_from_config(cfg, mapper=mapper or ImageMapper, dataset=records)  # the class alone
    sampler = parts["sampler"]
    read = mapper or ImageMapper(
        mapper_config(cfg), is_train=True
    )  # asks for names of keypoints, which come with the records
    if cfg.MODEL.MASK_ON and mapper is None:
        _prepare_masks(records, cfg.INPUT.MASK_FORMAT)
    sampler._rank, sampler._world_size = 0, 1  # the whole stream: shares are taken of batches
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    wide = [grouped and record["width"] > record["height"] for record in records]
    loader = DataLoader(
        SeededImages(DatasetFromList(records, copy=False), read, 0),
        batch_sampler=BatchStream(sampler, wide, size, comm.get_rank(), processes),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        generator=torch.Generator(),  # starting must not draw from the numbers of the step it falls into
    )
    set_seed(loader, cfg.SEED)
    return loader


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Detectron2's loader of a data set to evaluate on, with ``EvaluationMapper``."""
    return build_detection_test_loader(cfg, dataset_name, mapper=EvaluationMapper(cfg, is_train=False))


def _prepare_masks(records: Iterable[dict[str, Any]], mask_format: str) -> None:
    """Each object has a mask; runs beside polygons become polygons where Detectron2 takes no other.

    Raises:
        InputError: names the image of an object without a mask, or with one of another size.
    """
    for record in records:
        for annotation in record.get("annotations", ()):
            if annotation.get("iscrowd", 0):  # not trained on
                continue
            mask = annotation.get("segmentation")
            if isinstance(mask, dict):
                size = [record["height"], record["width"]]
                if list(mask["size"]) != size:
                    raise InputError(
                        f"{record['file_name']}: expected masks of the image's size {size}, got runs of "
                        f"{list(mask['size'])}; mend them"
                    )
                if mask_format == "polygon":
                    mask = annotation["segmentation"] = mask_to_polygons(mask_utils.decode(mask).astype(bool))
            if not mask:
                raise InputError(
                    f"{record['file_name']}: expected a mask for each object, found an object without; add it, or set "
                    "MODEL.MASK_ON False"
                )


def is_stream(loader: object) -> bool:
    """Whether a loader is of ``build_train_loader``."""
    return isinstance(getattr(loader, "batch_sampler", None), BatchStream)


def set_seed(loader: DataLoader, seed: int) -> None:
    """Give a loader that has not started yet another seed, of its order and its augmentation."""
    dataset: Any = loader.dataset
    dataset.seed = seed
    sampler: Any = loader.batch_sampler
    sampler.indices._seed = seed
