r"""Entropic transport beside its peers: the value, how well the marginals are met, time and memory.

    python benchmarks/sinkhorn.py            a few minutes; peers that are not installed are left out
    python benchmarks/sinkhorn.py --quick    the smaller clouds only

x is standard normal and y eight Gaussians of the same variance, n points each in the plane, equal weights, float64, one
thread; ε is a share of the mean cost E‖x − y‖².  All are asked for a marginal error of 10⁻³ in L¹ within 2,000
iterations, except GeomLoss, whose accuracy is a matter of its ladder of temperatures (`scaling`).

    ours      lib.transport.sinkhorn
    pot       ot.bregman.sinkhorn_log, whose criterion is in L²: 10⁻³/√n, at which L¹ is at most 10⁻³
    geomloss  SamplesLoss("sinkhorn", backend="tensorized"), scaling 0.5 as it comes and 0.99; half the cost and half ε
    ott       ott.solvers.linear.solve, compiled before the clock starts

Nobody is taken at his word: from the potential g that comes back, f and the plan's marginals are made in plain torch,

    f_i = −ε log (1/n) Σ_j exp((g_j − C_ij)/ε),    value = mean f + mean g,    error = Σ_j |Σ_i π_ij − 1/n|,

a lower bound on the optimum that is met where the error is 0.  Each measurement has a process of its own, so that
memory is its own: MB is what the call adds to the process's peak (Linux only).  One that takes more than 40 seconds of
the processor is ended and leaves an empty row.  Writes benchmarks/results/sinkhorn.csv.
"""
from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import common
import torch
from torch import Tensor

from lib import toys, transport

SIZES, SHARES = (1000, 5000), (0.1, 0.01, 0.001)
PEERS = {"ours": None, "pot": "ot", "geomloss 0.5": "geomloss", "geomloss 0.99": "geomloss", "ott": "ott"}
COLUMNS = ("value", "error", "seconds", "processor_seconds", "MB")
TOLERANCE, ITERATIONS = 1e-3, 2000
SECONDS = 40  # of the processor, for a measurement


def ours(x: Tensor, y: Tensor, epsilon: float) -> Callable[[], Tensor]:
    return lambda: transport.sinkhorn(x, y, epsilon, tolerance=TOLERANCE, iterations=ITERATIONS).g


def pot(x: Tensor, y: Tensor, epsilon: float) -> Callable[[], Tensor]:
    import ot

    def call() -> Tensor:
        _, log = ot.bregman.sinkhorn_log([], [], ot.dist(x.numpy(), y.numpy()), epsilon, numItermax=ITERATIONS,
                                         stopThr=TOLERANCE / math.sqrt(len(x)), log=True, warn=False)
        return epsilon * torch.from_numpy(log["log_v"])

    return call


def geomloss(x: Tensor, y: Tensor, epsilon: float, scaling: float) -> Callable[[], Tensor]:
    from geomloss import SamplesLoss

    loss = SamplesLoss("sinkhorn", blur=math.sqrt(epsilon / 2), scaling=scaling, debias=False, potentials=True,
                       backend="tensorized")
    return lambda: 2 * loss(x, y)[1].flatten()


def ott(x: Tensor, y: Tensor, epsilon: float) -> Callable[[], Tensor]:
    import jax

    jax.config.update("jax_enable_x64", True)
    from ott.geometry.pointcloud import PointCloud
    from ott.solvers import linear

    inputs = x.numpy(), y.numpy()
    solve = jax.jit(lambda x, y: linear.solve(PointCloud(x, y, epsilon=epsilon), threshold=TOLERANCE,
                                              max_iterations=ITERATIONS).g).lower(*inputs).compile()
    return lambda: torch.from_dlpack(solve(*inputs))


def method(name: str, x: Tensor, y: Tensor, epsilon: float) -> Callable[[], Tensor]:
    """What is timed: a call that returns the potential g (n,) up to a constant."""
    kind, *scaling = name.split()
    return {"ours": ours, "pot": pot, "geomloss": geomloss, "ott": ott}[kind](x, y, epsilon, *map(float, scaling))


def problem(n: int, share: float) -> tuple[Tensor, Tensor, float]:
    g = torch.Generator().manual_seed(0)
    y = toys.eight_gaussians().sample(n, g, torch.float64)
    x = torch.randn(n, 2, generator=g, dtype=torch.float64) * y.std()
    return x, y, share * float(x.var(0).sum() + y.var(0).sum() + (x.mean(0) - y.mean(0)).square().sum())


def judged(x: Tensor, y: Tensor, epsilon: float, g: Tensor) -> tuple[float, float]:
    """Value and marginal error of g by the definition, in blocks of rows."""
    n, f, columns = len(x), [], torch.zeros_like(g)
    for rows in x.split(500):
        logits = (g - torch.cdist(rows, y, compute_mode="donot_use_mm_for_euclid_dist").square()) / epsilon
        f.append(-epsilon * (logits.logsumexp(1) - math.log(n)))
        columns += (logits + f[-1][:, None] / epsilon).exp().sum(0) / n**2
    return float(torch.cat(f).mean() + g.mean()), float((columns - 1 / n).abs().sum())


def peak() -> float:
    """The largest resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1000 if status.exists() else math.nan


def measure(name: str, n: int, share: float) -> dict[str, float]:
    """One measurement, in a process of its own."""
    x, y, epsilon = problem(n, share)
    method(name, x[:20], y[:20], epsilon)()  # loads code
    call, before = method(name, x, y, epsilon), peak()
    start = time.perf_counter(), time.process_time()
    g = call()
    seconds, processor = time.perf_counter() - start[0], time.process_time() - start[1]
    memory = peak() - before
    return dict(zip(COLUMNS, (*judged(x, y, epsilon, g), seconds, processor, memory), strict=True))


def measurements(sizes: tuple[int, ...]) -> Iterator[common.Row]:
    above = str(Path(__file__).resolve().parent.parent)
    given = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
             "PYTHONPATH": os.pathsep.join(filter(None, [above, os.environ.get("PYTHONPATH")]))}
    for n, share, (name, package) in itertools.product(sizes, SHARES, PEERS.items()):
        if package and not find_spec(package):
            continue
        done = subprocess.run([sys.executable, __file__, "--one", name, str(n), str(share)], stdout=subprocess.PIPE,
                              text=True, env=os.environ | given)
        if done.returncode == -signal.SIGXCPU:
            found = dict.fromkeys(COLUMNS) | {"processor_seconds": f"> {SECONDS}"}
        else:
            done.check_returncode()
            found = {key: f"{value:.4g}" for key, value in json.loads(done.stdout.splitlines()[-1]).items()}
        yield {"method": name, "n": n, "epsilon": share} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller clouds only")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "N", "SHARE"), help="one measurement, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 10))
        name, n, share = options.one
        print(json.dumps(measure(name, int(n), float(share))))
        return
    rows = common.table(measurements(SIZES[:1] if options.quick else SIZES), first=14)
    common.save(common.named("sinkhorn", options.quick), [row | common.made() for row in rows])


if __name__ == "__main__":
    main()
