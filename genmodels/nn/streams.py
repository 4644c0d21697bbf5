"""Causal residual streams that halve a picture and double it again, and that can be walked one slice at a time.

PixelCNN++ (Salimans, Karpathy, Chen, Kingma, 2017), arXiv:1701.05517, sections 2.3 and 2.4.

A stream goes along one axis: a vertical one takes whole rows, a horizontal one the pixels of a row. What it says of slice t knows of its input's
slices <= t. At half the resolution slice t' knows what slice 2 t' knew, and slices 2 t' and 2 t' + 1 read it: so nothing later is ever heard of, and
in walking a coarse slice is computed once, at every second step, and held for the step after.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.conditioning import ClassBias
from genmodels.nn.gates import drop
from genmodels.noise import Noise

ROWS, COLUMNS = 2, 3
"""The axis that a vertical stream goes along, and a horizontal one."""


@dataclass
class Trail:
    """What later slices will need of a stream walked half way."""

    kept: list[Tensor]
    """A convolution's last inputs, (B, hidden, 1, W') of a row or (B, hidden, 1, 2) of two pixels; zeros before the first."""
    coarse: list[Tensor]
    """By level, (B, hidden, 1, W''): the row of twice coarser features that is read at present."""

    def seen(self, conv: "CausalConv", x: Tensor) -> Tensor:
        """The present slice behind those that are kept; it is kept from now on."""
        seen = torch.cat([self.kept[conv.slot], x], dim=conv.axis)
        self.kept[conv.slot] = seen.narrow(conv.axis, 1, conv.past)
        return seen

    def step(self, conv: "CausalConv", x: Tensor) -> Tensor:
        return conv.present(self.seen(conv, x))

    def forget(self) -> None:
        """A new row begins: nothing is left of its first pixel. The coarse rows stay, two fine ones read them."""
        self.kept = [torch.zeros_like(each) for each in self.kept]


class CausalConv(nn.Module):
    """x (B, F, H, W) -> (B, F', H, W), or half of both. Along the axis its last tap is the present slice; across rows it is centred."""

    def __init__(self, axis: int, inputs: int, outputs: int, *, level: int, stride: int = 1) -> None:
        super().__init__()
        self.axis, self.level, self.past, self.slot = axis, level, 1 if axis == ROWS else 2, 0
        self.conv = nn.Conv2d(inputs, outputs, (2, 3) if axis == ROWS else (1, 3), stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 1, 1, 0) if self.axis == ROWS else (2, 0, 0, 0)))

    def present(self, seen: Tensor) -> Tensor:
        """The slices under the kernel -> the slice that comes of them."""
        return self.conv(F.pad(seen, (1, 1)) if self.axis == ROWS else seen)


class Block(nn.Module):
    """x (B, hidden, ...) -> the same: two convolutions and a gate beside a residual connection; shortcut, hint and class join in."""

    def __init__(
        self, axis: int, hidden: int, classes: int, *, level: int, mirror: int | None, hinted: bool, drop: tuple[float, str]
    ) -> None:
        super().__init__()
        self.level, self.mirror, self.drop = level, mirror, drop
        self.first = CausalConv(axis, hidden, hidden, level=level)
        self.second = CausalConv(axis, hidden, 2 * hidden, level=level)
        with torch.no_grad():
            self.second.conv.weight.mul_(0.1)  # as in the paper's code: a deep stream starts out near the identity
        self.shortcut = None if mirror is None else nn.Conv2d(hidden, hidden, 1)
        self.hint = nn.Conv2d(hidden, hidden, 1) if hinted else None
        self.label = ClassBias(classes, 2 * hidden)

    def forward(self, x: Tensor, aside: Tensor | None, hint: Tensor | None, y: Tensor | None, noise: Noise | None) -> Tensor:
        """aside: the output of its mirror image on the way down; hint: what the other stream tells, as Stream.told gives it."""
        inside = self._inside(self.first(F.elu(x)), aside, hint)
        return self._out(x, self.second(drop(inside, self.drop[0], noise, self.drop[1])), y)

    def step(self, trail: Trail, x: Tensor, aside: Tensor | None, hint: Tensor | None, y: Tensor | None) -> Tensor:
        inside = self._inside(trail.step(self.first, F.elu(x)), aside, hint)
        return self._out(x, trail.step(self.second, inside), y)

    def _inside(self, x: Tensor, aside: Tensor | None, hint: Tensor | None) -> Tensor:
        x = x if self.shortcut is None or aside is None else x + self.shortcut(F.elu(aside))
        return F.elu(x if hint is None else x + hint)

    def _out(self, x: Tensor, inside: Tensor, y: Tensor | None) -> Tensor:
        return x + F.glu(self.label(inside, y), dim=1)


class Halve(nn.Module):
    """(B, hidden, H, W) -> (B, hidden, ceil(H / 2), ceil(W / 2)): the kernel's present is row 2 r', column 2 c'."""

    def __init__(self, axis: int, hidden: int, *, level: int) -> None:
        super().__init__()
        self.level = level
        self.conv = CausalConv(axis, hidden, hidden, level=level - 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Double(nn.Module):
    """Back to `size` (H, W): every pixel four times, then a causal convolution."""

    def __init__(self, axis: int, hidden: int, *, level: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.level, self.size = level, size
        self.conv = CausalConv(axis, hidden, hidden, level=level)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, : self.size[0], : self.size[1]])

    def step(self, trail: Trail, x: Tensor | None, column: int | None) -> Tensor:
        """x: the coarse slice where this step has a new one."""
        row, here = trail.coarse[self.level], at(column, self.level + 1)
        if x is not None:
            row[..., here] = x
        fine = row.repeat_interleave(2, dim=3)[..., : self.size[1]] if column is None else row[..., here]
        return trail.step(self.conv, fine)


