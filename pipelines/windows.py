"""The order of training, window by window: which rows come when, and the few windows that are in memory.

Epoch e takes the row groups through a keyed permutation, G of them at a time make a window, and the rows inside a window are permuted again. While
one window is used a thread reads the one that comes after it, so no step waits at a window's edge, and two windows are all that is held.
"""

import os
import sys
from bisect import bisect_right
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmodels.noise import derive, permuted
from pipelines.stored import Rows, Stored

CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
"""Threads that read while somebody waits; beside a training it is one."""


@dataclass(frozen=True)
class Window:
    """rows: what was read; order (n,) int64: which of them come, in their order; first: the position in the epoch of the first of them."""

    rows: Rows
    order: NDArray[np.int64]
    first: int


class Epoch:
    """One epoch's permutation of the row groups, cut into windows."""

    def __init__(self, sizes: NDArray[np.int64], window: int, seed: int, epoch: int) -> None:
        self._order = permuted(len(sizes), seed=derive(seed, "groups", epoch)).numpy()
        self._window = window
        ends = np.cumsum(sizes[self._order])[np.minimum(np.arange(window, len(sizes) + window, window), len(sizes)) - 1]
        self.starts = [0, *ends.tolist()]
        """Of each window, and at last the epoch's end."""

    def at(self, offset: int) -> int:
        """The window that holds an offset into the epoch."""
        return bisect_right(self.starts, offset) - 1

    def groups(self, window: int) -> NDArray[np.int64]:
        return self._order[window * self._window : (window + 1) * self._window]


class Windows:
    """The windows of every epoch. Holds the one last asked for and the one after it; all rows, once, where a window is everything."""

    def __init__(self, stored: Stored, window: int, seed: int) -> None:
        self._stored, self._window, self._seed = stored, window, seed
        self._epochs: dict[int, Epoch] = {}
        self._held: dict[tuple[int, int], Future[Window]] = {}
        self._thread = ThreadPoolExecutor(1, "window")
        self._everything: Rows | None = None

    def holding(self, epoch: int, offset: int) -> Window:
        """The window that holds an offset into an epoch."""
        window = self._epoch(epoch).at(offset)
        if (epoch, window) not in self._held:
            self._keep({})
            self._held[epoch, window] = self._begin(epoch, window, threads=CORES)
        found = self._held[epoch, window].result()
        after = (epoch, window + 1) if window + 2 < len(self._epoch(epoch).starts) else (epoch + 1, 0)
        if after not in self._held:
            self._keep({(epoch, window): self._held[epoch, window]})
            self._held[after] = self._begin(*after, threads=1)
        return found

    def _keep(self, held: dict[tuple[int, int], Future[Window]]) -> None:
        for name in self._held.keys() - held.keys():
            self._held[name].cancel()
        self._held = held

    def _epoch(self, epoch: int) -> Epoch:
        if epoch not in self._epochs:
            near = {other: self._epochs[other] for other in self._epochs if abs(other - epoch) == 1}
            self._epochs = {**near, epoch: Epoch(self._stored.sizes, self._window, self._seed, epoch)}
        return self._epochs[epoch]

    def _begin(self, epoch: int, window: int, *, threads: int) -> Future[Window]:
        plan, seed = self._epoch(epoch), derive(self._seed, "rows", epoch, window)
        return self._thread.submit(self._load, plan.groups(window), seed, plan.starts[window], threads)

    def _load(self, groups: NDArray[np.int64], seed: int, first: int, threads: int) -> Window:
        order = permuted(int(self._stored.sizes[groups].sum()), seed=seed).numpy()
        if self._window < len(self._stored.groups):
            return Window(self._stored.read(groups.tolist(), threads=threads), order, first)
        if self._everything is None:
            self._everything = self._stored.read(range(len(self._stored.groups)), threads=threads)
        return Window(self._everything, self._on_disk(groups)[order], first)

    def _on_disk(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) int64: the rows of some row groups, numbered as they lie on disk."""
        starts = np.concatenate([[0], np.cumsum(self._stored.sizes)[:-1]])
        return np.concatenate([starts[group] + np.arange(int(self._stored.sizes[group])) for group in groups.tolist()])
