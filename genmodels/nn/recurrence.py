"""The recurrence of convolutional LSTMs: many cells side by side, step after step, each reading the hidden states around its own place.

Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner, Kavukcuoglu, 2016), arXiv:1601.06759, eq. 3. Its gradient is written out: with batches
innermost and states kept between margins of zeros, every step is a few products and sums in place, about twice as fast as a graph of a dozen nodes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genmodels.nn.scaling import wide

sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM. gates (n, 4 F): input, forget, output, content; c (n, F) -> h, c (n, F), float32 at least."""
    gates = wide(gates)
    i, f, o, _ = torch.sigmoid(gates).chunk(4, dim=-1)
    c = torch.addcmul(f * c, i, torch.tanh(gates[..., 3 * c.shape[-1] :]))
    return o * torch.tanh(c), c


def recur(gates: Tensor, weight: Tensor, offsets: Sequence[int], *, diagonal: bool) -> Tensor:
    """gates (G, 4 F, H, W, B) of what comes from the input, weight (G, 4 F, len(offsets) F) -> h (G, F, H, W, B), float32 at least.

    G kinds of cells, each on its own. A step is a row, or the pixels whose row and column have one sum; a pixel's place is its column in a row, its
    row in a diagonal. It reads the states of the step before, 0 outside the picture, at its place plus each offset (an interval that holds 0).
    """
    with torch.autocast(gates.device.type, enabled=False):
        return _Recurrence.apply(wide(gates), wide(weight), offsets, diagonal)  # type: ignore[return-value]


class _Recurrence(torch.autograd.Function):
    """What a step reads at an offset is a view of the states, as batches lie innermost and margins hold the zeros outside the picture."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, offsets: Sequence[int], diagonal: bool) -> Tensor:  # type: ignore[override]
        opened = swept(gates, diagonal).unflatten(2, (4, -1))  # (T, G, 4, F, P, B)
        c, margins = torch.empty_like(opened[:, :, 0]), max(offsets) - min(offsets)
        padded = c.new_zeros(*c.shape[:3], c.shape[3] + margins, c.shape[4])
        h = padded.narrow(3, -min(offsets), c.shape[3])
        for t, step in enumerate(opened):
            if t:
                for seen, part in _parts(padded[t - 1], weight, offsets):
                    step.view(*weight.shape[:2], -1).baddbmm_(part, seen)
            step[:, :3].sigmoid_()
            step[:, 3].tanh_()
            torch.mul(step[:, 0], step[:, 3], out=c[t])
            if t:
                c[t].addcmul_(step[:, 1], c[t - 1])
            torch.mul(torch.tanh(c[t]), step[:, 2], out=h[t])
        ctx.save_for_backward(opened, weight, padded, c)
        ctx.offsets, ctx.diagonal = offsets, diagonal
        return picture(h, diagonal)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        opened, weight, padded, c = ctx.saved_tensors
        grads, slopes = swept(grad, ctx.diagonal), torch.empty_like(opened)
        dc, margins, dweight = torch.zeros_like(c[0]), torch.zeros_like(padded[0]), torch.zeros_like(weight)
        dh = margins.narrow(2, -min(ctx.offsets), c.shape[3])
        for t in reversed(range(len(opened))):
            dh += grads[t]
            (i, f, o, content), squashed = opened[t].unbind(1), torch.tanh(c[t])
            dc += tanh_backward(dh * o, squashed)
            step = slopes[t]
            torch.stack([dc * content, dc * c[t - 1] if t else torch.zeros_like(dc), dh * squashed, dc * i], dim=1, out=step)
            step[:, :3] = sigmoid_backward(step[:, :3], opened[t, :, :3])
            step[:, 3] = tanh_backward(step[:, 3], content)
            if t:
                dc *= f
                margins.zero_()
                flat = step.view(*weight.shape[:2], -1)
                for (spread, part), (seen, dpart) in zip(
                    _parts(margins, weight, ctx.offsets), _parts(padded[t - 1], dweight, ctx.offsets), strict=True
                ):
                    spread.baddbmm_(part.transpose(1, 2), flat)
                    dpart.baddbmm_(flat, seen.transpose(1, 2))
        return picture(slopes.flatten(2, 3), ctx.diagonal), dweight, None, None


def picture(steps: Tensor, diagonal: bool) -> Tensor:
    """steps (T, G, F, P, B) -> (G, F, H, W, B), a view.

    Where steps are rows, T = H and P = W; where they are diagonals, T = H + W - 1, P = H, and pixel (i, j) is place i of step i + j.
    """
    if not diagonal:
        return steps.permute(1, 2, 0, 3, 4)
    (count, groups, features, height, batch), (t, g, f, p, b) = steps.shape, steps.stride()
    size = groups, features, height, count - height + 1, batch
    return steps.as_strided(size, (g, f, t + p, t, b), steps.storage_offset())


def swept(x: Tensor, diagonal: bool) -> Tensor:
    """x (G, F, H, W, B) -> new steps (T, G, F, P, B) whose `picture` it is. Zeros outside the picture."""
    groups, features, height, width, batch = x.shape
    shape = (height + width - 1, groups, features, height, batch) if diagonal else (height, groups, features, width, batch)
    steps = x.new_zeros(shape) if diagonal else x.new_empty(shape)
    picture(steps, diagonal).copy_(x)
    return steps


def _parts(h: Tensor, weight: Tensor, offsets: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """h (G, F, P and margins, B) -> for each offset the states there (G, F, P B) and their weights (G, 4 F, F), all of them views."""
    _, features, padded, batch = h.shape
    flat, size = h.flatten(2), (padded - max(offsets) + min(offsets)) * batch
    parts = weight.split(features, dim=2)
    return [(flat.narrow(2, (offset - min(offsets)) * batch, size), part) for offset, part in zip(offsets, parts, strict=True)]
