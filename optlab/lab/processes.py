"""Several processes that train one model: how they start and what they agree on.

Each of them runs the same program on devices of its own. The first one owns the run's
folder: it alone locks it, writes the log and decides what depends on files; the others
hear of it. Checkpoints are written and read by all.
"""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from optlab import lab

# A process that is dead or cannot be reached ends the others after so many seconds.
HEARTBEAT_SECONDS = 30

# A process that is done, or has failed, waits so long for the others.
SHUTDOWN_SECONDS = 20

# Bytes that a process may say of a fault.
WORDS = 512

_calls = itertools.count(1)

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start() -> None:
    """Joins the other processes; before anything else that uses a device.

    On TPU pods and under Slurm, Open MPI or Kubernetes JAX finds them by itself;
    elsewhere the environment says where they are: `JAX_COORDINATOR_ADDRESS` (host and
    port of the first one), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

    It says on standard error what has come together: when a process dies, the others
    are ended by JAX or by the network's library, and their last words are about that.

    Raises:
      LabError: If they are not found, or not all of them come.
    """
    address, number, own = VARIABLES
    try:
        jax.distributed.initialize(
            os.environ.get(address),
            num_processes=_number(number),
            process_id=_number(own),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise lab.LabError(
            f"cannot join the other processes: {str(error).splitlines()[0]}; outside of"
            f" TPU pods, Slurm, Open MPI and Kubernetes set {', '.join(VARIABLES)}"
        ) from error
    print(
        f"optlab: {speaker()}{count()} processes, {jax.device_count()} devices; if a"
        " process ends, the others end within a minute, and the same commands go on",
        file=sys.stderr,
    )


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is not None and not text.isdecimal():
        raise lab.LabError(f"{variable} must be a whole number, got '{text}'")
    return None if text is None else int(text)


def count() -> int:
    """Returns the number of processes."""
    # Without a start there is one, and no device has to be asked for it.
    return jax.process_count() if jax.distributed.is_initialized() else 1


def first() -> bool:
    """Tells whether this is the first process, or the only one."""
    return count() == 1 or jax.process_index() == 0


def decide(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in the first process and gives its answer to all of them.

    Args:
      function: Called by one process, however many there are.
      *arguments: Its arguments.

    Returns:
      What it returned: anything that JSON knows, tuples as lists.

    Raises:
      LabError: In all processes, if it is raised in the first one.
    """
    if count() == 1:
        return function(*arguments)
    answer, cause = {}, None
    if first():
        try:
            answer = {"value": function(*arguments)}
        except lab.LabError as error:
            answer, cause = {"error": str(error)}, error
    answer = _broadcast(answer)
    if "error" in answer:
        raise lab.LabError(answer["error"]) from cause
    return answer["value"]


def fault(own: str) -> str:
    """Tells all processes what has gone wrong in one of them.

    Args:
      own: What has gone wrong here; empty if nothing has.

    Returns:
      The first process' words that has any, with its number before; empty if all is
      well everywhere.
    """
    if count() == 1:
        return own
    words = own.encode()[:WORDS]
    mine = np.frombuffer(words.ljust(WORDS, b"\0"), np.uint8)
    for index, row in enumerate(multihost_utils.process_allgather(mine)):
        if said := row.tobytes().rstrip(b"\0").decode(errors="replace"):
            return f"process {index}: {said}"
    return ""


def require_same(own: str) -> None:
    """Refuses to go on unless all processes were given the same.

    Args:
      own: What this one was given, such as its command line.

    Raises:
      LabError: In all processes, if one differs.
    """
    same = own == decide(lambda: own)
    said = fault("" if same else f"has another command than process 0: {own}")
    if said:
        raise lab.LabError(said)


def preempted() -> bool:
    """Tells all processes that one of them has been asked to end, by SIGTERM.

    Schedulers ask before they kill. JAX keeps the request from ending a process of
    several at once, so that all can leave a checkpoint of one step. All processes call
    this equally often, and all are told at the same call.
    """
    # JAX names the call at which all are told by its number and looks for equality.
    return count() > 1 and multihost_utils.reached_preemption_sync_point(next(_calls))


def total(number: int) -> int:
    """Adds up a number from 0 to 2**64 - 1 of each process, modulo 2**64."""
    if count() == 1:
        return number % 2**64
    # Without 64-bit types an array on a device cannot hold it whole.
    halves = np.array([number % 2**32, (number >> 32) % 2**32], np.uint32)
    found = multihost_utils.process_allgather(halves)
    return sum(int(low) + (int(high) << 32) for low, high in found) % 2**64


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Says what has happened if the processes lose each other.

    Yields:
      Nothing.

    Raises:
      Lost: In place of an error of JAX's runtime, if there are several processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if count() == 1:
            raise
        raise Lost(
            "another process has ended or cannot be reached, or a device has failed"
            f" ({str(error).splitlines()[0]}); start all processes again: the run goes"
            " on from its newest checkpoint"
        ) from error


def speaker() -> str:
    """Returns this process' number for the head of a message; empty if it is alone."""
    return f"process {jax.process_index()}: " if count() > 1 else ""


def leave(code: int) -> int:
    """Ends this process at once if it is one of several; else returns the code.

    JAX would make it wait for the others, which may be waiting for it.
    """
    if count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


class Lost(lab.LabError):
    """A process can no longer work with the others."""


def _broadcast(answer: Any) -> Any:
    text = json.dumps(answer).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    # Powers of two, for each size is compiled.
    frame = np.zeros(max(1024, 1 << (size - 1).bit_length()), np.uint8)
    if first():
        frame[:size] = np.frombuffer(text, np.uint8)
    frame = multihost_utils.broadcast_one_to_all(frame)
    return json.loads(np.asarray(frame)[:size].tobytes())