class Stream(nn.Module):
    """Nodes walked in order, down through `sizes` (the finest first) and up again; a block on the way up hears its mirror image on the way down."""

    def __init__(
        self, axis: int, hidden: int, sizes: list[tuple[int, int]], *, blocks: int, classes: int, dropout: float, hinted: bool = False
    ) -> None:
        super().__init__()
        self.hidden, self.sizes = hidden, sizes
        nodes: list[nn.Module] = []

        def block(level: int, mirror: int | None) -> Block:
            tag = f"dropout.{'rows' if axis == ROWS else 'columns'}.{len(nodes)}"
            return Block(axis, hidden, classes, level=level, mirror=mirror, hinted=hinted, drop=(dropout, tag))

        down: list[int] = []
        for level in range(len(sizes)):
            if level:
                nodes.append(Halve(axis, hidden, level=level))
            for _ in range(blocks):
                down.append(len(nodes))
                nodes.append(block(level, None))
        for level in reversed(range(len(sizes))):
            if level < len(sizes) - 1:
                nodes.append(Double(axis, hidden, level=level, size=sizes[level]))
            for _ in range(blocks):
                nodes.append(block(level, down.pop()))
        self.nodes = nn.ModuleList(nodes)
        for slot, conv in enumerate(self._convolutions()):
            conv.slot = slot

    def forward(self, x: Tensor, y: Tensor | None, *, hints: list[Tensor | None] | None = None, noise: Noise | None = None) -> list[Tensor]:
        """x (B, hidden, H, W) -> every node's output. hints as `told` gives them; noise: of dropout."""
        outs: list[Tensor] = []
        for i, node in enumerate(self._nodes()):
            aside = outs[node.mirror] if isinstance(node, Block) and node.mirror is not None else None
            x = node(x, aside, hints and hints[i], y, noise) if isinstance(node, Block) else node(x)
            outs.append(x)
        return outs

    def told(self, others: list[Tensor] | list[Tensor | None]) -> list[Tensor | None]:
        """What the other stream's nodes tell this stream's blocks."""
        pairs = zip(self._nodes(), others, strict=True)
        return [node.hint(F.elu(x)) if isinstance(node, Block) and node.hint and x is not None else None for node, x in pairs]

    def start(self, n: int) -> Trail:
        """Before the first slice of n pictures."""
        zeros = next(self.parameters()).new_zeros
        width = [width for _, width in self.sizes]
        kept = [zeros(n, conv.conv.in_channels, 1, width[conv.level] if conv.axis == ROWS else conv.past) for conv in self._convolutions()]
        return Trail(kept=kept, coarse=[zeros(n, self.hidden, 1, coarser) for coarser in width[1:]])

    def step(
        self,
        trail: Trail,
        x: Tensor,
        y: Tensor | None,
        *,
        time: int,
        column: int | None = None,
        hints: list[Tensor | None] | None = None,
    ) -> list[Tensor | None]:
        """One slice: x (B, hidden, 1, W), or (B, hidden, 1, 1) at a column -> its outputs of the nodes that are due, None for the others.

        A level is due where 2^level divides `time`: the row, or row | column, since a coarse pixel is due in every 2^level-th of both.
        """
        depth = next(level for level in reversed(range(len(self.sizes))) if time % (1 << level) == 0)
        outs: list[Tensor | None] = [None] * len(self.nodes)
        for i, node in enumerate(self._nodes()):
            if isinstance(node, Halve) and node.level <= depth + 1:
                seen = trail.seen(node.conv, x)  # the kernel covers slices between the coarse ones, so these are kept too
                x = node.conv.present(seen) if node.level <= depth else x
            elif node.level > depth:
                continue
            elif isinstance(node, Double):
                x = node.step(trail, x if node.level < depth else None, column)
            elif isinstance(node, Block):
                hint = hints[i] if hints else None
                aside = None if node.mirror is None else outs[node.mirror]
                x = node.step(trail, x, aside, None if hint is None else hint[..., at(column, node.level)], y)
            outs[i] = x
        return outs

    def _nodes(self) -> list[Block | Halve | Double]:
        return list(self.nodes)  # type: ignore[arg-type]

    def _convolutions(self) -> list[CausalConv]:
        return [each for each in self.modules() if isinstance(each, CausalConv)]


def at(column: int | None, level: int) -> slice:
    """Where a column of the picture lies in a row of features halved `level` times; all of it for whole rows."""
    return slice(None) if column is None else slice(column >> level, (column >> level) + 1)


def halved(size: tuple[int, int], times: int) -> list[tuple[int, int]]:
    """(H, W) and its halves, rounded up, at most `times` of them, none of a picture that is smaller than 4 x 4 both ways."""
    sizes = [size]
    while len(sizes) <= times and max(sizes[-1]) >= 4:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes
