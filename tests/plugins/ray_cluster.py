"""A Ray cluster of so many nodes on this machine, one CPU each: `ray_cluster.py NODES`.

Prints its address. A line `kill` on standard input kills a node that is not the head, all of its processes, and prints
`killed` and which they were; the end of the input ends the cluster.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

from ray.cluster_utils import Cluster

STORE = 80 * 2**20  # bytes; Ray wants 75 MiB at least


def children(parent):
    """Process ids whose parent is the given one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, rest = stat.read_text().rsplit(")", 1)
            if int(rest.split()[1]) == parent:
                found.append(int(name.split()[0]))
    return found


def main(nodes):
    with contextlib.redirect_stdout(sys.stderr):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE})
        others = [cluster.add_node(num_cpus=1, object_store_memory=STORE, wait=False) for _ in range(nodes - 1)]
        cluster.wait_for_nodes(60)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            node = others.pop()
            workers = children(node.all_processes["raylet"][0].process.pid)
            for worker in workers:  # they would outlive their raylet for a while, as those of a dead machine do not
                os.kill(worker, signal.SIGKILL)
            cluster.remove_node(node, allow_graceful=False)
            print("killed", *workers, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
