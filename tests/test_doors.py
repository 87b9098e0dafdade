"""Every door of the library: one bad argument at a time is refused by its name, or answered by finite numbers.

One table, `DOORS`, with a call of everything public that opens; what is found by introspection and not in it must be
in `INSIDE`, with the reason.  `KINDS` of arguments say what must be refused; whatever else is tried, no error may come
from within torch, and no answer may be NaN or infinite.
"""
from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Iterator

import matplotlib.pyplot as plt
import pytest
import torch
from draws import rng
from hypothesis import given, settings
from hypothesis import strategies as st

import lib
from lib import (
    affine,
    bridge,
    data,
    judge,
    kernels,
    kinetic,
    latents,
    markov,
    metrics,
    nets,
    path,
    posterior,
    solve,
    toys,
    transport,
)
from lib import difference as sd
from lib import interpolant as si
from lib.chapter import plot
from lib.fit import fit
from lib.kernels import sharded
from lib.markov import smoothing
from lib.transport import bridges

F64 = torch.float64


def cloud(n: int, d: int = 2, **options) -> torch.Tensor:
    return torch.randn(n, d, generator=rng(), dtype=F64, **options)


LINE = torch.linspace(0, 1, 5, dtype=F64)
FIELD = lambda t, x: x
EYE, ZEROS = torch.eye(2, dtype=F64), torch.zeros(5, dtype=F64)
GAUSSIAN = transport.gaussian_bridge(ZEROS[:2], EYE, ZEROS[:2], EYE, 1.0)
STRAIGHT, BOARD = path.cond_ot(), toys.checkerboard()
MLP_OF_TWO = nets.MLP(2, generator=rng(), width=4, depth=1).double()
MLP, CONV = nets.MLP(2, generator=rng(), classes=3).double(), nets.UNet(2, generator=rng(), classes=3).double()
LABEL = torch.tensor([0, 1, 2])
WALK = bridge.Bridge(FIELD, FIELD, 1.0, bridge.symmetric_times(3))
UNIT = torch.tensor([[-1.0], [1.0]], dtype=F64)  # of second moment 1
LATENT = si.linear(si.brownian())
OU = markov.OrnsteinUhlenbeck(2)
OISM = markov.fit_oism(cloud(12), OU, 2)
BOX = markov.ReflectedBrownian(2)
MIXTURE = bridges.MixtureBridge(cloud(3), 0.5, 1.0)
CLOUDS = bridges.cloud_bridge(cloud(4), cloud(5) + 1, 1.0)
CODER, JUDGE = latents.Autoencoder(generator=rng()), judge.Judge(generator=rng())
PICTURES = torch.rand(3, 784, generator=rng())
VIEW = judge.View(torch.rand(20, 64, generator=rng()), torch.arange(20) % 10)
INDEX = torch.tensor([[0, 1], [1, 1]])
KERNEL = lambda s: (1 + s**2 / (1 + s**2)) / 2  # a separation λ(s) within its bounds

# What is given to each door when it opens, and what kind of thing that is.
RANDOM, SIZE, SEED = (rng(), "generator"), (2, "count"), (1, "seed")
SCALE, SHARE, TIME = (1.0, "positive"), (0.5, "number in [0, 1]"), (0.5, "time")
X, LIKE, ANY, KNOTS = (cloud(3), "cloud"), (cloud(3) + 1, "like x"), (cloud(3), "tensor"), (LINE, "vector")
MANY, LIKE_MANY = (cloud(12), "cloud"), (cloud(12) + 1, "like x")
SEEN = {"path": STRAIGHT, "t": TIME, "x": X, "data": (cloud(5), "like x"), "log_w": (ZEROS, "log-weights")}
PAIR = {"x": MANY, "y": LIKE_MANY}
LEVELS = {"high": SCALE, "low": SCALE}
SMOOTHED = {"data": (cloud(5), "columns"), "process": OU, "tau": SCALE, "x": LIKE}
SEPARATED = {"data": (UNIT, "cloud"), "s": KNOTS, "generator": RANDOM, "draws": (200, "count")}
CUBE = (cloud(3, 3), "shape")
WALKED = {"t": TIME, "x": (cloud(3), "columns")}
PROCESS = {"tau": 0.5, "x": cloud(3), "y": cloud(3)}
TRAINING = {"x0": X, "x1": LIKE, "sigma": SCALE, "generator": RANDOM, "iterations": (1, "count"), "paths": SIZE,
            "times": LINE, "regress": bridge.least_squares(lambda t, x: x)}
NETWORK = {"width": SIZE, "depth": SIZE, "generator": RANDOM}

