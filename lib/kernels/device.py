r"""Triton kernels of the one reduction: what runs on the device.  `lib.kernels.launch` calls them and says why.

A program owns a block of queries, streams the keys, and keeps what a softmax needs: with base-2 logits ℓ, the
running maximum m, Σ 2^(ℓ−m), and the same sum weighted by a feature of each pair and by its squared length.
Backward, the weights p_ij = 2^(ℓ_ij − log₂ z_i) are recomputed; s_ij below is ∂L/∂ℓ_ij.

Streams are split over the second axis of the grid: outputs have a part for each.  Sums have a fixed order and
there are no atomics, so results are bitwise equal from run to run.
"""
from __future__ import annotations

import math

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3e38)  # a running maximum to start from; finite, so that −inf minus it is no NaN
LN2 = tl.constexpr(math.log(2))


# --- Explicit differences.  Queries are stored (row, query), the rows being x, c = −log₂e/2σ² and, backward, log₂ z,
# e, h, f; keys likewise, y, w, v.  The feature is v, or x − y.  Tiles are (row, streamed, own): a thread owns whole
# points and reduces over the stream within itself.


@triton.jit
def _rows(pointer, stride, columns, first: tl.constexpr, count: tl.constexpr, padded: tl.constexpr):
    """Rows first … first + count as a tile of `padded` ≥ `count` rows, zero below."""
    r = tl.arange(0, padded)[:, None, None]
    return tl.load(pointer + (first + r).to(tl.int64) * stride + columns, r < count, 0)


@triton.jit
def _pairs(x, y, v, VALUES: tl.constexpr):
    """Of each pair of points: difference, squared length, feature and its squared length."""
    diff = x - y
    square = tl.sum(diff * diff, 0, keep_dims=True)
    return (diff, square, v, tl.sum(v * v, 0, keep_dims=True)) if VALUES else (diff, square, diff, square)


@triton.jit
def _key(k, j, keys, D: tl.constexpr, DP: tl.constexpr, F: tl.constexpr, FP: tl.constexpr, VALUES: tl.constexpr):
    y, w = _rows(k, keys, j, 0, D, DP), _rows(k, keys, j, D, 1, 1)
    return y, w, (_rows(k, keys, j, D + 1, F, FP) if VALUES else y)


@triton.jit
def _query(q, i, queries, D: tl.constexpr, DP: tl.constexpr, F: tl.constexpr, FP: tl.constexpr):
    x, c, log_z = _rows(q, queries, i, 0, D, DP), _rows(q, queries, i, D, 1, 1), _rows(q, queries, i, D + 1, 1, 1)
    e, h, f = _rows(q, queries, i, D + 2, 1, 1), _rows(q, queries, i, D + 3, 1, 1), _rows(q, queries, i, D + 4, F, FP)
    return x, c, log_z, e, h, f


@triton.jit
def _explicit_step(state, x, c, k, j, N, keys, D: tl.constexpr, DP: tl.constexpr, F: tl.constexpr, FP: tl.constexpr,
                   WEIGHTS: tl.constexpr, VALUES: tl.constexpr, MASKED: tl.constexpr, E: tl.constexpr):
    top, mass, first, second = state
    y, w, v = _key(k, j, keys, D, DP, F, FP, VALUES)
    _, square, feature, length = _pairs(x, y, v, VALUES)
    logit = square * c
    if WEIGHTS:
        logit += w
    if MASKED:
        logit = tl.where(j < N, logit, -float("inf"))
    if WEIGHTS or MASKED:
        new = tl.maximum(top, tl.max(logit, 1, keep_dims=True))
    else:  # the same, with one operation less for each pair
        new = tl.maximum(top, c * tl.min(square, 1, keep_dims=True))
    p = tl.exp2((logit - new).to(E)).to(x.dtype)
    old = tl.exp2((top - new).to(E)).to(x.dtype)
    mass = mass * old + tl.sum(p, 1, keep_dims=True)
    first = first * old + tl.sum(p * feature, 1, keep_dims=True)
    second = second * old + tl.sum(p * length, 1, keep_dims=True)
    return new, mass, first, second


