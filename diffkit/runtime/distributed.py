"""Devices, and several processes on one batch through torch.distributed. In a single process every operation is free.

torchrun (also under Slurm and Kubernetes) sets RANK, WORLD_SIZE and LOCAL_RANK. Each rank trains on its rows of the
global batch. Control flags use gloo, so that they never wait for the GPU; a wait for another process that may take long
(a save, samples, a report) uses the store of the launcher and has no time limit, since `Heartbeat` notices each process
that no longer answers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from ..errors import DiffkitError, PeerError, ResourceError, UsageError, is_out_of_memory, system_error

BEAT_SECONDS, LOST_SECONDS = 2.0, 30.0
"""How often each process counts up its number in the store, and after which time without it a process is lost."""
WAIT = timedelta(seconds=2)
"""Length of one wait for the store. Between two waits, Python handles signals."""
LEAVE_SECONDS = 3.0
"""How long the first process, which may have the store, waits for the others to read what it wrote last."""
ANSWER_SECONDS = 15.0
"""Time within which a store answers. A program that listens at its place and does not answer is another one."""
SHARED_SECONDS = 20.0
"""Time within which a file that one process has written appears to the others."""


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device for --device. "auto" is the CUDA device of this local rank if there is one, else the CPU.

    Raises:
        UsageError: the name is invalid, or this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"unknown device {name!r}", code="DK054", choices="auto, cpu, cuda, cuda:0") from error
    if device.type != "cuda":
        _require_tensors(device)
    else:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = from_launcher("LOCAL_RANK", 0) if device.index is None else device.index
        if index >= count:
            message = f"device {name} is not available: this machine has {count} CUDA devices"
            fix = "--device cpu" if count == 0 else f"start one process for each device: {count}"
            missing = UsageError(message, code="DK054", fix=fix)
            missing.reported = index > count if device.index is None else from_launcher("LOCAL_RANK", 0) > 0
            raise missing
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def require_devices(name: str, processes: int) -> None:
    """Raise UsageError if this machine has fewer CUDA devices than processes that take one each."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if processes > count and (name == "cuda" or (name == "auto" and count)):
        message = f"{processes} processes need {processes} CUDA devices, and this machine has {count}"
        raise UsageError(message, code="DK054", fix=f"--nproc {count}" if count else "--device cpu")


def _require_tensors(device: torch.device) -> None:
    """Raise UsageError unless this build of torch can hold numbers on the device."""
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        message = f"device {device} is not available: this build of torch cannot compute on it"
        raise UsageError(message, code="DK054", fix="--device cpu") from error


def from_launcher(name: str, default: int) -> int:
    """Return a whole number that a launcher such as torchrun has set as an environment variable.

    Args:
        name: the variable.
        default: the number if the variable is not set.

    Returns:
        The number, at least 0.

    Raises:
        UsageError: the variable is not a whole number.
    """
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        message = f"the environment variable {name} is {text!r}, not a whole number"
        raise UsageError(message, code="DK026", fix=f"unset {name}, or start the run by torchrun")
    return int(text)


