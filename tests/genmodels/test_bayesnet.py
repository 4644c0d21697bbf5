"""The tree: the one that brute force finds, exact counts, tables that are frequencies, messages that agree with enumeration."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from genmodels import noise
from genmodels.core import Batch, Event
from genmodels.models.bayesnet import BayesNet, mutual_information, spanning_tree
from genmodels.noise import Noise
from tests.genmodels.conftest import EVENTS, FULL, shaken, states

TABLE = Event(modality="table", shape=(5,), levels=3)
NOBODY = Noise(0, position=[])


def net(event: Event, **config: float) -> BayesNet:
    with noise.initialising(2):
        return BayesNet(event, BayesNet.Config(**config))


def counted(event: Event, x: Tensor, y: Tensor | None = None, *, size: int = 1000, **config: float) -> BayesNet:
    model = net(event, **config)
    batch = Batch(x=x, y=y, position=torch.arange(len(x)))
    model.iterate([batch.rows(start, min(start + size, len(x))) for start in range(0, len(x), size)], NOBODY)
    return model


def branching(n: int) -> Tensor:
    """(n, 5) of 3 levels from the tree 3 - 0, 0 - 2, 0 - 4, 2 - 1: a child is its parent three times of four, else anything."""
    noise = Noise(8, position=range(n))
    x = (noise.uniform("any", (5,)) * 3).long()
    stay = noise.uniform("stay", (5,)) < 0.75
    for child, parent in ((0, 3), (2, 0), (4, 0), (1, 2)):
        x[:, child] = torch.where(stay[:, child], x[:, parent], x[:, child])
    return x.to(torch.uint8)


def edges(parents: Tensor | np.ndarray) -> set[frozenset[int]]:
    return {frozenset((child, int(parent))) for child, parent in enumerate(parents) if parent >= 0}


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_the_tree_is_the_maximum_spanning_tree_of_brute_force(dims: int) -> None:
    for seed in range(6):
        weights = Noise(seed, position=range(dims)).uniform("w", (dims,)).double()
        weights = (weights + weights.T).numpy()
        pairs = list(itertools.combinations(range(dims), 2))
        totals = {
            frozenset(map(frozenset, tree)): sum(weights[a, b] for a, b in tree)
            for tree in itertools.combinations(pairs, dims - 1)
            if connected(tree, dims)
        }
        found = spanning_tree(weights)
        assert found[0] == -1
        assert frozenset(edges(found)) == max(totals, key=lambda tree: totals[tree])


def connected(tree: tuple[tuple[int, int], ...], dims: int) -> bool:
    reached = {0}
    while grown := {place for edge in tree if set(edge) & reached for place in edge} - reached:
        reached |= grown
    return len(reached) == dims


def test_a_known_tree_is_found_again() -> None:
    model = counted(TABLE, branching(3000))
    assert model.converged
    assert edges(model.parents) == {frozenset(edge) for edge in ((3, 0), (0, 2), (0, 4), (2, 1))}
    stay = model.tables[0, 2].exp().diagonal()
    torch.testing.assert_close(stay, torch.full((3,), 0.75 + 0.25 / 3), atol=0.03, rtol=0)


def test_mutual_information_is_that_of_the_counts() -> None:
    x = branching(200).long()
    y = torch.arange(200) % 3 % 2
    model = net(replace(TABLE, classes=2))
    counts = model._counts([Batch(x=x.to(torch.uint8), y=y, position=torch.arange(200))])
    found = mutual_information(counts)
    for i, j in itertools.product(range(5), repeat=2):
        total = 0.0
        for label in range(2):
            own = x[y == label]
            for a, b in itertools.product(range(3), repeat=2):
                both = ((own[:, i] == a) & (own[:, j] == b)).double().mean()
                if both > 0:
                    total += len(own) / 200 * both * math.log(both / ((own[:, i] == a).double().mean() * (own[:, j] == b).double().mean()))
        assert float(found[i, j]) == pytest.approx(float(total), abs=1e-12)


def test_tables_lean_on_the_marginal_by_the_pseudo_count() -> None:
    """Every entry by counting: a root's share of n examples and so many uniform ones, a child's given its parent and so many of its marginal."""
    x, pseudo = branching(30).long(), 2.5
    model = counted(TABLE, x.to(torch.uint8), pseudo_count=pseudo)
    for place, parent in enumerate(model.parents.tolist()):
        marginal = (torch.bincount(x[:, place], minlength=3) + pseudo / 3) / (30 + pseudo)
        for above in range(3):
            own = x[x[:, parent] == above, place]
            wanted = marginal if parent < 0 else (torch.bincount(own, minlength=3) + pseudo * marginal) / (len(own) + pseudo)
            torch.testing.assert_close(model.tables[0, place, above].softmax(0), wanted)


def test_no_other_tree_has_a_higher_likelihood() -> None:
    """Of all 125 trees of five places, with next to no pseudo-count, on the data it was counted from."""
    x = branching(60)
    model = counted(TABLE, x, pseudo_count=1e-9)
    best = float(model.log_prob(x).double().sum())
    pairs = list(itertools.combinations(range(5), 2))
    flat = x.long()
    entropy = [float(stats.entropy(np.unique(flat[:, i].numpy(), return_counts=True)[1])) for i in range(5)]
    joint = {
        pair: float(stats.entropy(np.unique((flat[:, pair[0]] * 3 + flat[:, pair[1]]).numpy(), return_counts=True)[1])) for pair in pairs
    }
    trees = [tree for tree in itertools.combinations(pairs, 4) if connected(tree, 5)]
    assert len(trees) == 125
    highest = max(60 * (sum(entropy[a] + entropy[b] - joint[a, b] for a, b in tree) - sum(entropy)) for tree in trees)
    assert best == pytest.approx(highest, abs=1e-3)


def test_batches_and_their_order_change_no_bit() -> None:
    x, y = branching(300), torch.arange(300) % 2
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    event = replace(TABLE, classes=2)
    one, other = counted(event, x, y), counted(event, x[shuffled], y[shuffled], size=37)
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_the_loss_told_is_the_density_s() -> None:
    x, y = branching(300), torch.arange(300) % 2
    model = net(replace(TABLE, classes=2))
    told = model.iterate([Batch(x=x, y=y, position=torch.arange(300))], NOBODY)
    assert float(told["loss"]) == pytest.approx(-float(model.log_prob(x, y).double().mean()) / 5, abs=1e-6)


def test_examples_without_a_label_are_left_out_and_empty_labels_are_uniform() -> None:
    x, y = branching(100), torch.arange(100) % 2
    event = replace(TABLE, classes=3)
    missing = torch.cat([y, torch.full((40,), -1)])
    one, other = counted(event, x, y), counted(event, torch.cat([x, branching(140)[100:]]), missing)
    assert torch.equal(one.tables, other.tables) and torch.equal(one.parents, other.parents)
    torch.testing.assert_close(one.tables[2].exp(), torch.full((5, 3, 3), 1 / 3))


def test_any_subset_is_completed_by_its_exact_conditional() -> None:
    """The label summed over."""
    event = replace(TABLE, classes=2)
    model = shaken("bayesnet", event).double()
    assert isinstance(model, BayesNet)
    every = states(event)
    for known in (torch.tensor(mask).bool() for mask in ([0, 1, 0, 0, 1], [0, 0, 1, 0, 1])):
        x = torch.tensor([[2, 1, 0, 2, 1]], dtype=torch.uint8)
        p = model.log_prob(every[(every[:, known] == x[0, known]).all(1)]).exp()
        done = model.complete(x.expand(1500, -1), known, seed=3)
        assert done.exact and bool((done.x[:, known] == x[:, known]).all())
        weight = 3 ** torch.arange(int((~known).sum()) - 1, -1, -1)
        seen = torch.bincount((done.x[:, ~known].long() * weight).sum(1), minlength=len(p))
        assert stats.chisquare(seen.numpy(), (p / p.sum()).numpy() * 1500).pvalue > 1e-4


def test_beliefs_are_the_conditionals_in_any_order() -> None:
    model = shaken("bayesnet", TABLE).double()
    assert isinstance(model, BayesNet)
    every = states(TABLE)
    p = model.log_prob(every).exp()
    order = torch.tensor([[4, 1, 0, 3, 2], [2, 3, 1, 4, 0]])
    x = torch.tensor([[2, 1, 0, 2, 1], [0, 1, 2, 2, 0]])
    memory = model.start(order, 2, y=None, c=None)
    past = torch.ones(2, len(every), dtype=torch.bool)
    for step in range(5):
        logits = model.predict(memory)
        for row in range(2):
            place = int(order[row, step])
            wanted = torch.stack([p[past[row] & (every[:, place] == level)].sum() for level in range(3)])
            torch.testing.assert_close(logits[row].softmax(0), wanted / wanted.sum())
            past[row] &= every[:, place] == x[row, place]
        model.take(memory, x.gather(1, order[:, step, None])[:, 0])


def test_what_it_cannot_hold_is_refused_before_training() -> None:
    for event in (FULL["image"], EVENTS["deep colour"]):
        with pytest.raises(ValueError, match=r"counts of pairs of levels; wanted at most 268,435,456: fewer levels or values$"):
            net(event)
    with pytest.raises(ValueError, match=r"^BayesNet models levels without a condition; got table 5, real values$"):
        net(replace(TABLE, levels=0))
    with pytest.raises(ValueError, match=r"^pseudo_count 0; wanted more than 0$"):
        BayesNet.Config(pseudo_count=0)
