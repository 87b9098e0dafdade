"""Compiles the kernels for a chip that is not there: `python -m tests.compile_kernels CHIP CASES`.

CASES is a JSON list of (columns, σ).  Every kernel that a call of the reduction and its gradients would launch is
compiled with the arguments of that launch instead; printed is a JSON list of (name, bytes of shared memory, number
of fast exponentials).
"""
from __future__ import annotations

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lib.kernels import Cloud, device, launch, reduce

chip, results = int(sys.argv[1]), []
torch.cuda.get_device_capability = lambda *_: divmod(chip, 10)


class Recorder:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, num_warps, num_stages=3, **constants):
        names = self.kernel.arg_names
        types = {"float32": "fp32", "float64": "fp64"}
        given = dict(zip(names, args, strict=False))
        signature = {n: "constexpr" if n in constants else "i32" if isinstance(given[n], int)
                     else "*" + types[str(given[n].dtype)[6:]] for n in names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names)
                   if n in given and (not isinstance(given[n], int) or given[n] % 16 == 0)}
        source = ASTSource(self.kernel, signature, {(names.index(n),): v for n, v in constants.items()}, aligned)
        done = triton.compile(source, target=GPUTarget("cuda", chip, 32),
                              options={"num_warps": num_warps, "num_stages": num_stages})
        results.append([self.kernel.fn.__name__, done.metadata.shared, done.asm["ptx"].count("ex2.approx")])


for name in ("explicit_forward", "explicit_backward", "products_forward", "products_backward"):
    setattr(device, name, Recorder(getattr(device, name)))
blocks = launch._blocks


class OnGpu:
    """A tensor as `_blocks` sees it."""

    is_cuda, device = True, None

    def __init__(self, dtype):
        self.dtype = dtype


launch._blocks = lambda columns, x, *rest: blocks(columns, OnGpu(x.dtype), *rest)
launch.tolerable = lambda delta, *_: torch.ones_like(delta, dtype=torch.bool)
for d, sigma in json.loads(sys.argv[2]):
    x, y = torch.randn(600, d, requires_grad=True), torch.randn(700, d, requires_grad=True)
    out = reduce(x, Cloud(y), sigma, "triton")  # whose numbers are those of memory that nothing has written
    sum(o.sum() for o in out).backward()
print(json.dumps(results))