@dataclass(frozen=True)
class Ranks:
    """The processes of a run. `control` is the gloo group of all ranks and `store` the one of the launcher, None for a
    single process.
    """

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None
    store: Any = None
    heartbeat: Heartbeat | None = None
    _count: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank. Every rank gets the same result."""
        if self.control is None:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.control)
        return bool(value)

    def sum(self, value: Tensor) -> Tensor:
        """Sum `value` over the ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def exchange(self, text: str = "") -> list[str]:
        """Return the texts of all ranks, in order. Waits for every rank, however long it takes.

        Raises PeerError if another rank has failed meanwhile.
        """
        if self.store is None:
            return [text]
        number = next(self._count)
        self.store.set(f"{number}/{self.rank}", text)
        keys = [f"{number}/{rank}" for rank in range(self.size)]
        while not self.store.check(keys):
            if self.store.check([FAILED]):
                rank, _, facts = self.store.get(FAILED).decode().partition(" ")
                raise ended_first(f"process {rank}", json.loads(facts))
            with contextlib.suppress(dist.DistStoreError):  # the time of one wait is over
                self.store.wait(keys, WAIT)
        texts = [self.store.get(key).decode() for key in keys]
        self.store.delete_key(f"{number - 1}/{self.rank}")  # every rank has read it: it has written this number since
        return texts

    def share(self, tensors: tuple[Tensor, ...], owner: int) -> tuple[Tensor, ...]:
        """Return the tensors of process `owner`, on the CPU. Those of the other processes are not used."""
        if self.control is None:
            return tensors
        named = [[str(one.dtype).removeprefix("torch."), *one.shape] for one in tensors]
        described = json.dumps(named).encode() if self.rank == owner else b""
        length = torch.tensor(len(described))
        dist.broadcast(length, owner, group=self.control)
        header = torch.frombuffer(bytearray(described.ljust(int(length))), dtype=torch.uint8)
        dist.broadcast(header, owner, group=self.control)
        shared = []
        for number, (dtype, *shape) in enumerate(json.loads(bytes(header.tolist()))):
            own = tensors[number].detach().cpu().contiguous() if self.rank == owner else None
            found = torch.empty(shape, dtype=getattr(torch, dtype)) if own is None else own
            if found.numel():
                dist.broadcast(found, owner, group=self.control)
            shared.append(found)
        return tuple(shared)

    def in_order(self, compute: Callable[[int], tuple[Tensor, ...]], count: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield compute(0), ..., compute(count - 1) on every rank; each computes a share, however long it takes.

        Raises PeerError if another rank has failed meanwhile.
        """
        for first in range(0, count, self.size):
            index = first + self.rank
            own = compute(index) if index < count else ()
            self.barrier()
            for owner in range(min(self.size, count - first)):
                yield self.share(own, owner)

    def barrier(self) -> None:
        """Wait for every rank, however long it takes."""
        self.exchange()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Raise an error of the block on every rank: its own on the ranks that had one, else a PeerError.

        All ranks enter the block, which must not contain a collective call. One of the errors is printed, the others
        are not.
        """
        try:
            yield
        except Exception as error:
            causes = self._failures(error)
            if isinstance(error, DiffkitError):
                error.reported = min(causes) < self.rank
            raise
        if causes := self._failures(None):
            rank = min(causes)
            raise ended_first(f"process {rank} on {causes[rank]['host']}", causes[rank])

    def require_shared(self, folder: Path) -> None:
        """Raise UsageError on every rank unless `folder` is the same one for all: each sees a new file of the first.

        It waits for the file, because a file system on a network may be late.
        """
        if self.store is None:
            return
        with self.together():
            if self.is_main:
                (mark := folder / f".tmp-shared-{uuid.uuid4().hex}").touch()
        text = json.dumps([mark.name, os.path.abspath(folder), platform.node()]) if self.is_main else ""
        name, path, host = json.loads(self.exchange(text)[0])
        try:
            with self.together():
                end = time.monotonic() + SHARED_SECONDS
                while not _lists(folder, name):
                    if time.monotonic() > end:
                        here = f"{os.path.abspath(folder)} of process {self.rank} on {platform.node()}"
                        message = f"{here} is not the folder {path} of the first process on {host}"
                        fix = "put it on a file system that all hosts share, and pass it by --out"
                        raise UsageError(message, code="DK615", fix=fix)
                    time.sleep(0.1)
        finally:
            if self.is_main:
                mark.unlink(missing_ok=True)

    def fail(self, error: BaseException) -> None:
        """End the collective calls of the other ranks, because this rank ends with an error."""
        if self.store is not None:
            with contextlib.suppress(RuntimeError):  # the store is gone with the launcher
                self.store.set(FAILED, f"{self.rank} {json.dumps(facts_of(error))}")

    def _failures(self, error: Exception | None) -> dict[int, dict[str, Any]]:
        """Exchange an error with the other ranks; returns the errors of all ranks that have one."""
        texts = self.exchange("" if error is None else json.dumps(facts_of(error)))
        return {rank: json.loads(text) for rank, text in enumerate(texts) if text}


def _lists(folder: Path, name: str) -> bool:
    """Return whether a folder lists a file; a network file system reads a directory again when it is opened."""
    try:
        os.listdir(folder.parent)  # the folder may be new too
        return name in os.listdir(folder)
    except OSError:
        return False


SINGLE_PROCESS = Ranks()
FAILED = "failed"
"""The name in the store of the failure of a process that has ended."""


def facts_of(error: BaseException) -> dict[str, Any]:
    """Return the host, the code, the exit code and the message of an error, for other processes and for a file."""
    known = system_error(error) if isinstance(error, OSError) else error
    if isinstance(known, DiffkitError):
        facts = {"code": known.code, "exit_code": known.exit_code, "message": known.render()}
    elif is_out_of_memory(error):  # a ResourceError at the end of the stage
        facts = {"code": "DK401", "exit_code": ResourceError.exit_code, "message": "memory ran out"}
    else:
        facts = {"code": None, "exit_code": 1, "message": repr(error)}
    return {"host": platform.node(), **facts}


def ended_first(who: str, cause: dict[str, Any]) -> PeerError:
    """Return the error of a process that ends because another one, whose `facts_of` are `cause`, ended; it is not
    printed.
    """
    error = PeerError(f"{who} ended first: {cause['message']}")
    error.exit_code, error.reported = cause["exit_code"], True
    return error


def broken_collective(error: BaseException) -> bool:
    """Return whether an error of torch states that another process left, or did not answer in time."""
    text = str(error).lower()
    parts = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and not isinstance(error, DiffkitError) and any(part in text for part in parts)
    )