DOORS: dict[str, tuple[Callable, dict[str, object]]] = {
    "path.point": (STRAIGHT.point, {"x0": ANY, "x1": ANY, "t": TIME}),
    "path.velocity": (STRAIGHT.velocity, {"x0": ANY, "x1": ANY, "t": TIME}),
    "path.rates": (STRAIGHT.rates, {"t": SHARE}),
    "path.ratio": (STRAIGHT.ratio, {"t": SHARE}),
    "path.variance_preserving": (path.variance_preserving, {"beta_min": SCALE, "beta_max": SCALE}),
    "path.from_table": (path.from_table, {"t": KNOTS, "a": KNOTS, "m": (1 - LINE, "vector")}),
    "kernels.prepare": (kernels.prepare, {"y": X, "log_w": (ZEROS[:3], "log-weights"), "values": (cloud(3), "valued")}),
    "kernels.gaussian_posterior": (kernels.gaussian_posterior, {
        "x": X, "y": LIKE_MANY, "sigma": SCALE, "log_w": (torch.zeros(12, dtype=F64), "log-weights"),
        "values": (cloud(12), "valued"), "backend": ("cpu", "choice")}),
    "posterior.flow": (posterior.flow, SEEN),
    "posterior.posterior": (posterior.posterior, SEEN),
    "posterior.score": (posterior.score, SEEN),
    "posterior.velocity": (posterior.velocity, SEEN),
    "posterior.divergence": (posterior.divergence, SEEN),
    "solve.ode": (solve.ode, {"f": FIELD, "x": ANY, "t": KNOTS, "method": ("heun", "choice")}),
    "solve.sde": (solve.sde, {
        "drift": FIELD, "noise": (1.0, "not negative"), "x": ANY, "t": KNOTS, "generator": RANDOM}),
    "solve.log_likelihood": (solve.log_likelihood, {"f": FIELD, "x": X, "t": KNOTS, "base_log_p": lambda x: x[:, 0]}),
    "solve.hutchinson_divergence": (lambda probes: solve.hutchinson_divergence(FIELD, probes)(LINE[0], cloud(3)),
                                    {"probes": (torch.ones(4, 3, 2, dtype=F64), "shape")}),
    "solve.rademacher": (lambda generator: solve.rademacher((2, 3), generator), {"generator": RANDOM}),
    "transport.sinkhorn": (transport.sinkhorn, {
        "x": X, "y": LIKE, "epsilon": SCALE, "log_a": (ZEROS[:3], "log-weights"), "log_b": (ZEROS[:3], "log-weights"),
        "g": (ZEROS[:3], "vector"), "iterations": SIZE, "tolerance": SCALE}),
    "transport.couple": (transport.couple, {
        "x0": X, "x1": LIKE, "kind": ("entropic", "choice"), "epsilon": SCALE, "generator": RANDOM}),
    "transport.gaussian_bridge": (transport.gaussian_bridge, {
        "m0": (ZEROS[:2], "vector"), "S0": (EYE, "cloud"), "m1": (ZEROS[:2], "vector"), "S1": (EYE, "cloud"),
        "sigma": SCALE}),
    "GaussianBridge.mean": (GAUSSIAN.mean, {"t": SHARE}),
    "GaussianBridge.covariance": (GAUSSIAN.covariance, {"t": SHARE}),
    "GaussianBridge.forward_drift": (GAUSSIAN.forward_drift, {"t": TIME, "x": LIKE}),
    "GaussianBridge.backward_drift": (GAUSSIAN.backward_drift, {"t": TIME, "x": LIKE}),
    "nets.MLP": (nets.MLP, NETWORK | {"dim": SIZE, "out": SIZE}),
    "nets.ResidualMLP": (nets.ResidualMLP, NETWORK | {"dim": SIZE, "out": SIZE}),
    "nets.UNet": (nets.UNet, {"side": SIZE, "depth": SIZE, "patch": (1, "count"), "generator": RANDOM}),
    "MLP(t, x)": (MLP, {"t": (0.5, "rows"), "x": (cloud(3), "columns"), "label": (LABEL, "label")}),
    "UNet(t, x)": (CONV, {"t": (0.5, "rows"), "x": (cloud(3, 4), "columns"), "label": (LABEL, "label")}),
    "fit": (fit, {"model": nets.MLP(1, generator=rng(), width=2), "loss": lambda m, g: m.last.bias.sum(), "steps": SIZE,
                  "generator": RANDOM, "lr": SCALE, "ema": SHARE, "clip": SCALE}),
    "toys.mixture": (lambda centres, std: toys.mixture("m", centres, std), {"centres": X, "std": SCALE}),
    "toys.circles": (toys.circles, {"std": SCALE}),
    "Toy.sample": (BOARD.sample, {"n": SIZE, "generator": RANDOM}),
    "Toy.log_prob": (BOARD.log_prob, {"x": X}),
    "data.digits": (data.digits, {"seed": SEED}),
    "data.breast_cancer": (data.breast_cancer, {"seed": SEED}),
    "data.mnist": (data.mnist, {"side": (7, "choice"), "seed": SEED}),
    "data.dequantise": (data.dequantise, {"k": (LABEL, "levels"), "levels": (4, "count"), "generator": RANDOM}),
    "data.logit": (data.logit, {"x": (cloud(3).sigmoid(), "cloud"), "alpha": (1e-6, "number in [0, 1]")}),
    "data.unlogit": (data.unlogit, {"y": X}),
    "data.patches": (data.patches, {"n": (10, "count"), "seed": SEED, "side": SIZE}),
    "affine.normaliser": (affine.normaliser, {"x": X}),
    "metrics.mmd": (metrics.mmd, PAIR | {"bandwidth": SCALE}),
    "metrics.energy_distance": (metrics.energy_distance, PAIR),
    "metrics.wasserstein2": (metrics.wasserstein2, PAIR),
    "metrics.sliced_wasserstein2": (metrics.sliced_wasserstein2, PAIR | {"directions": SIZE, "generator": RANDOM}),
    "metrics.mode_report": (metrics.mode_report, {"x": MANY, "centres": X, "std": SCALE, "reach": SCALE}),
    "metrics.precision_recall": (metrics.precision_recall, {"samples": MANY, "data": LIKE_MANY, "k": SIZE}),
    "metrics.density_coverage": (metrics.density_coverage, {"samples": MANY, "data": LIKE_MANY, "k": SIZE}),
    "metrics.frechet_distance": (metrics.frechet_distance, PAIR),
    "metrics.histogram": (metrics.histogram, {
        "label": (LABEL, "classes"), "classes": (3, "count"), "reference": (LINE[:3], "vector")}),
    "metrics.copies": (lambda **a: metrics.copies(held_out=cloud(3), **a), {
        "samples": X, "train": LIKE, "share": SHARE}),
    "metrics.c2st": (metrics.c2st, PAIR | {"folds": SIZE, "seed": SEED}),
    "metrics.bits_per_dim": (metrics.bits_per_dim, {"log_p": KNOTS, "dim": SIZE, "levels": SIZE}),
    "plot.images": (lambda x: plot.images(plt.figure().gca(), x), {"x": (cloud(3, 64), "cloud")}),
    "bridge.train_dsb": (bridge.train_dsb, TRAINING),
    "bridge.train_dsbm": (bridge.train_dsbm, TRAINING | {"start": ("reference", "choice")}),
    "bridge.symmetric_times": (bridge.symmetric_times, {"steps": SIZE, "ratio": SCALE}),
    "Bridge.sample": (WALK.sample, {"x": X, "direction": ("backward", "choice"), "generator": RANDOM}),
    "Bridge.log_likelihood": (WALK.log_likelihood, {"x": X, "base_log_p": lambda x: x[:, 0]}),
    "interpolant.Interpolant": (si.Interpolant, {"ends": (STRAIGHT, "choice")}),
    "interpolant.point": (LATENT.point, {"x0": ANY, "x1": ANY, "t": TIME, "z": cloud(3)}),
    "interpolant.velocity": (LATENT.velocity, {"x0": ANY, "x1": ANY, "t": TIME, "z": cloud(3)}),
    "interpolant.latent": (lambda z: LATENT.point(CUBE[0], CUBE[0], 0.5, z), {"z": CUBE}),
    "interpolant.brownian": (si.brownian, {"scale": SCALE}),
    "interpolant.Learned": (si.Learned, {"modes": SIZE}),
    "interpolant.stratified": (si.stratified, {"n": SIZE, "generator": RANDOM}),
    "interpolant.score_from_velocity": (si.score_from_velocity, {
        "path": LATENT, "t": TIME, "x": cloud(3), "v": cloud(3)}),
    "interpolant.score_from_denoiser": (si.score_from_denoiser, {"interpolant": LATENT, "t": TIME, "eta": cloud(3)}),
    "interpolant.diffuse": (si.diffuse, {
        "velocity": FIELD, "score": FIELD, "epsilon": (0.5, "tails"), "x": ANY, "t": KNOTS, "generator": RANDOM}),
    "interpolant.log_density": (si.log_density, {
        "velocity": FIELD, "t": SHARE, "x": X, "base_log_p": lambda x: x[:, 0], "steps": SIZE}),
} | {
    f"interpolant.regression_loss of {target}": (si.regression_loss, {
        "field": FIELD, "interpolant": LATENT, "x0": cloud(3), "x1": cloud(3), "t": TIME, "generator": RANDOM,
        "target": (target, "choice")})
    for target in ("velocity", "denoiser", "score")
} | {
    "difference.score_difference": (sd.score_difference, {
        "x": X, "target": cloud(5), "source": cloud(4), "sigma": SCALE}),
    "difference.kernel_denoiser": (sd.kernel_denoiser, {
        "cloud": X, "log_w": (ZEROS[:3], "log-weights")}),
    "difference.noise_levels": (sd.noise_levels, LEVELS | {"n": SIZE}),
    "difference.transport_particles": (sd.transport_particles, {
        "x": X, "target": LIKE, "sigmas": [1.0], "generator": RANDOM}),
    "difference.generator_loss": (sd.generator_loss, LEVELS | {
        "target": X, "latent": SIZE, "batch": SIZE, "target_batch": SIZE}),
    "difference.train_generator": (sd.train_generator, LEVELS | {
        "model": nets.MLP(2, generator=rng(), width=2), "target": (cloud(5).float(), "cloud"), "latent": SIZE,
        "steps": SIZE, "generator": RANDOM, "lr": SCALE, "ema": SHARE, "batch": SIZE, "target_batch": SIZE}),
    "difference.Denoiser": (lambda scale: sd.Denoiser(MLP, scale), {"scale": SCALE}),
    "difference.denoiser_loss": (sd.denoiser_loss, LEVELS | {"data": X}),
    "markov.OrnsteinUhlenbeck": (markov.OrnsteinUhlenbeck, {"dim": SIZE}),
    "markov.ReflectedBrownian": (markov.ReflectedBrownian, {"dim": SIZE}),
    "markov.into_box": (markov.into_box, {"x": X}),
    "markov.noise": (OU.noise, {"x": cloud(3), "tau": SCALE, "generator": RANDOM}),
    "markov.fit_oism": (markov.fit_oism, {
        "data": (cloud(12), "columns"), "process": OU, "order": SIZE, "basis": ("total", "choice"), "shrinkage": SHARE,
        "tails": (1.0, "tails"), "held_out": LIKE_MANY}),
    "OISM.score": (OISM.score, {"tau": (0.5, "tails"), "x": (cloud(3), "columns")}),
    "OISM.flow": (OISM.flow, {"tau": (0.5, "tails"), "x": (cloud(3), "columns")}),
    "OISM.coefficients": (OISM.coefficients, {"tau": (0.5, "tails")}),
    "OISM.rhs": (OISM.rhs, {"tau": (0.5, "tails"), "ansatz": ("absolute", "choice")}),
    "markov.kernel_score": (markov.kernel_score, SMOOTHED | {"log_w": (ZEROS, "log-weights")}),
    "markov.riemannian_kernel_score": (markov.riemannian_kernel_score, SMOOTHED | {
        "x": (cloud(3), "columns"), "neighbours": SIZE, "variant": ("frozen", "choice")}),
    "markov.noised_gaussians": (markov.noised_gaussians, {
        "data": (cloud(3), "columns"), "process": OU, "tau": SCALE, "metric": EYE.expand(3, 2, 2),
        "variant": ("pushed", "choice")}),
    "markov.local_covariances": (markov.local_covariances, {"data": X, "neighbours": SIZE}),
    "kinetic.separation": (kinetic.separation, SEPARATED),
    "kinetic.estimators": (kinetic.estimators, SEPARATED),
    "kinetic.nodes": (kinetic.nodes, {"count": SIZE}),
    "kinetic.kinetic_energy": (kinetic.kinetic_energy, {"path": STRAIGHT, "lam": KERNEL, "cutoff": SHARE}),
    "kinetic.unroll": (kinetic.unroll, {"lam": KERNEL, "floor": SHARE}),
    "kinetic.optimal_path": (kinetic.optimal_path, {"lam": KERNEL, "floor": SHARE}),
}

