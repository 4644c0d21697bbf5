"""Drawings of several owners that go on in one call of a compiled sampler: to each it is as if it were alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from genmodels.core import Drawing
from genmodels.sampling.native import Asked, NativeMemory, NotFinite


def advance_together(states: Sequence[Drawing], k: int) -> None:
    """k more steps of drawings of one plan, wherever each stands, in one call: to each the same as if it were advanced alone.

    Those that are done are left alone. Raises NotFinite, which names the drawing; the others have then lost their place and must begin again.
    """
    states = [state for state in states if state.step < state.x.shape[1]]
    if not states:
        return
    fixed = states[0].memory.fixed
    if any(state.memory.fixed.plan is not fixed.plan for state in states):
        raise ValueError("drawings of several plans; wanted those of one model with the same weights and precision")
    table = np.concatenate([state.memory.found(state).table for state in states])
    table["logits"] = 0
    try:
        Asked(fixed, table).run(k)
    except NotFinite as error:
        ends = np.cumsum([len(state.x) for state in states])
        error.state = states[int(np.searchsorted(ends, error.row, side="right"))]
        raise
    for state in states:
        state.step = min(state.step + k, state.x.shape[1])


def parted(state: Drawing, sizes: Sequence[int]) -> list[Drawing]:
    """A drawing of a compiled sampler as several, of so many rows each, that go their own ways from here on. They lie where it lay, so it is theirs
    now: beginning many rows at once costs little more than beginning one."""
    memory, n, ends = state.memory, len(state.x), np.cumsum(sizes).tolist()
    parts = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        rows, told = slice(start, end), memory.fixed.told
        parts.append(
            replace(
                state,
                memory=NativeMemory(
                    fixed=replace(memory.fixed, told=told if len(told) < n else told[rows]),
                    kept=memory.kept[rows],
                ),
                order=state.order if state.order.ndim == 1 else state.order[rows],
                uniforms=state.uniforms[rows],
                temperature=state.temperature[rows],
                x=state.x[rows],
                log_weight=state.log_weight[rows],
                given=None if state.given is None else state.given[rows],
                known=None if state.known is None else state.known[rows],
            )
        )
    return parts
