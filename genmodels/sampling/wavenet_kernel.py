"""k steps of a WaveNet in one launch, in Triton: each program draws its own rows and waits for no other.

It goes through the layers with its rows' features in registers. Weights are read where they lie, by all programs at nearly the same time, so from the
second level cache; past inputs from rings in memory. A dozen threads' work on one row is not worth sharing out, so a program takes 16 rows or more,
and its products are those of the matrix units.

Importing this imports triton.
"""
# ruff: noqa: N803  constants of compilation in capitals, as triton writes them

import triton
import triton.language as tl


@triton.jit
def product(a, weight, total, PRECISION: tl.constexpr):
    """total (ROWS, M) float32 + a (ROWS, N) float32 by weight (N, M)."""
    if PRECISION == "bf16":
        total = tl.dot(a.to(tl.bfloat16), weight, total)
    elif PRECISION == "bf16-wide":  # the same products for the interpreter, which has no bf16 ones
        total = tl.dot(a.to(tl.bfloat16).to(tl.float32), weight.to(tl.float32), total, input_precision="ieee")
    elif PRECISION == "tf32":
        total = tl.dot(a, weight, total, input_precision="tf32")
    else:  # three products of tf32: float32's precision out of the matrix units, where one of float32 would spill its registers
        total = tl.dot(a, weight, total, input_precision="tf32x3")
    return total