DOORS |= {
    "bridge.Bridge.after": (bridge.train_dsb(cloud(3), cloud(3), 1.0, generator=rng(), iterations=1, paths=4,
                                             times=LINE, regress=bridge.least_squares(FIELD)).after, {"iteration": 1}),
    "bridge.Bridge.trajectory": (WALK.trajectory, {"x": X, "direction": ("forward", "choice"), "generator": RANDOM}),
    "difference.class_shift": (sd.class_shift, {
        "y": cloud(3), "target": cloud(3), "target_label": LABEL, "source": cloud(3), "source_label": LABEL,
        "sigma": 1.0}),
    "difference.mean_shift": (sd.mean_shift, {"y": cloud(3), "target": cloud(4), "source": cloud(4), "sigma": 1.0}),
    "difference.Denoiser.forward": (sd.Denoiser(MLP_OF_TWO), {"y": X, "sigma": 1.0}),
    "interpolant.Interpolant.gamma": (LATENT.gamma, {"t": SHARE}),
    "interpolant.Interpolant.gamma_rate": (LATENT.gamma_rate, {"t": SHARE}),
    "interpolant.quadratic": (si.quadratic, {"f": cloud(3), "target": cloud(3)}),
    "interpolant.gaussian_length": (si.gaussian_length, {
        "path": LATENT, "variance0": 1.0, "variance1": 2.0}),
    "interpolant.velocity_loss of a Path": (si.velocity_loss, {
        "field": FIELD, "interpolant": STRAIGHT, "x0": cloud(3), "x1": cloud(3), "t": TIME}),
    "judge.view": (lambda x: judge.view(x, JUDGE), {"x": PICTURES}),
    "judge.stacked": (lambda x: judge.stacked(x, JUDGE), {"x": torch.rand(2, 3 * 784, generator=rng())}),
    "judge.report": (lambda **a: judge.report(VIEW, VIEW, judge.View(VIEW.features + 1, VIEW.label), **a), {
        "k": SIZE, "neighbours": (20, "count")}),
    "latents.Autoencoder.encode": (CODER.encode, {"x": PICTURES}),
    "latents.Autoencoder.decode": (CODER.decode, {"w": torch.rand(3, 32, generator=rng())}),
    "kernels.sharded.sharded_posterior": (sharded.sharded_posterior, {
        "x": X, "y": LIKE_MANY, "sigma": SCALE, "log_w": (torch.zeros(12, dtype=F64), "log-weights"),
        "values": (cloud(12), "valued"), "backend": ("cpu", "choice")}),
    "kernels.sharded.streamed_posterior": (sharded.streamed_posterior, {
        "x": X, "y": cloud(12).numpy(), "sigma": SCALE, "log_w": (torch.zeros(12, dtype=F64), "log-weights"),
        "backend": ("cpu", "choice"), "chunk": SIZE}),
    "metrics.histogram_bits": (metrics.histogram_bits, {
        "train": torch.ones(3, 2), "held_out": torch.ones(3, 2), "levels": (4, "count")}),
    "OISM.gram": (OISM.gram, {"tau": 0.5}),
    "OISM.velocity": (OISM.velocity, {"tau": 0.5, "x": (cloud(3), "columns")}),
    "OISM.score_divergence": (OISM.score_divergence, {"tau": 0.5, "x": (cloud(3), "columns")}),
    "Process.eigenfunctions": (OU.eigenfunctions, {"x": (cloud(3), "columns"), "index": INDEX}),
    "Process.kernel": (OU.kernel, PROCESS),
    "Process.transition_score": (OU.transition_score, PROCESS),
    "OU.transition": (OU.transition, PROCESS),
    "OU.stationary": (OU.stationary, {"n": SIZE, "generator": RANDOM}),
    "OU.log_stationary": (OU.log_stationary, {"x": cloud(3)}),
    "Reflected.noise": (BOX.noise, {"x": cloud(3), "tau": SCALE, "generator": RANDOM}),
    "Reflected.transition": (BOX.transition, PROCESS),
    "Reflected.stationary": (BOX.stationary, {"n": SIZE, "generator": RANDOM}),
    "Reflected.log_stationary": (BOX.log_stationary, {"x": cloud(3)}),
    "markov.into_box margin": (markov.into_box, {"x": MANY, "margin": 0.1}),
    "markov.house_time": (markov.process.house_time, {"tau": 0.5}),
    "markov.gaussian_mixture": (smoothing.gaussian_mixture, {
        "x": X, "means": cloud(4), "covariances": EYE.expand(4, 2, 2)}),
    "ResidualMLP(t, x)": (nets.ResidualMLP(2, generator=rng(), width=4, depth=1).double(), {
        "t": (0.5, "rows"), "x": (cloud(3), "columns")}),
    "toys.gaussian_grid": (toys.gaussian_grid, {"side": SIZE, "spacing": SCALE, "std": SCALE}),
    "toys.pinwheel": (toys.pinwheel, {"arms": SIZE, "radial": SCALE, "tangential": SCALE, "twist": 0.5}),
    "toys.curves": (lambda std: toys.curves("c", [lambda u: torch.stack([u, u], 1)], std, 4, 4), {"std": SCALE}),
    "bridges.MixtureBridge": (bridges.MixtureBridge, {
        "centres": X, "std": SCALE, "sigma": SCALE, "log_w": (ZEROS[:3], "log-weights")}),
    "MixtureBridge.conditional": (MIXTURE.conditional, {"x": X}),
    "MixtureBridge.forward_drift": (MIXTURE.forward_drift, WALKED),
    "MixtureBridge.sample": (MIXTURE.sample, {"x": X, "generator": RANDOM}),
    "CloudBridge.forward_drift": (CLOUDS.forward_drift, WALKED),
    "CloudBridge.backward_drift": (CLOUDS.backward_drift, WALKED),
    "CloudBridge.log_p": (CLOUDS.log_p, WALKED),
    "CloudBridge.sample": (CLOUDS.sample, {"x": X, "direction": ("backward", "choice"), "generator": RANDOM}),
    "bridges.cloud_bridge": (bridges.cloud_bridge, {"x0": X, "x1": LIKE, "sigma": SCALE}),
    "bridges.conditional_uvp": (bridges.conditional_uvp, {
        "bridge": MIXTURE, "x": X, "y": torch.randn(3, 6, 2, generator=rng(), dtype=F64)}),
    "bridges.marginal_kl": (bridges.marginal_kl, {
        "bridge": GAUSSIAN, "times": KNOTS, "walk": torch.randn(5, 9, 2, generator=rng(), dtype=F64)}),
    "transport.coupled": (lambda x0, x1, kind: transport.coupled(lambda g: (x0, x1), kind)(rng()), {
        "x0": X, "x1": LIKE, "kind": ("exact", "choice")}),
}

