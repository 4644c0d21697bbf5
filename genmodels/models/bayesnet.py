"""A Bayes net whose graph is a tree: of all trees the one with the highest likelihood, found in one pass over the data.

Approximating discrete probability distributions with dependence trees (Chow, Liu, 1968), IEEE Transactions on Information Theory 14(3).

    p(x | y) = prod_d p(x_d | x_parent(d), y),    the tree being the maximum spanning tree of the mutual information of pairs.

Where there are labels all of them share one tree, that of the mutual information given the label, I(x_i; x_j | y), which has the highest p(x | y)
of all shared trees (Friedman, Geiger, Goldszmidt, 1997), and each label has tables of its own. The paper has a tree a label; with a shared one all
labels are drawn in one order. Conditional tables lean on the marginal by a pseudo-count, so that nothing has probability 0; the tree is that of the
bare counts. Any subset of values is completed exactly: messages along the tree give each value's distribution given whatever is known (Pearl, 1988).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from genmodels.core import Autoregressive, Batch, Event, Iterated, Metrics
from genmodels.noise import Noise

LIMIT = 2**28
"""Counts of pairs of levels, over all labels, that are held in memory: 1 GiB of them."""


@dataclass(frozen=True)
class Conditionals:
    """Shared by everyone who draws from them."""

    log: Tensor
    """(labels, D, K, K) float64 nats: of a value's level (last) given its parent's."""


@dataclass
class Partial:
    """An example of which some values are taken."""

    given: Conditionals
    y: Tensor
    """(B,) int64: whose tables."""
    order: Tensor
    """(D,), parents before children; or (B, D), in any order."""
    x: Tensor
    """(B, D) int64 levels, 0 where nothing is taken yet."""
    taken: Tensor
    """(B, D) bool."""
    step: int = 0


class BayesNet(Iterated, Autoregressive):
    modalities = frozenset({"image", "table"})
    # Sounds are left out: a second has thousands of values, and behind a short one's length parents may lie.

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """pseudo_count: how many examples the marginal counts for in each row of a conditional table."""

        pseudo_count: float = 3.0

        def __post_init__(self) -> None:
            if self.pseudo_count <= 0:
                raise ValueError(f"pseudo_count {self.pseudo_count}; wanted more than 0")

    config: Config
    parents: Tensor
    """(D,) int64: each place's parent, -1 of the root."""
    depths: Tensor
    """(D,) int64: how far each place is from the root."""
    counted: Tensor
    """() bool: whether the data was seen."""

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        labels, dims, levels = max(1, event.classes), event.dims, event.levels
        if not levels or event.condition is not None:
            raise ValueError(f"BayesNet models levels without a condition; got {event}")
        if labels * (dims * levels) ** 2 > LIMIT:
            raise ValueError(
                f"{event}: {labels * (dims * levels) ** 2:,} counts of pairs of levels; wanted at most {LIMIT:,}: fewer levels or values"
            )
        parents = [-1, *(int(torch.randint(0, place, ())) for place in range(1, dims))]
        self.register_buffer("parents", torch.tensor(parents))
        self.register_buffer("depths", _depths(self.parents))
        self.register_buffer("counted", torch.tensor(False))
        self.tables = nn.Parameter(torch.randn(labels, dims, levels, levels) / 2, requires_grad=False)
        # (labels, D, K, K) logits of a value's level given its parent's; the root's parent is held to be at level 0.

    @property
    def order(self) -> Tensor:
        return torch.argsort(self.depths, stable=True)

    @property
    def converged(self) -> bool:
        return bool(self.counted)

    @torch.no_grad()
    def iterate(self, data_pass: Iterable[Batch], noise: Noise) -> Metrics:
        """One pass counts, and then knows the tree and its tables. Examples without a label are left out where there are labels.

        loss: nats a value of the examples counted; information: nats that the tree's edges hold together.
        """
        counts = self._counts(data_pass)
        information = mutual_information(counts)
        parents = torch.from_numpy(spanning_tree(information.numpy()))
        self.parents.copy_(parents)
        self.depths.copy_(_depths(parents))
        edges = torch.where(parents < 0, torch.arange(len(parents)), parents)
        # (labels, D, K, K) how often each level of a place was seen with each of its parent's; of the root with itself.
        pairs = counts[:, edges, :, torch.arange(len(parents))].movedim(0, 1).to(self.device, torch.float64)
        self.tables.copy_(self._smoothed(pairs))
        self.counted.fill_(True)
        seen = torch.where((self.parents < 0)[:, None, None], _at_level_0(pairs), pairs)
        nats = (seen * self.tables.double().log_softmax(-1)).sum()
        return {"loss": -nats / pairs.sum(), "information": information[parents >= 0, parents[parents >= 0]].sum()}

    def _counts(self, data_pass: Iterable[Batch]) -> Tensor:
        """(labels, D, K, D, K) int32: how many examples have a level at one place and a level at another."""
        labels, dims, levels, _ = self.tables.shape
        counts = torch.zeros(labels, dims * levels, dims * levels, dtype=torch.int32)
        for batch in data_pass:
            flat = batch.x.flatten(1).long()
            y = torch.zeros(len(flat), dtype=torch.int64, device=flat.device) if batch.y is None else batch.y
            for label in y[y >= 0].unique().tolist():
                hot = F.one_hot(flat[y == label], levels).flatten(1).float()
                counts[label] += (hot.T @ hot).to(counts)  # exact: no product of ones counts as far as 2^24
        return counts.reshape(labels, dims, levels, dims, levels)

    def _smoothed(self, pairs: Tensor) -> Tensor:
        """pairs (labels, D, K, K) counts -> the logs of their conditional tables, which lean on the marginal, and that on a uniform one."""
        pseudo, levels = self.config.pseudo_count, pairs.shape[-1]
        marginal = pairs.sum(2, keepdim=True) + pseudo / levels
        marginal = marginal / marginal.sum(-1, keepdim=True)
        tables = pairs + pseudo * marginal
        root = (self.parents < 0)[:, None, None]
        return torch.where(root, marginal, tables / tables.sum(-1, keepdim=True)).log()

    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        flat = x.flatten(1).long()
        label = self._labels(y, len(x))[:, None]
        above = torch.where(self.parents < 0, 0, flat[:, self.parents.clamp(min=0)])
        return self.tables.log_softmax(-1)[label, torch.arange(flat.shape[1], device=x.device), above, flat].reshape(x.shape)

    def arranged(self, noise: Noise, known: Tensor | None) -> Tensor:
        order = self.order
        return order if known is None else order[torch.argsort(~known[:, order], dim=1, stable=True)]

    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Partial:
        given = Conditionals(self.tables.double().log_softmax(-1))
        x = torch.zeros(n, self.event.dims, dtype=torch.int64, device=self.device)
        return Partial(given, self._labels(y, n), order, x, torch.zeros_like(x, dtype=torch.bool))

    def predict(self, memory: Partial) -> Tensor:
        if memory.order.ndim == 2:
            place = memory.order[:, memory.step]
            return self._beliefs(memory)[torch.arange(len(place), device=place.device), place].to(self.tables.dtype)
        place = memory.order[memory.step, None]  # (1,), since by a tensor () torch would index only once it has read it from its device
        parent = self.parents[place]
        above = torch.where(parent < 0, 0, memory.x[:, parent.clamp(min=0)][:, 0])
        return memory.given.log[memory.y, place, above].to(self.tables.dtype)

    def take(self, memory: Partial, level: Tensor) -> None:
        place = memory.order[..., memory.step].expand(len(level))[:, None]
        memory.x.scatter_(1, place, level[:, None])
        memory.taken.scatter_(1, place, True)
        memory.step += 1

    def _beliefs(self, memory: Partial) -> Tensor:
        """(B, D, K) float64: log p(x_d, what is taken), whichever values that are: messages from the leaves to the root, and back."""
        levels = self.event.levels
        other = torch.arange(levels, device=self.device) != memory.x[..., None]
        below = torch.zeros(other.shape, dtype=torch.float64, device=self.device).masked_fill_(memory.taken[..., None] & other, -torch.inf)
        above, risen = torch.zeros_like(below), torch.zeros_like(below)
        generations = [(self.depths == depth).nonzero()[:, 0] for depth in range(int(self.depths.max()) + 1)]
        tables = [memory.given.log[memory.y[:, None], places] for places in generations]  # (B, n, K, K)
        for places, table in zip(generations[:0:-1], tables[:0:-1], strict=True):
            risen[:, places] = torch.logsumexp(table + below[:, places, None], dim=-1)
            below.index_add_(1, self.parents[places], risen[:, places])
        above[:, generations[0]] = tables[0][:, :, 0]
        for places, table in zip(generations[1:], tables[1:], strict=True):
            parents = self.parents[places]
            others = above[:, parents] + below[:, parents] - risen[:, places]  # what the parent knows, but from this child
            above[:, places] = torch.logsumexp(table + others[..., None], dim=-2)
        return above + below

    def _labels(self, y: Tensor | None, n: int) -> Tensor:
        return torch.zeros(n, dtype=torch.int64, device=self.device) if y is None else y


