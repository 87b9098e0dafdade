r"""The one reduction beside its peers: time, and time as a fraction of the floor under any program.

    python benchmarks/reduction.py            on the GPU where there is one, else on all threads of the CPU
    python benchmarks/reduction.py --quick    the smallest size only
    --dims 2 64    --methods ours keops       some of it; what the CSV has of the rest stays there
    --longest 3                               no call that the size before foresees to be longer, in seconds

Every method returns the same log_z, mean and spread (and gradients of a loss of log_z and mean by x and y), in
float32, at a noise where float32 suffices.  Each is compared with the definition in float64 on a few queries before
it is timed; a number that disagrees is an error and no table is printed.

    ours      lib.kernels.gaussian_posterior
    prepared  the same of a cloud that lib.kernels.prepare made before the clock starts; forward only
    torch     the B × N matrix in plain torch; compiled: the same through torch.compile
    sdpa      scaled_dot_product_attention on augmented vectors: no log_z, so a part of the work
    keops     pykeops: a logsumexp and a softmax-weighted sum

The floor is the largest of three times: the bytes of inputs and outputs at the bandwidth of a large copy, the
exponentials at the rate of the units that make them, and the operations at the rate of float32 fused multiply-adds.
For each pair we count one exponential, and 5D + 8 operations by differences (D ≤ 8) or 4D + 8 by products; for
gradients, forward and backward, two exponentials (memory O(B + N) keeps no weights), 16D + 18 or 14D + 18.  By
products a GPU may use its tensor cores, at a third of their TF32 rate.  A CPU's rates are measured; a GPU's are those
of its multiprocessors (128 multiply-adds and 16 exponentials a cycle) at its highest clock.

On a CPU times are processor time over the number of threads, which other work on the machine leaves alone; the CSV has
both, and quantiles of the clock.  A gradient on a CPU is best timed in one thread (OMP_NUM_THREADS=1): threads that
wait burn processor time.  Results are kept in benchmarks/results/, one CSV for each chip.
"""
from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import common
import torch
from common import DEVICE, GPU, stopwatch
from torch import Tensor

from lib.kernels import gaussian_posterior, prepare

NOISE = {2: 0.5, 8: 1.0, 64: 3.0, 784: 10.0, 3072: 20.0}  # several standard normal points count, float32 suffices
SIZES = ([(n, n) for n in (1024, 10_000, 100_000, 1_000_000)] if GPU else
         [(1024, 1024), (1024, 20_000), (4096, 20_000), (1024, 100_000)])
LARGEST_MATRIX = 6e9 if GPU else 2e8  # floats of the B × N matrix that plain torch is asked for
torch._dynamo.config.recompile_limit = 256  # one program for each shape

Outputs = tuple[Tensor | None, Tensor, Tensor]


def ours(x: Tensor, y: Tensor, sigma: float) -> Outputs:
    return gaussian_posterior(x, y, sigma)


def plain(x: Tensor, y: Tensor, sigma: float) -> Outputs:
    squares = x.square().sum(1, keepdim=True) - 2 * x @ y.T + y.square().sum(1)
    logits = -squares / (2 * sigma**2) - torch.tensor(len(y)).log()
    log_z = logits.logsumexp(1)
    p = logits.softmax(1)
    mean = p @ y
    return log_z, mean, p @ y.square().sum(1) - mean.square().sum(1)


def sdpa(x: Tensor, y: Tensor, sigma: float) -> Outputs:
    fill = lambda t, n: torch.nn.functional.pad(t, (0, n - t.shape[1]))
    width = -(-(x.shape[1] + 2) // 8) * 8
    norms = y.square().sum(1, keepdim=True)
    q = fill(torch.cat([x / sigma**2, torch.ones_like(x[:, :1])], 1), width)
    k = fill(torch.cat([y, -norms / (2 * sigma**2)], 1), width)
    v = fill(torch.cat([y, norms], 1), width)
    out = torch.nn.functional.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None], scale=1.0)[0, 0]
    mean = out[:, :x.shape[1]]
    return None, mean, out[:, x.shape[1]] - mean.square().sum(1)


def keops(x: Tensor, y: Tensor, sigma: float) -> Outputs:
    from pykeops.torch import LazyTensor
    features = torch.cat([y, y.square().sum(1, keepdim=True)], 1)
    logits = -((LazyTensor(x[:, None]) - LazyTensor(y[None])) ** 2).sum(-1) / (2 * sigma**2)
    log_z = logits.logsumexp(1)[:, 0] - torch.tensor(len(y)).log()
    out = logits.sumsoftmaxweight(LazyTensor(features[None]), 1)
    return log_z, out[:, :-1], out[:, -1] - out[:, :-1].square().sum(1)