@triton.jit
def perceive(scratch, features, weight, bias, rows, inside, S: tl.constexpr, M: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """features (ROWS, S) -> (ROWS, M): bias + relu(features) by weight (S, M), in chunks of S since all of the weight at once may be too much.

    By way of scratch (B, S), since of a tensor in registers no part can be taken.
    """
    s, m, chunk = tl.arange(0, S), tl.arange(0, M), tl.arange(0, CHUNK)
    at = rows[:, None].to(tl.int64) * S
    tl.debug_barrier()  # the scratch was read by the call before
    tl.store(scratch + at + s[None, :], tl.maximum(features, 0.0), mask=inside[:, None])
    tl.debug_barrier()
    total = tl.zeros((rows.shape[0], M), tl.float32) + tl.load(bias + m)[None, :]
    for first in range(0, S, CHUNK):
        part = tl.load(scratch + at + (first + chunk)[None, :], mask=inside[:, None], other=0.0)
        total = product(part, tl.load(weight + (first + chunk)[:, None] * M + m[None, :]), total, PRECISION)
    return total


@triton.jit(do_not_specialize=["step", "k", "batch", "length", "tables"])
def draw(
    embedding,  # (K, R) float32
    taps,  # (layers, kernel, 2, R, R), in by out, the oldest tap first; filter and gate
    residuals,  # (layers, R, R), zeros in the last
    residual_bias,  # (layers, R) float32
    skips,  # (layers, R, S)
    skip_bias,  # (S,) float32, of all layers together
    hidden,  # (S, S)
    hidden_bias,  # (S,) float32
    out,  # (S, M)
    out_bias,  # (M,) float32
    gates,  # (frames, layers, tables, 2, R) float32: what bias, label and condition add to the taps
    which,  # (B,) int32: a row's table
    frames,  # (T,) int32: a step's frame
    dilations,  # (layers,) int32
    begins,  # (layers,) int64: slots of the rings of the layers before
    rings,  # (slots, B, R): a layer's input at step t in its slot t % ((kernel - 1) dilation)
    x,  # (B, R) float32: the embedded sample before the next one
    scratch,  # (B, S) float32
    uniforms,  # (B, T) float32
    temperature,  # (B,) float32
    levels,  # (B, T) uint8
    known,  # (B, T) uint8: where `given` is taken in place of a draw
    given,  # (B, T) int64
    log_weight,  # (B,) float64 nats: of the given values
    logits,  # (B, k, K) float32
    broken,  # (B,) int32: 1 where some logit is no finite number
    step,
    k,
    batch,
    length,
    tables,
    K: tl.constexpr,
    M: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    LAYERS: tl.constexpr,
    KERNEL: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    KNOWN: tl.constexpr,
    LOGITS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < batch
    r, s, level = tl.arange(0, R), tl.arange(0, S), tl.arange(0, M)
    cell = rows[:, None].to(tl.int64) * R + r[None, :]
    square = r[:, None] * R + r[None, :]
    slot_size = batch.to(tl.int64) * R
    here = inside[:, None]
    table = tl.load(which + rows, mask=inside, other=0).to(tl.int64)
    warmth = tl.load(temperature + rows, mask=inside, other=1.0)
    h = tl.load(x + cell, mask=here, other=0.0)
    weighed = tl.zeros((ROWS,), tl.float64)
    faults = tl.zeros((ROWS,), tl.int32)
    for t in range(k):
        now = step + t
        frame = tl.load(frames + now).to(tl.int64)
        total = tl.zeros((ROWS, S), tl.float32) + tl.load(skip_bias + s)[None, :]
        for layer in range(LAYERS):
            dilation = tl.load(dilations + layer)
            memory = dilation * (KERNEL - 1)
            ring = rings + tl.load(begins + layer) * slot_size
            told = gates + ((frame * LAYERS + layer) * tables + table)[:, None] * (2 * R) + r[None, :]
            filtered = tl.load(told, mask=here, other=0.0)
            gated = tl.load(told + R, mask=here, other=0.0)
            tap = taps + layer * (KERNEL * 2 * R * R) + square
            for j in tl.static_range(KERNEL - 1):
                slot = ((now + memory - (KERNEL - 1 - j) * dilation) % memory).to(tl.int64)
                past = tl.load(ring + slot * slot_size + cell, mask=here, other=0.0, cache_modifier=".cg").to(tl.float32)
                filtered = product(past, tl.load(tap + (2 * j) * R * R), filtered, PRECISION)
                gated = product(past, tl.load(tap + (2 * j + 1) * R * R), gated, PRECISION)
            filtered = product(h, tl.load(tap + (2 * KERNEL - 2) * R * R), filtered, PRECISION)
            gated = product(h, tl.load(tap + (2 * KERNEL - 1) * R * R), gated, PRECISION)
            tl.debug_barrier()  # every thread has read the oldest slot, which is written next
            tl.store(ring + (now % memory).to(tl.int64) * slot_size + cell, h.to(rings.dtype.element_ty), mask=here)
            # tanh as a sigmoid, which every backend has
            filtered = (2 * tl.sigmoid(2 * filtered) - 1) * tl.sigmoid(gated)
            skip = tl.load(skips + layer * (R * S) + r[:, None] * S + s[None, :])
            total = product(filtered, skip, total, PRECISION)
            h += tl.load(residual_bias + layer * R + r)[None, :]
            h = product(filtered, tl.load(residuals + layer * (R * R) + square), h, PRECISION)
        total = perceive(scratch, total, hidden, hidden_bias, rows, inside, S, S, CHUNK, PRECISION)
        said = perceive(scratch, total, out, out_bias, rows, inside, S, M, CHUNK, PRECISION)
        real = (level < K)[None, :] & here
        faults += tl.sum(((tl.abs(said) <= 3.0e38) == 0) & real, axis=1).to(tl.int32)  # false of what is no number
        if LOGITS:
            at = (rows[:, None].to(tl.int64) * k + t) * K + level[None, :]
            tl.store(logits + at, said, mask=real)
        # The inverse CDF in level order.
        warm = tl.where((level < K)[None, :], said / warmth[:, None], float("-inf"))
        cdf = tl.cumsum(tl.exp(warm - tl.max(warm, axis=1)[:, None]), axis=1)
        place = rows.to(tl.int64) * length + now
        edge = tl.load(uniforms + place, mask=inside, other=0.0) * tl.max(cdf, axis=1)
        drawn = tl.sum(((cdf <= edge[:, None]) & (level < K)[None, :]).to(tl.int32), axis=1)
        drawn = tl.minimum(drawn, K - 1)
        if KNOWN:
            fixed = tl.load(known + place, mask=inside, other=0) != 0
            drawn = tl.where(fixed, tl.load(given + place, mask=inside, other=0).to(tl.int32), drawn)
            cold = tl.where((level < K)[None, :], said, float("-inf"))
            most = tl.max(cold, axis=1)
            own = tl.sum(tl.where(level[None, :] == drawn[:, None], said, 0.0), axis=1)
            nats = own - most - tl.log(tl.sum(tl.exp(cold - most[:, None]), axis=1))
            weighed += tl.where(fixed, nats, 0.0).to(tl.float64)
        tl.store(levels + place, drawn.to(tl.uint8), mask=inside)
        h = tl.load(embedding + drawn[:, None] * R + r[None, :], mask=here, other=0.0)
        tl.debug_barrier()  # what this step has put into the rings is there for the next
    tl.store(x + cell, h, mask=here)
    tl.store(broken + rows, tl.minimum(faults, 1), mask=inside)
    if KNOWN:
        tl.store(log_weight + rows, tl.load(log_weight + rows, mask=inside, other=0.0) + weighed, mask=inside)