@triton.jit
def explicit_forward(q, k, out, N, chunk, queries, keys, D: tl.constexpr, DP: tl.constexpr, F: tl.constexpr,
                      FP: tl.constexpr, OWN: tl.constexpr, STREAM: tl.constexpr, WEIGHTS: tl.constexpr,
                      VALUES: tl.constexpr, E: tl.constexpr):
    """(part, [log z, spread, mean…], query)."""
    T: tl.constexpr = q.dtype.element_ty
    queries, keys = queries.to(tl.int64), keys.to(tl.int64)
    i = tl.program_id(0) * OWN + tl.arange(0, OWN)[None, None, :]
    j = tl.arange(0, STREAM)[None, :, None]
    x, c = _rows(q, queries, i, 0, D, DP), _rows(q, queries, i, D, 1, 1)
    start = tl.program_id(1) * chunk
    stop = tl.minimum(start + chunk, N)
    whole = start + (stop - start) // STREAM * STREAM
    zero = tl.zeros([1, 1, OWN], T)
    state = (zero + LOWEST, zero, tl.zeros([FP, 1, OWN], T), zero)
    for n in range(start, whole, STREAM):
        state = _explicit_step(state, x, c, k, n + j, N, keys, D, DP, F, FP, WEIGHTS, VALUES, False, E)
    if whole < stop:
        state = _explicit_step(state, x, c, k, whole + j, N, keys, D, DP, F, FP, WEIGHTS, VALUES, True, E)
    top, mass, first, second = state
    first /= mass
    f = tl.arange(0, FP)[:, None, None]
    out += tl.program_id(1) * (F + 2) * queries + i
    tl.store(out, (top + tl.log2(mass)) * LN2)
    tl.store(out + queries, second / mass - tl.sum(first * first, 0, keep_dims=True))
    tl.store(out + (2 + f) * queries, first if VALUES else x - first, f < F)


@triton.jit
def explicit_backward(q, k, out, N, chunk, queries, keys, D: tl.constexpr, DP: tl.constexpr, F: tl.constexpr,
                       FP: tl.constexpr, OWN: tl.constexpr, STREAM: tl.constexpr, OF_QUERIES: tl.constexpr,
                       VALUES: tl.constexpr, E: tl.constexpr):
    """(part, [Σ s ‖d‖², Σ s d/σ²…], query), or for keys [Σ s, the gradient of y…, of values…].

    Where y is its own feature, its gradient has both parts.
    """
    T: tl.constexpr = q.dtype.element_ty
    queries, keys = queries.to(tl.int64), keys.to(tl.int64)
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)[None, None, :]
    mine = _query(q, own, queries, D, DP, F, FP) if OF_QUERIES else _key(k, own, keys, D, DP, F, FP, VALUES)
    second, first, features = tl.zeros([1, 1, OWN], T), tl.zeros([DP, 1, OWN], T), tl.zeros([FP, 1, OWN], T)
    start = tl.program_id(1) * chunk
    for n in range(start, tl.minimum(start + chunk, N), STREAM):
        other = n + tl.arange(0, STREAM)[None, :, None]
        query = mine if OF_QUERIES else _query(q, other, queries, D, DP, F, FP)
        key = _key(k, other, keys, D, DP, F, FP, VALUES) if OF_QUERIES else mine
        x, c, log_z, e, h, f = query
        y, w, v = key
        diff, square, feature, length = _pairs(x, y, v, VALUES)
        p = tl.exp2((square * c + (w - log_z)).to(E)).to(T)
        s = p * (e + tl.sum(f * feature, 0, keep_dims=True) + h * length)
        second += tl.sum(s * square if OF_QUERIES else s, 1, keep_dims=True)
        pull = s * (c * (-2 * LN2))
        if OF_QUERIES or VALUES:
            first += tl.sum(pull * diff, 1, keep_dims=True)
        else:
            first += tl.sum((pull - 2 * h * p) * diff - p * f, 1, keep_dims=True)
        if VALUES and not OF_QUERIES:
            features += tl.sum(p * (f + 2 * h * v), 1, keep_dims=True)
    stride = queries if OF_QUERIES else keys
    d, g = tl.arange(0, DP)[:, None, None], tl.arange(0, FP)[:, None, None]
    out += tl.program_id(1) * (1 + D + (0 if OF_QUERIES else F)) * stride + own
    tl.store(out, second)
    tl.store(out + (1 + d) * stride, first, d < D)
    if not OF_QUERIES:
        tl.store(out + (1 + D + g) * stride, features, g < F)


# --- Matrix products, ‖x − y‖² = ‖x‖² + ‖y‖² − 2x·y.  Points are rows of padded matrices; q holds (row, query) c,
# log₂ z, e, h, and k (row, key) ‖y‖², w, ‖v‖².  Here ℓ leaves out ‖x‖²/2σ², and the feature is v, or y itself.


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    if PRECISION == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=a.dtype)