METHODS: dict[str, Callable[[Tensor, Tensor, float], Outputs]] = {
    "ours": ours, "prepared": ours, "torch": plain,
    "compiled": torch.compile(plain, dynamic=False), "sdpa": sdpa, "keops": keops}


def problem(b: int, n: int, d: int) -> tuple[Tensor, Tensor, float]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(n, d, generator=generator)
    x = y[torch.randint(n, (b,), generator=generator)] + NOISE[d] * torch.randn(b, d, generator=generator)
    return x.to(DEVICE), y.to(DEVICE), NOISE[d]


def gradients(method: Callable[..., Outputs], x: Tensor, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    log_z, mean, _ = method(x, y, sigma)
    return torch.autograd.grad(mean.sum() + (0 if log_z is None else log_z.sum()), (x, y))


def disagreement(method: Callable[..., Outputs], x: Tensor, y: Tensor, sigma: float, backward: bool) -> float:
    """Largest error in units of what is allowed, on a few queries, with the definition for a judge."""
    few = torch.linspace(0, len(x) - 1, min(32, len(x)), device=x.device).long()
    judge = partial(gaussian_posterior, backend="definition")
    if not backward:
        found, (log_z, mean, spread) = method(x, y, sigma), judge(x[few].double(), y.double(), sigma)
        errors = [(found[1][few] - mean).norm(dim=1) / (1e-3 * sigma),
                  (found[2][few] - spread).abs() / (1e-3 * sigma**2 + 1e-2 * spread)]
        errors += [] if found[0] is None else [(found[0][few] - log_z).abs() / (1e-3 + 1e-6 * log_z.abs())]
        return max(e.max().item() for e in errors)
    without_log_z = lambda *a: (None, *judge(*a)[1:])
    exact = gradients(without_log_z if method is sdpa else judge, x[few].double(), y.double(), sigma)[0]
    found = gradients(method, x, y, sigma)
    error = ((found[0][few] - exact).norm() / exact.norm()).item() / 1e-3
    if len(x) * len(y) <= LARGEST_MATRIX / 8 and method is not sdpa:
        peer = gradients(ours if method is plain else plain, x, y, sigma)[1]
        error = max(error, ((found[1] - peer).norm() / peer.norm()).item() / 1e-3)
    return error


def rates() -> dict[str, float]:
    """Bytes, float32 operations, operations of matrix units in float32 accuracy, and exponentials in a second."""
    a = torch.ones(2**28 if GPU else 2**25, device=DEVICE)
    b = torch.empty_like(a)
    copy = 8 * len(a) / min(stopwatch(lambda: b.copy_(a))[0])
    if GPU:
        chip = torch.cuda.get_device_properties(DEVICE)
        cycles = chip.multi_processor_count * chip.clock_rate * 1e3
        matrix = 2048 / 3 if chip.major >= 9 else 1024 / 3 if chip.major == 8 else 256  # TF32 a cycle, three for one
        return {"bytes": copy, "operations": 256 * cycles, "products": max(256, matrix) * cycles, "exps": 16 * cycles}
    m = torch.randn(1024, 1024)
    cached, out = torch.randn(2, 2**15 * torch.get_num_threads())
    flops = 2 * 1024**3 / min(stopwatch(lambda: m @ m)[1])
    exps = 100 * len(cached) / min(stopwatch(lambda: [torch.exp(cached, out=out) for _ in range(100)])[1])
    return {"bytes": copy, "operations": flops, "products": flops, "exps": exps}


def floor(b: int, n: int, d: int, backward: bool, rate: dict[str, float]) -> tuple[float, str]:
    """Seconds that no program can beat, and what they are spent on."""
    explicit = d <= 8
    operations = {(False, True): 5 * d + 8, (False, False): 4 * d + 8,
                  (True, True): 16 * d + 18, (True, False): 14 * d + 18}[backward, explicit]
    kind = "operations" if explicit else "products"
    times = {"exps": (2 if backward else 1) * b * n / rate["exps"], kind: b * n * operations / rate[kind],
             "bytes": (2 if backward else 1) * 4 * (b * (2 * d + 2) + n * d) / rate["bytes"]}
    unit = max(times, key=times.get)
    return times[unit], unit


def measurements(sizes: list[tuple[int, int]], dims: list[int], names: list[str],
                 longest: float) -> Iterator[dict[str, object]]:
    rate, paces = rates(), {}
    for d, (b, n), backward in itertools.product(dims, sizes, (False, True)):
        x, y, sigma = problem(b, n, d)
        bound, unit = floor(b, n, d, backward, rate)
        for name in names:
            matrix = name in ("torch", "compiled") and b * n > LARGEST_MATRIX
            if matrix or paces.get((d, name, backward), 0) * b * n > longest:
                continue
            method = METHODS[name]
            if name == "prepared":
                if backward:  # no gradient reaches the points of a cloud
                    continue
                cloud = prepare(y)
                method = lambda x, _, sigma, cloud=cloud: gaussian_posterior(x, cloud, sigma)
            try:
                error = disagreement(method, x, y, sigma, backward)
                clock, processor = stopwatch(partial(gradients, method, x, y, sigma) if backward
                                             else partial(method, x, y, sigma))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                continue
            if not error <= 1:
                raise SystemExit(f"{name}: D={d} B={b} N={n}, {'gradients' if backward else 'forward'}: "
                                 f"{error:.3g} times the error allowed; no table")
            low, middle, high = (sorted(clock)[round(q * (len(clock) - 1))] for q in (0.1, 0.5, 0.9))
            paces[d, name, backward] = (middle if GPU else min(processor)) / (b * n)
            row = {"D": d, "B": b, "N": n, "pass": "gradients" if backward else "forward", "method": name,
                   "ms": middle * 1e3, "ms_10%": low * 1e3, "ms_90%": high * 1e3, "processor_ms": min(processor) * 1e3,
                   "error": error, "floor_ms": bound * 1e3, "floor_of": unit,
                   "of_floor": bound / (low if GPU else min(processor)), "sigma": sigma}
            yield {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}


def show(rows: list[dict[str, object]], names: list[str]) -> None:
    """One line for each problem: milliseconds of each method, its multiple of ours, and ours against the floor."""
    print(f"{'D':>5}{'B':>9}{'N':>9}  {'pass':10}" + "".join(f"{name:>20}" for name in names) + f"{'of floor':>18}")
    for key, group in itertools.groupby(rows, key=lambda r: (r["D"], r["B"], r["N"], r["pass"])):
        found = {row["method"]: row for row in group}
        base = float(found["ours"]["ms" if GPU else "processor_ms"]) if "ours" in found else None
        cells = []
        for name in names:
            ms = float(found[name]["ms" if GPU else "processor_ms"]) if name in found else None
            cells.append("—" if ms is None else f"{ms:.3g} ms" + (f" ({ms / base:.1f}×)" if base else ""))
        of = f"{float(found['ours']['of_floor']):.0%} {found['ours']['floor_of']}" if base else ""
        print(f"{key[0]:>5}{key[1]:>9}{key[2]:>9}  {key[3]:10}" + "".join(f"{c:>20}" for c in cells) + f"{of:>18}")


def merged(file: Path, rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """New rows in place of the file's of the same problem and method; the others stay."""
    key = lambda row: tuple(str(row[name]) for name in ("D", "B", "N", "pass", "method"))
    new = {key(row) for row in rows}
    if file.exists():
        with file.open(newline="", encoding="utf-8") as old:
            kept = [row for row in csv.DictReader(old) if key(row) not in new]
        rows = [*rows, *({name: row.get(name, "") for name in rows[0]} for row in kept)]
    return sorted(rows, key=lambda row: (*(int(row[name]) for name in "DBN"), row["pass"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="the smallest sizes only")
    parser.add_argument("--dims", type=int, nargs="+", default=list(NOISE), choices=list(NOISE))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--longest", type=float, default=60.0 if GPU else 10.0)
    args = parser.parse_args()
    rows, made = [], common.made()
    for row in measurements(SIZES[:1] if args.quick else SIZES, args.dims, args.methods, args.longest):
        rows.append(row)
        print("{D}×({B}, {N}) {pass} {method}".format(**row), file=sys.stderr)
    print(", ".join(f"{key} {value}" for key, value in made.items()))
    show(rows, args.methods)
    file = common.named("reduction", args.quick, by_chip=True)
    common.save(file, merged(file, [row | made for row in rows]))


if __name__ == "__main__":
    main()