# What needs no entry of its own, by the beginning of its name, and why.
INSIDE = {
    "base.": "the doors themselves, in test_check",
    "chapter.": "what only notebooks use, in tests of their own",
    "kernels.": "behind the doors of gaussian_posterior, prepare and the sharded ones",
    "solve.grid": "a check", "transport.bridges.covariance": "a check", "transport.couplings.normalised": "a check",
    "nets.given": "a check", "nets.embedded": "a check", "path.Path": "holds functions of time",
    "path.cond_ot": "no argument", "path.trigonometric": "no argument", "toys.": "made of mixture and curves",
    "interpolant.linear": "takes a function", "interpolant.trigonometric": "takes a function",
    "interpolant.encoder_decoder": "no argument", "interpolant.Interpolant.one_sided": "no argument",
    "interpolant.Learned.": "no argument", "interpolant.objective": "takes functions",
    "interpolant.antithetic": "behind the losses", "interpolant.warn_unless_white": "behind objective",
    "markov.process.house_path": "no argument", "markov.process.Process": "a base",
    "markov.process.Process.": "arithmetic, where not in the table", "kinetic.gamma": "behind unroll",
    "markov.process.OrnsteinUhlenbeck.": "one axis of a process, unchecked in loops",
    "markov.process.ReflectedBrownian.": "one axis of a process, unchecked in loops",
    "markov.network.": "networks and their losses, whose parts have doors", "markov.oism.OISM": "made by fit_oism",
    "bridge.Bridge": "made by train_dsb", "bridge.network": "takes a function", "bridge.least_squares": "likewise",
    "bridge.reversal_pairs": "behind train_dsb", "bridge.simulate": "behind Bridge.trajectory",
    "bridge.Cache": "made by train_dsb", "bridge.Cache.": "likewise",
    "bridge.Bridge.velocity": "of fields that anyone may give", "data.openml": "needs the network",
    "data.photographs": "no argument", "latents.": "weights and files", "judge.": "weights and files",
    "nets.": "made with MLP, or files", "fit.": "of a fraction that fit has made", "affine.Affine": "holds tensors",
    "affine.Affine.": "arithmetic",
    "difference.generate": "of a network that anyone may give", "kinetic.disagreement": "of what estimators has made",
    "path.pchip": "behind from_table", "solve.exact_divergence": "takes a function",
    "solve.": "in the table, by a lambda",
    "transport.bridges.CloudBridge": "made by cloud_bridge",
    "transport.bridges.GaussianBridge": "made by gaussian_bridge",
    "transport.bridges.power": "of a matrix that was checked", "metrics.copies": "in the table, by a lambda",
    "difference.Denoiser": "in the table, by a lambda", "transport.couplings.coupled": "in the table, by a lambda",
}


