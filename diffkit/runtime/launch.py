"""Several processes of one run on this host, started by the launcher of torchrun; their failures, and restarts.

The launcher itself never restarts a process (`max_restarts=0`). A restart is a new start on a new port, only if it can
help: after a signal, a process that hangs, or one that is lost. Each process writes its failure into the run
directory; the earliest is the cause, and its exit code is the one of the command.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..errors import PeerError, UsageError, plain
from .distributed import await_store, facts_of

FAILURES = "failures"
"""The folder of a run directory with one file for each process that failed since the last start."""
MAX_BYTES = 1 << 20
CONTINUE = "run the same command again: it continues from the last checkpoint"
PAUSE_SECONDS = 1.0
OWN_CODES = (*range(1, 11), 75, 130, 143)
"""Exit codes of diffkit after which a new start would end in the same way, or was not wished."""


@dataclass(frozen=True)
class Hosts:
    """The hosts of a run: their number, and the place HOST:PORT of one of them at which the launchers meet."""

    count: int = 1
    meet: str = "localhost:0"


def record_failure(folder: Path, rank: int, error: BaseException, *, first: bool = True) -> None:
    """Write the failure of a process into `folder`, the run directory, if there is one.

    Args:
        folder: the run directory.
        rank: number of the process.
        error: what ended it.
        first: whether the failure may be the cause of those of other processes.
    """
    trace = "".join(traceback.format_exception(error))
    record = facts_of(error) | {"rank": rank, "time": time.time(), "first": first, "traceback": trace}
    path = folder / FAILURES / f"rank-{rank}.json"
    with contextlib.suppress(OSError):  # a full disk may be the failure itself
        if folder.is_dir():
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
            temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
            temporary.replace(path)


NOTE = "TORCHELASTIC_ERROR_FILE"
"""The variable by which the launcher of torch names a file to each process, for the error that ends it."""


def note_failure(error: BaseException) -> None:
    """Write the error that ends this process for its launcher, which may see no file of the run directory."""
    record = facts_of(error) | {"rank": int(os.environ.get("RANK", "0")), "time": time.time()}
    with contextlib.suppress(OSError):  # a full disk may be the failure itself
        Path(os.environ[NOTE]).write_text(json.dumps(record | {"timestamp": int(time.time())}), encoding="utf-8")


def forget_failures(folder: Path) -> None:
    """Remove the failures of an earlier start from a run directory."""
    for path in (folder / FAILURES).glob("*rank-*"):
        with contextlib.suppress(OSError):  # an old record is older than this start, so it is not read
            path.unlink()


def earliest_failure(folder: Path, since: float) -> dict[str, Any] | None:
    """Return the record of the first failure after the time `since`; consequences of another failure do not count."""
    found = [one for one in _records(folder / FAILURES, "rank-*.json") if one["first"] and one["time"] >= since]
    return min(found, key=lambda record: record["time"], default=None)


def _records(folder: Path, pattern: str) -> Iterator[dict[str, Any]]:
    """Read the records of failures in a folder; those of `note_failure` do not state whether they are the first."""
    known = {"rank": int, "time": float, "exit_code": int, "message": str, "host": str}
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a half-written record counts as none
            record = json.loads(path.read_bytes()[:MAX_BYTES])
            yield {name: kind(record[name]) for name, kind in known.items()} | {"first": bool(record.get("first"))}


def launch(
    arguments: Sequence[str],
    processes: int,
    folder: Path,
    *,
    restarts: int = 0,
    hosts: Hosts | None = None,
    timeout: float = 600.0,
) -> None:
    """Run `diffkit ARGUMENTS` in several processes, and start them again if that can help.

    Args:
        arguments: the command line without the name of the program.
        processes: number of processes on this host.
        folder: the run directory.
        restarts: how often at most.
        hosts: the hosts of the run; default this one.
        timeout: seconds that other hosts may take to join.

    Raises:
        PeerError: a process failed; its exit code is that of the first one.
        UsageError: the hosts did not meet.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does
    hosts = hosts or Hosts()
    for attempt in range(restarts + 1):
        again = ("--resume", "auto") if attempt else ()
        failure = _attempt((*arguments, *again), processes, folder, hosts, attempt, timeout)
        if failure is None:
            return
        if attempt == restarts or failure.exit_code in OWN_CODES:
            raise failure
        start = f"start {attempt + 2} of at most {restarts + 1}"
        print(plain(f"{failure.message}; {start}"), file=sys.stderr, flush=True)
        time.sleep(PAUSE_SECONDS)


