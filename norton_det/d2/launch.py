"""Processes of a run: this one, several on this machine, or those that torchrun has started."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from detectron2.engine import launch as launch_detectron2
from detectron2.utils import comm
from torch import distributed as dist
from torch.multiprocessing import ProcessExitedException

from ..errors import InputError

TIMEOUT = timedelta(hours=4)  # the others wait while the first process compresses the weights to start from
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def launch(
    main: Callable[[Any], None], args: Any, processes: int = 1, machines: int = 1, rank: int = 0, url: str = "auto"
) -> None:
    """Run ``main(args)`` in every process of a run; with several they speak NCCL on GPUs and Gloo on CPUs.

    Below torchrun its processes are used, and ``processes`` has to be left at 1.

    Args:
        main: a function of a module, as it is sent to the processes.
        args: for it.
        processes: on each machine.
        machines, rank, url: how many, which of them this is, and the address of the first.

    Raises:
        InputError: processes within torchrun's, or more than there are GPUs. Bad input in a process of this machine
            is printed there in one line, and this one exits with 2.
    """
    if all(name in os.environ for name in TORCHRUN):
        if processes * machines > 1:
            raise InputError("--num-gpus: expected 1 below torchrun, which starts the processes; leave it out")
        _join_torchrun()
        try:
            main(args)
        finally:
            dist.destroy_process_group()
        return
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise InputError(f"--num-gpus: expected at most {gpus}, as many as there are here, got {processes}; lower it")
    try:
        launch_detectron2(_one_line, processes, machines, rank, url, args=(main, args), timeout=TIMEOUT)
    except ProcessExitedException as error:
        if error.exit_code == 2:  # its one line is printed
            sys.exit(2)
        how = f"was killed ({error.signal_name})" if error.signal_name else f"ended with {error.exit_code}"
        sys.exit(f"error: process {error.error_index} {how}; where it was for memory, use smaller batches")


def _join_torchrun() -> None:
    local, gpu = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available()
    if gpu and int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
        raise InputError(
            f"--nproc_per_node: expected at most {torch.cuda.device_count()}, as many GPUs as there are, got "
            f"{os.environ['LOCAL_WORLD_SIZE']}; lower it"
        )
    dist.init_process_group("nccl" if gpu else "gloo", timeout=TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    if gpu:
        torch.cuda.set_device(local)
    comm.synchronize()


def _one_line(main: Callable[[Any], None], args: Any) -> None:
    """``main`` in a process of several: bad input is one line and exit status 2; alone, its error goes on."""
    if comm.get_world_size() == 1:
        main(args)
        return
    try:
        main(args)
    except InputError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)
        sys.exit(2)