def public() -> Iterator[str]:
    """Functions, classes and their methods that `lib` defines, but records (named tuples), by their dotted names."""
    for module in pkgutil.walk_packages(lib.__path__, "lib."):
        if module.name in ("lib.kernels.launch", "lib.kernels.device"):  # need Triton
            continue
        for name, thing in vars(importlib.import_module(module.name)).items():
            if name.startswith("_") or getattr(thing, "__module__", "") != module.name or hasattr(thing, "_fields"):
                continue
            if inspect.isclass(thing):
                yield f"{module.name}.{name}".removeprefix("lib.")
                for part, method in vars(thing).items():
                    if not part.startswith("_") and part != "forward" and (
                            inspect.isfunction(method) or isinstance(method, staticmethod)):
                        yield f"{module.name}.{name}.{part}".removeprefix("lib.")
            elif inspect.isfunction(thing):
                yield f"{module.name}.{thing.__name__}".removeprefix("lib.")


def test_nothing_public_is_forgotten():
    """And no reason outlives what it is for."""
    doors = {f"{f.__module__}.{f.__qualname__}".removeprefix("lib.") for f, _ in DOORS.values() if
             hasattr(f, "__qualname__")}
    missing = {name for name in public() if name not in doors}
    excused = {name: [start for start in INSIDE if name == start or (name.startswith(start) and start[-1] == ".")]
               for name in missing}
    assert not [name for name, reasons in excused.items() if not reasons]
    assert {start for reasons in excused.values() for start in reasons} == set(INSIDE)