def mutual_information(counts: Tensor) -> Tensor:
    """counts (labels, D, K, D, K) of pairs of levels -> (D, D) float64 nats: I(x_i; x_j | y), exact for the empirical distribution."""
    dims = counts.shape[1]
    joint = torch.zeros(dims, dims, dtype=torch.float64)
    for place in range(dims):
        each = counts[:, place].double()  # (labels, K, D, K)
        joint[place] = torch.xlogy(each, each).sum((0, 1, 3))
    rows = counts[:, 0, :, 0].double().sum((1, 2))
    alone = joint.diagonal()  # a place's pairs with itself are its own counts
    total = (joint - alone[:, None] - alone[None] + torch.xlogy(rows, rows).sum()) / rows.sum().clamp(min=1)
    return total.clamp(min=0)


def spanning_tree(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """weights (D, D) symmetric -> (D,) parents of the maximum spanning tree from place 0, -1 its own (Prim, 1957). Ties: the lowest place."""
    parents = np.full(len(weights), -1)
    best, outside = weights[0].copy(), np.ones(len(weights), dtype=bool)
    nearest = np.zeros(len(weights), dtype=np.int64)
    outside[0] = False
    while outside.any():
        place = int(np.argmax(np.where(outside, best, -np.inf)))
        parents[place], outside[place] = nearest[place], False
        closer = outside & (weights[place] > best)
        best[closer], nearest[closer] = weights[place][closer], place
    return parents


def _depths(parents: Tensor) -> Tensor:
    """parents (D,) -> (D,) int64: steps to the root."""
    depths, at = torch.zeros_like(parents), parents
    while bool((at >= 0).any()):
        depths += at >= 0
        at = torch.where(at >= 0, parents[at.clamp(min=0)], -1)
    return depths


def _at_level_0(pairs: Tensor) -> Tensor:
    """A root's counts (..., K, K) of each level with itself -> those of each level where the parent is held to be at level 0."""
    out = torch.zeros_like(pairs)
    out[..., 0, :] = pairs.sum(-2)
    return out