@triton.jit
def _matrix(pointer, rows, COLUMNS: tl.constexpr):
    return tl.load(pointer + rows.to(tl.int64)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def products_forward(x, y, v, q, k, moments, mean, chunk, queries, keys, DP: tl.constexpr, FP: tl.constexpr,
                      OWN: tl.constexpr, STREAM: tl.constexpr, VALUES: tl.constexpr, PRECISION: tl.constexpr,
                      ROUNDED: tl.constexpr, E: tl.constexpr):
    """(part, [log z, spread], query), and the mean as (part, query, feature)."""
    T: tl.constexpr = x.dtype.element_ty
    queries, keys = queries.to(tl.int64), keys.to(tl.int64)
    i = tl.program_id(0) * OWN + tl.arange(0, OWN)
    x, c = _matrix(x, i, DP), tl.load(q + i)
    top, mass, second = tl.full([OWN], LOWEST, T), tl.zeros([OWN], T), tl.zeros([OWN], T)
    first = tl.zeros([OWN, FP], T)
    start = tl.program_id(1) * chunk
    for n in range(start, tl.minimum(start + chunk, keys), STREAM):
        j = n + tl.arange(0, STREAM)
        points = _matrix(y, j, DP)
        feature = _matrix(v, j, FP) if VALUES else points
        square = tl.load(k + j)[None, :] - 2 * _dot(x, tl.trans(points), PRECISION)
        logit = square * c[:, None] + tl.load(k + keys + j)[None, :]
        new = tl.maximum(top, tl.max(logit, 1))
        p = tl.exp2((logit - new[:, None]).to(E)).to(T)
        if ROUNDED:  # as the product will have them, in all sums
            p = p.to(tl.bfloat16).to(T)
        old = tl.exp2((top - new).to(E)).to(T)
        mass = mass * old + tl.sum(p, 1)
        second = second * old + tl.sum(p * tl.load(k + 2 * keys + j)[None, :], 1)
        first = first * old[:, None] + _dot(p, feature, PRECISION)
        top = new
    first /= mass[:, None]
    part = tl.program_id(1) * queries
    tl.store(moments + 2 * part + i, (top + tl.log2(mass)) * LN2)
    tl.store(moments + 2 * part + queries + i, second / mass - tl.sum(first * first, 1))
    tl.store(mean + (part + i)[:, None] * FP + tl.arange(0, FP)[None, :], first)


@triton.jit
def products_backward(a, b, fa, fb, q, k, moments, first_out, features_out, N, chunk, queries, keys,
                       DP: tl.constexpr, FP: tl.constexpr, OWN: tl.constexpr, STREAM: tl.constexpr,
                       OF_QUERIES: tl.constexpr, VALUES: tl.constexpr, PRECISION: tl.constexpr, E: tl.constexpr):
    """Of own points a and features fa (x and f, or y and v) with the others b and fb:

    (part, [Σ s/σ², Σ s (‖y‖² − 2x·y) for queries or Σ s for keys, Σ p h], own), and as (part, own, column)
    Σ s b/σ² and, for keys, Σ p f.
    """
    T: tl.constexpr = a.dtype.element_ty
    queries, keys = queries.to(tl.int64), keys.to(tl.int64)
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)
    a = _matrix(a, own, DP)
    fa = _matrix(fa, own, FP) if VALUES or OF_QUERIES else a
    pulls, second, lengths = tl.zeros([OWN], T), tl.zeros([OWN], T), tl.zeros([OWN], T)
    first, features = tl.zeros([OWN, DP], T), tl.zeros([OWN, FP], T)
    start = tl.program_id(1) * chunk
    for n in range(start, tl.minimum(start + chunk, N), STREAM):
        other = n + tl.arange(0, STREAM)
        i = own[:, None] if OF_QUERIES else other[None, :]
        j = other[None, :] if OF_QUERIES else own[:, None]
        c, log_z, e, h = (tl.load(q + i), tl.load(q + queries + i), tl.load(q + 2 * queries + i),
                          tl.load(q + 3 * queries + i))
        points = _matrix(b, other, DP)
        feature = _matrix(fb, other, FP) if VALUES or not OF_QUERIES else points
        square = tl.load(k + j) - 2 * _dot(a, tl.trans(points), PRECISION)
        p = tl.exp2((square * c + (tl.load(k + keys + j) - log_z)).to(E)).to(T)
        s = p * (e + h * tl.load(k + 2 * keys + j) + _dot(fa, tl.trans(feature), PRECISION))
        pull = s * (c * (-2 * LN2))
        pulls += tl.sum(pull, 1)
        second += tl.sum(s * square if OF_QUERIES else s, 1)
        first += _dot(pull, points, PRECISION)
        if not OF_QUERIES:
            lengths += tl.sum(p * h, 1)
            features += _dot(p, feature, PRECISION)
    stride = queries if OF_QUERIES else keys
    part = tl.program_id(1) * stride
    tl.store(moments + 3 * part + own, pulls)
    tl.store(moments + 3 * part + stride + own, second)
    tl.store(moments + 3 * part + 2 * stride + own, lengths)
    tl.store(first_out + (part + own)[:, None] * DP + tl.arange(0, DP)[None, :], first)
    if not OF_QUERIES:
        tl.store(features_out + (part + own)[:, None] * FP + tl.arange(0, FP)[None, :], features)