def arguments(door: str) -> tuple[dict[str, object], dict[str, str]]:
    """A call's good arguments, and the kinds of those that are to be spoiled."""
    given = DOORS[door][1]
    good = {name: v[0] if isinstance(v, tuple) else v for name, v in given.items()}
    return good, {name: v[1] for name, v in given.items() if isinstance(v, tuple)}


def spoiled(draw: Callable, good: torch.Tensor, value: float) -> torch.Tensor:
    bad = good.clone()
    bad.view(-1)[draw(st.integers(0, good.numel() - 1))] = value
    return bad


NOT_TENSORS = st.sampled_from([None, "x", [[1.0]], 3])
NOT_NUMBERS = st.sampled_from([None, "1", [1.0], True])
NON_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])
OUTSIDE = st.one_of(st.floats(max_value=-1e-6), st.floats(min_value=1.001), st.just(math.nan))


@st.composite
def bad(draw: Callable, kind: str, good: object) -> object:
    """An argument of its kind with one thing wrong."""
    one = lambda *choices: draw(st.one_of(*choices))
    if kind in ("tensor", "cloud", "like x", "columns"):
        shapes = [st.just(v) for v in (good[0], good[None], good[:0], good[:, :0], good.sum())]
        values = [st.just(v) for v in (good.long(), good.half(), spoiled(draw, good, draw(NON_FINITE)))]
        others = [st.just(torch.cat([good, good, good], 1)), st.just(good.float())]  # too wide, of another type
        return one(NOT_TENSORS, *{"tensor": values, "cloud": shapes + values, "columns": shapes + others[:1],
                                  "like x": shapes + values + others}[kind])
    if kind in ("vector", "log-weights"):
        value = math.nan if kind == "log-weights" else draw(NON_FINITE)
        return one(st.sampled_from(["x", [[1.0]], 3]), st.just(good.long()), st.just(spoiled(draw, good, value)),
                   st.just(good[:0]), st.just(good[None]), st.just(good.sum()))
    if kind == "valued":
        return one(NOT_TENSORS.filter(lambda v: v is not None),
                   *(st.just(v) for v in (good[0], good[:2], good.long(), good.float(), spoiled(draw, good, math.nan))))
    if kind == "shape":
        return one(*(st.just(v) for v in (good[:, :2], good[..., :1], good[0])))
    if kind in ("time", "rows"):
        rows = st.sampled_from([torch.zeros(2), torch.zeros(3, 1), torch.zeros(3, 2)])
        return one(rows) if kind == "rows" else one(rows, NOT_NUMBERS, OUTSIDE)
    if kind == "classes":
        return one(*(st.just(v) for v in (None, [0], good[:0], good + 1, good - 1, good.double(), good[:, None])))
    if kind == "levels":
        return one(NOT_TENSORS, st.just(good - 1), st.just(good + 4))
    if kind == "label":
        return one(*(st.just(v) for v in (None, good[:2], good + 1, good - 1, good.double(), good[:, None])))
    return one(NOT_NUMBERS, {
        "number in [0, 1]": OUTSIDE, "positive": st.one_of(st.floats(max_value=0), st.just(math.nan)),
        "not negative": st.one_of(st.floats(max_value=-1e-9), NON_FINITE), "choice": st.sampled_from(["nonsense", ""]),
        "count": st.one_of(st.integers(max_value=0), st.floats(), st.just("3")),
        "seed": st.one_of(st.integers(max_value=-1), st.floats()), "generator": st.integers(),
        "tails": st.one_of(st.floats(max_value=-1e-9), st.just(math.nan)),
    }[kind])


