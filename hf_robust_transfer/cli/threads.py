"""As many CPU threads as a process has cores to itself, and none that spins while it waits."""

import os
from collections.abc import MutableMapping
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path = _CGROUP) -> int:
    """How many cores this process may use: its affinity, and the CPU quota of its container.

    Args:
        cgroup: where the control groups are mounted, version 2 (``cpu.max``) or 1 (``cpu/cpu.cfs_quota_us``).

    Example:
        >>> available_cores() >= 1
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return cores
    limit = int(quota) / int(period) if quota.isdecimal() else cores
    return max(1, min(cores, int(limit)))


def use_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what OpenMP reads when torch is loaded, unless the user has: call it before that.

    Threads that wait give their core away (``OMP_WAIT_POLICY=PASSIVE``): spinning, they slow down whatever else runs.
    The cores are divided by the processes on this machine, which `accelerate launch` and `torchrun` tell.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    processes = int(environment.get("LOCAL_WORLD_SIZE") or 1)
    if not environment.get("OMP_NUM_THREADS"):
        environment["OMP_NUM_THREADS"] = str(max(1, available_cores() // processes))
