"""Programs that compile kernels for a Hopper GPU where there is none: a stand-in for its driver. None of them runs."""

import os
import subprocess
import sys

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver


class NoDriver(CudaDriver):
    def __init__(self):
        self.get_current_device, self.get_current_stream = (lambda: 0), (lambda device: 0)

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def start():
    driver.set_active(NoDriver())


def is_hopper(device):
    return True


def load(kernel, device):
    """In the place of `launches._load`."""
    getattr(kernel, "result", lambda: kernel)()


def compiled(self, kind, device):
    """In the place of `Launches.run`: print each kernel's name and its shared memory."""
    for kernel, grid, args, options in self.waiting:
        print(kernel.fn.__name__, kernel.warmup(*args, grid=grid, **options).metadata.shared)
    self.waiting.clear()


def known(self, kind, device):
    """In the place of `Launches.run`: print how many kernels had not been compiled; none at all is False."""
    for kernel, grid, args, options in self.waiting:
        cache = kernel.device_caches[0][0]
        before = len(cache)
        kernel.warmup(*args, grid=grid, **options)
        print(kernel.fn.__name__, before and len(cache) - before)
    self.waiting.clear()


def printed(program, cache, *arguments):
    """The numbers that a program prints beside the names of kernels; it starts in a process of its own, since none
    that has run an interpreted kernel can compile one."""
    start = "import no_gpu\n\nno_gpu.start()\n"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", start + program, *map(str, arguments)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [int(line.split()[1]) for line in ran.stdout.splitlines()]