def refused_by_name(door: str, name: str, n: int) -> None:
    good, kinds = arguments(door)

    @settings(max_examples=n)
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        wrong = data.draw(bad(kinds[name], good[name]))
        if wrong is None and name in OPTIONAL:
            return
        with pytest.raises(ValueError) as error:
            DOORS[door][0](**(good | {name: wrong}))
        refusal = re.fullmatch(r"([\w ]+): got .+; need .+", str(error.value))
        # Where two tensors disagree, either may be the one that is blamed.
        assert refusal and (refusal[1] == name or (isinstance(wrong, torch.Tensor)
                                                   and refusal[1] in (*kinds, "x and y")))

    attempt()


OPTIONAL = ("log_w", "log_a", "log_b", "g", "out", "ema", "clip", "bandwidth", "block", "batch", "backend", "held_out")
OF_A_KIND = pytest.mark.parametrize(("door", "name"), [(d, name) for d in DOORS for name in arguments(d)[1]])


@OF_A_KIND
def test_one_bad_argument_is_refused_by_name(door, name):
    refused_by_name(door, name, 3)


@pytest.mark.slow
@OF_A_KIND
def test_many_bad_arguments_are_refused_by_name(door, name):
    refused_by_name(door, name, 20)


def anything(good: object) -> list[object]:
    """Whatever a user may give in place of a good argument."""
    if isinstance(good, torch.Tensor):
        whole = [None, "x", 3, [[1.0]], good.numpy(), good[:0], good[None], good[:1], good.flatten()[0], good.float(),
                 good.half(), good.long(), good.bool(), good.to(torch.complex128), good.to("meta"), good.to_sparse()]
        spoiled = [with_one(good, value) for value in (math.nan, math.inf, -math.inf, 1e30, -1.0)
                   if good.is_floating_point()]
        ask = [good.clone().requires_grad_(), good.clone().requires_grad_() * 1] if good.is_floating_point() else []
        return [*whole, *spoiled, *ask]
    if isinstance(good, bool) or not isinstance(good, (int, float, str, torch.Generator)):
        return []
    others = [None, "1", "", [1.0], torch.tensor(1 + 1j), torch.tensor(1.0, device="meta"), math.nan]
    if isinstance(good, (int, float)):
        others += [True, 0, -1, 2.5, math.inf, -math.inf, 1e-308, torch.tensor(float(good)).requires_grad_()]
    return others


