"""Processes of a run: this one, several on this machine, or those that torchrun has started."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from detectron2.engine import launch as launch_detectron2
from detectron2.utils import comm
from torch import distributed as dist
from torch.multiprocessing import ProcessExitedException

from ..utils.errors import InputError
from ..utils.machine import usable_cores
from ..utils.stop import SIGNALS, Interrupted

SILENCE = 30.0  # seconds without a sign of life after which a process is taken to hang
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
            is printed there in one line, and this one exits with 2. When a process is killed or gives no sign of life
            for half a minute, all end, and the cause is told.
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
    if processes * machines == 1:
        main(args)
        return
    if not gpus:  # they share the cores
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    beats = multiprocessing.get_context("spawn").Array("d", processes, lock=False)
    with _watching(beats) as silent:
        try:
            launch_detectron2(_run_process, processes, machines, rank, url, args=(main, args, beats), timeout=TIMEOUT)
        except ProcessExitedException as error:
            if silent:
                sys.exit(
                    f"error: process {silent[0]} gave no sign of life for {SILENCE:.0f} s, so all were ended; look at "
                    "that machine's memory and disks, --resume goes on from the last checkpoint"
                )
            if error.exit_code in (2, *(128 + number for number in SIGNALS)):  # its one line is printed
                sys.exit(error.exit_code)
            how = f"was killed ({error.signal_name})" if error.signal_name else f"ended with {error.exit_code}"
            sys.exit(
                f"error: process {error.error_index} {how}; where it was for memory, use smaller batches; --resume "
                "goes on from the last checkpoint"
            )


@contextmanager
def _watching(beats: Any) -> Iterator[list[int]]:
    """End all processes when one of them hangs, and pass signals on to them.

    Yields:
        The number of the one that hung, once there is one.
    """
    silent: list[int] = []
    ended = threading.Event()

    def pass_on(number: int, _: object) -> None:
        for process in multiprocessing.active_children():
            if process.pid is not None:
                os.kill(process.pid, number)

    def watch() -> None:
        while not ended.wait(1):
            ages = [time.time() - beat for beat in beats if beat]
            # when all are silent, the whole machine was
            if len(ages) == len(beats) and max(ages) > SILENCE > min(ages):
                silent.append(ages.index(max(ages)))
                for process in multiprocessing.active_children():
                    process.kill()
                return

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield silent
    finally:
        ended.set()
        watcher.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _join_torchrun() -> None:
    """Join the processes that torchrun has started, as its environment says."""
    local_rank, gpu = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available()
    if gpu and int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
        raise InputError(
            f"--nproc_per_node: expected at most {torch.cuda.device_count()}, as many GPUs as there are, got "
            f"{os.environ['LOCAL_WORLD_SIZE']}; lower it"
        )
    dist.init_process_group("nccl" if gpu else "gloo", timeout=TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    if gpu:
        torch.cuda.set_device(local_rank)
    comm.synchronize()


def _run_process(main: Callable[[Any], None], args: Any, beats: Any) -> None:
    """Run ``main`` in one process of several; bad input or a signal becomes one line on stderr and an exit status."""
    threading.Thread(target=_beat, args=(beats, comm.get_local_rank()), daemon=True).start()
    status = 0
    try:
        main(args)
        return
    except InputError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        status = 2
    except Interrupted as error:
        if comm.is_main_process():  # the others end well, so that it is not ended while it saves
            print(f"interrupted: {error}", file=sys.stderr)
            status = 128 + error.number
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the usual way destroys Gloo's threads while they wait for the other processes, and aborts


def _beat(beats: Any, index: int) -> None:
    """Write the time of a process, its sign of life, every second."""
    while True:
        beats[index] = time.time()
        time.sleep(1)
