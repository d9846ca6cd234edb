"""Run a command and print what it took as JSON: time, peak memory, and what the machine's cores did meanwhile.

    python benchmarks/measure.py SECONDS LOG COMMAND...

In a process of its own, and one that imports little: Linux counts the memory that a process held between fork and exec,
which is its parent's, towards its peak.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any


def busy_seconds() -> float | None:
    """What the machine's cores have worked together since it started, where the system says."""
    try:
        with open("/proc/stat") as file:
            words = file.readline().split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, words)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def measure(limit: float, log: str, words: list[str]) -> dict[str, Any]:
    """Run a process to its end, or end it after `limit` seconds; what it prints goes to `log`."""
    load, busy, start = os.getloadavg()[0], busy_seconds(), time.perf_counter()
    with open(log, "w") as output:
        child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        timer = threading.Timer(limit, child.kill)
        timer.start()
        # not child.wait(): only this call has the usage of this one process
        _, status, usage = os.wait4(child.pid, 0)
        timer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds, own, busy_after = time.perf_counter() - start, usage.ru_utime + usage.ru_stime, busy_seconds()
    return {
        "exit_code": child.returncode,
        "seconds": seconds,
        "cpu_seconds": own,
        "peak_memory_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "other_cores": None if busy is None or busy_after is None else max(0.0, (busy_after - busy - own) / seconds),
    }


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]), sys.argv[2], sys.argv[3:])))
