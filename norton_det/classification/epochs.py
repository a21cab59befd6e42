"""Batches of a classifier's training that follow from the seed, the epoch and their number alone.

So a run that goes on in the middle of an epoch has the very images it would have had, augmented alike, whatever the
number of workers, and several processes see together what one would.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..utils.errors import InputError
from ..utils.seeds import seeded

MOST_UNREADABLE = 0.01  # of the images; more are no accident
Item = tuple[int, int]


class SeededSamples(Dataset):
    """Samples asked for by (epoch, index), each with its index; augmentation follows from the seed and these two.

    Args:
        data: gives (image, label) by index; the label of an image that cannot be read is -1.
        seed: of the augmentation.
    """

    def __init__(self, data: Dataset, seed: int) -> None:
        self.data, self.seed = data, seed

    def __getitem__(self, item: Item) -> tuple[Tensor, int, int]:
        epoch, index = item
        with seeded(self.seed, epoch, index):
            image, label = self.data[index]
        return image, int(label), index


class EpochBatches(Sampler[list[Item]]):
    """The batches of an epoch for one process, in an order of their own; images that fill no batch are left out.

    Args:
        count: images in all.
        size: of a batch of all processes together.
        seed: of the order.
        rank, processes: which share of each batch.

    Attributes:
        epoch: whose order it is.
        start: number of the first batch; those before it are passed over.
    """

    def __init__(self, count: int, size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.count, self.size, self.seed = count, size, seed
        self.rank, self.processes = rank, processes
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return self.count // self.size - self.start

    def __iter__(self) -> Iterator[list[Item]]:
        with seeded(self.seed, self.epoch):
            order = torch.randperm(self.count).tolist()
        for number in range(self.start, self.count // self.size):
            batch = order[number * self.size : (number + 1) * self.size]
            yield [(self.epoch, index) for index in batch[self.rank :: self.processes]]


class Unreadable:
    """The images of a data set that could not be read; a few are an accident.

    Args:
        count: of the images of the data set.

    Attributes:
        names: of these images.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.names: set[str] = set()

    def add(self, names: Iterable[str]) -> None:
        """Take note of images that could not be read.

        Raises:
            InputError: more than one image in a hundred.
        """
        self.names.update(names)
        if len(self.names) > MOST_UNREADABLE * self.count:
            raise InputError(
                f"{min(self.names)}: expected images that can be read, {len(self.names)} of {self.count} are damaged, "
                f"more than {MOST_UNREADABLE:.0%}; replace them"
            )


def file_names(data: Any, indices: Sequence[int]) -> list[str]:
    """Names of images, where the data set or the one below a subset has them; else their places."""
    while not hasattr(data, "files") and hasattr(data, "dataset") and hasattr(data, "indices"):
        indices, data = [data.indices[index] for index in indices], data.dataset
    return [str(data.files[index]) if hasattr(data, "files") else f"image {index}" for index in indices]


def make_loader(data: Dataset, count: int, size: int, workers: int, seed: int, rank: int, processes: int) -> DataLoader:
    """A loader of (images, labels, indices), its ``batch_sampler`` an ``EpochBatches``.

    Args:
        data: gives (image, label).
        count: of its images.
        size: images in a batch of all processes together.
        workers: processes that read images, for this one.
        seed: of order and augmentation.
        rank, processes: which share of each batch.

    Raises:
        InputError: fewer images than a batch holds, or a batch that the processes cannot share.
    """
    if size > count:
        raise InputError(f"batch_size: expected no more than the images, got {size}; lower it")
    if size % processes:
        near = processes * math.ceil(size / processes)
        raise InputError(f"batch_size: expected a multiple of {processes} processes, got {size}; use {near}")
    return DataLoader(
        SeededSamples(data, seed),
        batch_sampler=EpochBatches(count, size, seed, rank, processes),
        num_workers=workers,
        generator=torch.Generator(),  # starting must not draw from the numbers of the step it falls into
    )