def places(meet: str) -> tuple[str, str | None]:
    """Return where the launcher of this host meets the others, and the address by which they reach this host.

    The name of a host often leads to an address that others cannot reach, or to none, and both the launcher and gloo
    rely on it. The address is the one from which this host reaches `meet`; if that is `meet` itself, the launchers meet
    here. gloo then uses the network of this address, unless the environment variable GLOO_SOCKET_IFNAME names another.

    Args:
        meet: the place HOST:PORT.

    Returns:
        The place for this host, and its address; None if the host of `meet` is not known yet.
    """
    host, _, port = meet.rpartition(":")
    try:
        family, _, _, _, there = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(there)  # sends nothing: the system chooses the address of the way
            own = probe.getsockname()[0]
    except (OSError, ValueError):
        return meet, None
    if name := _interface(own):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    return (f"localhost:{port}" if own == there[0] else meet), own


_SIOCGIFADDR = 0x8915


def _interface(address: str) -> str | None:
    """Return the name of the network interface that has an IPv4 address, on Linux."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without such an address
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None


def _attempt(
    arguments: Sequence[str], processes: int, folder: Path, hosts: Hosts, attempt: int, timeout: float
) -> PeerError | None:
    """Start the processes once and wait for their end; returns the failure of the first that failed."""
    meet, own = (hosts.meet, "localhost") if hosts.count == 1 else places(hosts.meet)
    if hosts.count > 1:
        _require_meeting(meet, hosts, timeout)
    with tempfile.TemporaryDirectory(prefix="diffkit-") as notes:
        config = LaunchConfig(
            min_nodes=hosts.count,
            max_nodes=hosts.count,
            nproc_per_node=processes,
            run_id=f"diffkit-{attempt}",
            rdzv_backend="c10d",
            rdzv_endpoint=meet,
            rdzv_configs={"join_timeout": math.ceil(timeout), "read_timeout": min(60, math.ceil(timeout))},
            local_addr=own,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=notes),
        )
        began, codes = time.time(), {}
        logging.disable(logging.CRITICAL)  # the launcher logs each failure as its own; the cause is reported once
        try:
            elastic_launch(config, sys.executable)("-m", "diffkit", *arguments)
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        except SignalException as error:
            codes = {0: -int(error.sigval)}
        except RendezvousError as error:
            if not any(Path(notes).glob(STARTED)):
                raise _not_met(hosts, timeout, error) from error
        else:
            return None
        finally:
            logging.disable(logging.NOTSET)
        own_errors = [one for one in _records(Path(notes), NOTES) if one["exit_code"] != PeerError.exit_code]
        return _cause(earliest_failure(folder, began) or next(iter(own_errors), None), codes)


STARTED, NOTES = "*/attempt_0/*", "*/attempt_0/*/error.json"
"""Below the folder of the launcher of torch: one folder for each process that it has started, with its note."""


def _require_meeting(meet: str, hosts: Hosts, timeout: float) -> None:
    """Raise UsageError if another program uses the place at which the launchers meet, or nothing ever listens there."""
    host, _, port = meet.rpartition(":")
    here = host == "localhost"
    try:
        await_store(host.strip("[]"), int(port), 0.0 if here else timeout)
    except TimeoutError as error:
        if not here:
            raise _not_met(hosts, timeout, error) from error
    except RuntimeError as error:
        message = f"another program uses the port at which the hosts meet, {hosts.meet}"
        raise UsageError(message, code="DK027", fix="pass another port to --meet, on each host") from error


def _not_met(hosts: Hosts, timeout: float, error: Exception) -> UsageError:
    message = f"{hosts.count} hosts did not meet at {hosts.meet} within {timeout:.0f} s"
    fix = "start the same command on each host, with a port of the first host that is free and can be reached"
    return UsageError(message, code="DK028", fix=fix, notes=str(error).splitlines()[:1])


def _cause(record: Mapping[str, Any] | None, codes: Mapping[int, int]) -> PeerError:
    """Return the failure of the first process that failed: the recorded one, else the one that its code describes."""
    if record is not None:
        error = PeerError(f"process {record['rank']} on {record['host']} ended first: {record['message']}")
        error.exit_code = record["exit_code"]
        error.reported = True
        return error
    if not codes:
        return PeerError("the launcher of another host ended", fix=CONTINUE)
    consequences = (PeerError.exit_code, -signal.SIGTERM, 128 + signal.SIGTERM)
    rank, code = min(codes.items(), key=lambda one: (one[1] in consequences, one[0]))
    if code < 0:
        reason = " (memory may have run out)" if code == -signal.SIGKILL else ""
        error = PeerError(f"process {rank} was ended by {signal.Signals(-code).name}{reason}")
        error.exit_code = 128 - code
    else:
        error = PeerError(f"process {rank} ended with exit code {code}")
        error.exit_code = code
    error.fix = CONTINUE
    return error