def with_one(good: torch.Tensor, value: float) -> torch.Tensor:
    bad = good.clone()
    bad.view(-1)[-1] = value
    return bad


def numbers(answer: object) -> Iterator[torch.Tensor]:
    """The numbers of an answer; what it is to hold is in no door's hands."""
    if isinstance(answer, (float, torch.Tensor)):
        yield torch.as_tensor(answer, dtype=F64) if isinstance(answer, float) else answer
    elif isinstance(answer, (tuple, list)):
        for part in answer:
            yield from numbers(part)
    elif isinstance(answer, dict):
        yield from numbers(list(answer.values()))


OPEN = [(door, name) for door in DOORS for name, good in arguments(door)[0].items() if anything(good)]


def try_anything(door: str, name: str, n: int) -> None:
    good, _ = arguments(door)

    @settings(max_examples=n)
    @given(st.sampled_from(anything(good[name])))
    def attempt(wrong: object) -> None:
        try:
            answer = DOORS[door][0](**(good | {name: wrong}))
        except (ValueError, TypeError) as error:
            assert re.fullmatch(r"[\w ]+: got .+; need .+", str(error), re.DOTALL), f"{wrong!r}: {error}"
        else:
            found = [] if door in UNCHECKED else list(numbers(answer))
            assert not any(bool(t.isnan().any()) for t in found), f"{wrong!r} gives {answer}"
            assert door in UNBOUNDED or all(bool(t.isfinite().all()) for t in found), f"{wrong!r} gives {answer}"
        finally:
            plt.close("all")

    attempt()


# A density of 0, shares where the reference has none, no mode found; networks, of whose answers `fit` takes care.
UNBOUNDED = {"Toy.log_prob", "metrics.histogram", "metrics.mode_report"}
UNCHECKED = {"MLP(t, x)", "ResidualMLP(t, x)", "UNet(t, x)", "interpolant.quadratic"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("door", "name"), OPEN)
def test_no_error_comes_from_within(door, name):
    try_anything(door, name, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("door", "name"), OPEN)
def test_whatever_is_tried_no_error_comes_from_within(door, name):
    try_anything(door, name, 50)


@pytest.mark.parametrize("door", DOORS)
def test_the_doors_open(door):
    DOORS[door][0](**arguments(door)[0])
    plt.close("all")