class Heartbeat(threading.Thread):
    """Counts up the number of this process in the store, and watches that of the next process, in a ring.

    A watched number that stands still for `seconds` means that its process is stopped or gone. Time is counted in turns
    of this thread, so a pause of the whole machine counts as one turn. A second thread notices a store that does not
    answer, because its host is stopped or lost: this thread then waits for it.

    Args:
        store: a client of the store that no other thread uses.
        rank: number of this process.
        size: number of processes, at least 2.
        seconds: time without an answer after which a process is lost.
        on_lost: called in this thread with a sentence, at most once.
    """

    def __init__(
        self, store: Any, rank: int, size: int, seconds: float, on_lost: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(name="diffkit-heartbeat", daemon=True)
        self.on_lost = on_lost
        self._store, self._rank, self._size, self._watched = store, rank, size, (rank + 1) % size
        self._seconds, self._beat, self._left = seconds, min(BEAT_SECONDS, seconds / 4), threading.Event()
        self._turns = 0

    def run(self) -> None:
        threading.Thread(target=self._watch_store, name="diffkit-store", daemon=True).start()
        silent, last = 0.0, ""
        for self._turns in itertools.count():
            last, silent = self._turn(self._turns, last, silent)
            if last == LEFT or self._left.wait(self._beat):
                break
            silent += self._beat
            if silent >= self._seconds:
                self._lost(f"process {self._watched} has not answered for {self._seconds:.0f} s")
                break
        self._left.set()

    def _watch_store(self) -> None:
        silent, before = 0.0, -1
        while silent < self._seconds:
            if self._left.wait(self._beat):
                return
            silent, before = 0.0 if self._turns != before else silent + self._beat, self._turns
        self._lost(f"the first process, or its launcher, has not answered for {self._seconds:.0f} s")

    def _turn(self, number: int, last: str, silent: float) -> tuple[str, float]:
        """Write the own number and read the other one: returns it, and the time that it stands still."""
        try:
            self._store.set(f"beat/{self._rank}", str(number))
            key = f"beat/{self._watched}"
            now = self._store.get(key).decode() if self._store.check([key]) else ""
        except RuntimeError:  # the store, and so the launcher, does not answer
            return last, silent
        return now, silent if now == last else 0.0

    def _lost(self, message: str) -> None:
        if self.on_lost is not None and not self._left.is_set():
            self.on_lost(f"{message}: it hangs or its host is lost")

    def leave(self, seconds: float = 0.0) -> None:
        """End the thread; the process that watches this one stops to watch. Then wait for the others to leave."""
        self._left.set()
        self.join(2 * BEAT_SECONDS)
        if self.is_alive():
            return  # it waits for a store that does not answer, and so would this thread
        with contextlib.suppress(RuntimeError):  # the store is gone with the launcher
            self._store.set(f"beat/{self._rank}", LEFT)
            end, keys = time.monotonic() + seconds, [f"beat/{rank}" for rank in range(self._size)]
            while time.monotonic() < end and not (
                self._store.check(keys) and all(self._store.get(key).decode() == LEFT for key in keys)
            ):
                time.sleep(0.02)


LEFT = "left"
"""The number of a process that has ended its work."""


def join_ranks(device: torch.device, timeout: float = 600.0) -> Ranks:
    """Join the process group that the launcher describes; return `SINGLE_PROCESS` if there is no launcher.

    Args:
        device: the device of this process.
        timeout: seconds that one collective call, or the start of the other processes, may take.

    Returns:
        The processes.

    Raises:
        UsageError: the environment variables of the launcher are incomplete or invalid, their port is in use, or the
            other processes do not join in time.
    """
    if from_launcher("WORLD_SIZE", 1) <= 1:
        return SINGLE_PROCESS
    limit = timedelta(seconds=timeout)
    try:
        if not dist.is_initialized():
            if from_launcher("RANK", 0) > 0 and os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT"):
                await_store(os.environ["MASTER_ADDR"], from_launcher("MASTER_PORT", 0), timeout)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=limit)
        control = dist.new_group(backend="gloo", timeout=limit)
        stores = _clients(control, limit)
    except (ValueError, RuntimeError, TimeoutError) as error:
        raise _not_joined(error, timeout) from error
    rank, size = dist.get_rank(), dist.get_world_size()
    heartbeat = Heartbeat(stores[1], rank, size, min(LOST_SECONDS, timeout))
    heartbeat.start()
    return Ranks(rank, size, control, stores[0], heartbeat)


def await_store(host: str, port: int, timeout: float) -> None:
    """Wait until a store of torch answers at a place.

    torch would wait without end for another program that listens there and is silent, and log each attempt.

    Args:
        host: name or address.
        port: the port.
        timeout: seconds until something must listen there; 0 tries once.

    Raises:
        TimeoutError: nothing listens there.
        RuntimeError: another program does.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), max(end - time.monotonic(), 1.0)).close()
            break
        except OSError as error:
            if time.monotonic() >= end:
                raise TimeoutError(f"nothing listens at {host}:{port}") from error
            time.sleep(min(0.2, timeout))
    answers: list[Any] = []

    def connect() -> None:
        with contextlib.suppress(RuntimeError):  # no answer
            answers.append(TCPStore(host, port, is_master=False, timeout=timedelta(seconds=ANSWER_SECONDS)))

    asking = threading.Thread(target=connect, name="diffkit-await-store", daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    if not answers:
        raise RuntimeError(f"address already in use: the program at {host}:{port} does not answer as a store")


def _clients(control: dist.ProcessGroup, limit: timedelta) -> list[Any]:
    """Return two connections to the store of the launcher, for exchanges and for the heartbeat.

    A connection that waits serves no other thread. The names of each start have a prefix of their own, a number that
    rank 0 draws, because the store may outlive the processes.
    """
    start = torch.tensor(int.from_bytes(os.urandom(7)))
    dist.broadcast(start, 0, group=control)
    place, port = os.environ.get("MASTER_ADDR", "localhost"), from_launcher("MASTER_PORT", 0)
    clients = [TCPStore(place, port, is_master=False, timeout=limit) for _ in range(2)]
    return [PrefixStore(f"diffkit/{int(start)}", client) for client in clients]


def _not_joined(error: Exception, timeout: float) -> UsageError:
    """Return the error for processes that do not find each other. The first process of each host reports it."""
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    size, reason = from_launcher("WORLD_SIZE", 1), str(error).splitlines()[0][:200]
    if isinstance(error, ValueError):
        fix = "start the run by torchrun, or unset WORLD_SIZE"
        found = UsageError(f"the processes cannot join: {error}", code="DK026", fix=fix)
    elif "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
        fix = "choose another port, or leave it out: diffkit run --nproc N"
        found = UsageError(f"another program uses the port of the processes, {place}", code="DK027", fix=fix)
    else:
        message = f"the {size} processes did not find each other at {place} within {timeout:.0f} s"
        fix = "start as many processes as WORLD_SIZE, and check that the hosts reach this address"
        found = UsageError(message, code="DK028", fix=fix, notes=[reason])
    found.reported = from_launcher("LOCAL_RANK", 0) > 0
    return found


def leave_ranks(ranks: Ranks, lost: bool = False) -> None:
    """Leave the process group that `join_ranks` joined; `lost` if another process is gone: then do not wait."""
    if ranks.heartbeat is not None:
        has_store = ranks.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        ranks.heartbeat.leave(LEAVE_SECONDS if has_store and not lost else 0.0)
    if ranks.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
