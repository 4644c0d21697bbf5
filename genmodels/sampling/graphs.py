"""Cached sampling as CUDA graphs, for every autoregressive family: the eager sampler's operators without Python or a launch for each of them.

A family's predict and take are Python: they count steps, and choose by them slots of rings, rows, columns and scales. A graph freezes all that. So a
graph is one step, recorded where the step first comes up, and step t has a graph of its own: a picture of 784 values has 784. Where a family says
after how many steps Python does the same again (`Periodic`: a WaveNet's rings all come round after 2^(layers - 1) steps), steps that far apart share
a graph. One graph of many steps would save nothing, since launching a graph costs less than running it, and would have to be drawn to its end.

A graph's tensors stay where they are. The family's memory is copied in before the first of k steps and out after the last: it may belong to any
number of drawings, which are copied, gone on with and dropped as they like. What step t left at one place in a new tensor is copied to the tensor
that graph t + 1 reads. Place, randomness and temperature are read through a step counter on the device.

Eager is fallen back to where a step waits for its own results, and by drawings of more than LONGEST different steps.
"""

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genmodels.core import Autoregressive, Drawing, Fused, Sampler
from genmodels.core.drawing import along
from genmodels.noise import categorical
from genmodels.sampling.capture import Calls, Capture, Waits, Work, capture_for
from genmodels.sampling.kept import leaves, place_for, rebuilt, settle

LONGEST = 4096
"""Different steps that a drawing may have graphs for: each costs some memory, and once an eager step's time, twice."""

PROGRAMS = 4
"""Batch sizes and the like that a model keeps graphs for at a time."""


class Periodic(ABC):
    """A family whose steps repeat."""

    @property
    @abstractmethod
    def period(self) -> int:
        """Steps t and t + period of predict and take are the same operators on the same parts of the memory, for every t."""


class Graphs(Sampler):
    """Replays recorded steps. capture: how to record them; None: as the model's device can."""

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture = capture

    def begin(self, model: Autoregressive, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> "Captured | None":
        if not self._can(model):
            return None
        programs = programs_of(model)
        return Captured(model, programs, self.capture, model.start(order, n, y=y, c=c))

    def padded(self, model: Autoregressive) -> bool:
        return True

    def backend(self, model: Autoregressive) -> str:
        return "graphs" if self._can(model) else "eager"

    def _can(self, model: Autoregressive) -> bool:
        return period(model) <= LONGEST and (self.capture is not None or model.device.type == "cuda")


def period(model: Autoregressive) -> int:
    """How many different steps a drawing has."""
    return min(model.steps, model.period) if isinstance(model, Periodic) else model.steps


@dataclass
class Captured(Fused):
    model: Autoregressive
    programs: "Programs"
    capture: Capture | None
    kept: Any
    """The family's own memory. A number in it may be behind by whole periods."""

    def advance(self, state: Drawing, k: int, logits: Tensor | None = None) -> None:
        k = min(k, self.model.steps - state.step)
        if k > 0:
            program = self.programs.of(self.model, state, self.capture)
            self.kept = program.run(self.kept, state, k, logits)


class Programs:
    """A model's programs, the latest ones used. A copy of the model has none yet."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], Program] = {}

    def __deepcopy__(self, memo: Any) -> "Programs":
        return Programs()

    def __reduce__(self) -> tuple[type["Programs"], tuple[()]]:
        return Programs, ()

    def of(self, model: Autoregressive, state: Drawing, capture: Capture | None) -> "Program":
        # Graphs read weights where they lie: a model that was moved, or given new ones, is recorded anew.
        key = len(state.x), state.known is None, capture, *(each.data_ptr() for each in model.parameters())
        program = self.known.pop(key, None) or Program(model, state, capture)
        self.known[key] = program
        while len(self.known) > PROGRAMS:
            del self.known[next(iter(self.known))]
        return program


def programs_of(model: Autoregressive) -> Programs:
    known = vars(model)
    if "_programs" not in known:
        known["_programs"] = Programs()
    return known["_programs"]


@dataclass(frozen=True, eq=False)
class Stage:
    """What lies between two steps."""

    number: int
    """Stages of one number have their memory in the same tensors."""
    memory: Any
    """The family's, on those tensors."""


@dataclass(frozen=True)
class Recorded:
    """One step."""

    replay: Work
    after: Stage
    rewrites: tuple[str, ...]
    """Parts of the memory that no step should write to, and that this one replaced by others."""


class Program:
    """The recorded steps of drawings of one size."""

    def __init__(self, model: Autoregressive, state: Drawing, capture: Capture | None) -> None:
        self.model, self.capture = model, capture or capture_for(model.device) or Calls()
        self.period, self.lock = period(model), threading.Lock()
        self.steps: dict[tuple[int, int], Recorded] = {}
        self.homes: dict[tuple[Any, ...], Tensor] = {}
        self.stages: dict[tuple[Any, ...], int] = {}
        self.held: dict[str, Tensor] = {}
        """By path: the tensor, itself never written to, that was last copied to where a graph reads it."""
        new = state.x.new_zeros
        self.step = new(1, dtype=torch.int64)
        self.uniforms, self.temperature = torch.empty_like(state.uniforms), torch.empty_like(state.temperature)
        self.x, self.log_weight = new(state.x.shape), torch.zeros_like(state.log_weight)
        self.known = self.given = None
        if state.known is not None and state.given is not None:
            self.known, self.given = new(state.x.shape, dtype=torch.bool), new(state.x.shape, dtype=torch.int64)
        self.logits = new((len(state.x), model.event.levels), dtype=torch.float32)
        self.finite = new((), dtype=torch.bool)

    def run(self, kept: Any, state: Drawing, k: int, logits: Tensor | None) -> Any:
        """k steps of the drawing; its memory before them -> after them."""
        with self.lock, torch.no_grad():
            stage = self._enter(kept)
            self._load(state)
            for i in range(k):
                recorded = self._recorded((state.step + i) % self.period, stage)
                recorded.replay()
                for path in recorded.rewrites:
                    self.held.pop(path, None)
                stage = recorded.after
                if logits is not None:
                    logits[:, i] = self.logits
            self._store(state, k)
            return self._leave(stage)

    def _enter(self, kept: Any) -> Stage:
        stage = self._stage(kept)
        for leaf, home in zip(leaves(kept), leaves(stage.memory), strict=True):
            if not leaf.frozen or self.held.get(leaf.path) is not leaf.tensor:
                home.tensor.copy_(leaf.tensor)
            if leaf.frozen:
                self.held[leaf.path] = leaf.tensor
        return stage

    def _leave(self, stage: Stage) -> Any:
        """The memory as a drawing keeps it, in tensors of its own."""
        found = leaves(stage.memory)
        held = ((leaf.tensor, self.held.get(leaf.path) if leaf.frozen else None) for leaf in found)
        return rebuilt(stage.memory, iter([home.clone() if own is None else own for home, own in held]))

    def _stage(self, memory: Any) -> Stage:
        """Where a memory of this shape lies. Parts of one shape at one path lie in one place, whatever the rest is."""
        found = list(leaves(memory))
        for leaf in found:
            if leaf.kind not in self.homes:
                self.homes[leaf.kind] = place_for(leaf)
        number = self.stages.setdefault(tuple(leaf.kind for leaf in found), len(self.stages))
        return Stage(number, rebuilt(memory, iter([self.homes[leaf.kind] for leaf in found])))

    def _load(self, state: Drawing) -> None:
        self.step.fill_(state.step)
        self.uniforms.copy_(along(state.order, state.uniforms))
        self.temperature.copy_(state.temperature)
        self.log_weight.copy_(state.log_weight)
        self.finite.fill_(True)
        if self.known is not None and self.given is not None and state.known is not None and state.given is not None:
            self.known.copy_(along(state.order, state.known))
            self.given.copy_(along(state.order, state.given))

    def _store(self, state: Drawing, k: int) -> None:
        if not bool(self.finite):
            raise ValueError(f"logits of steps {state.step} to {state.step + k} are not all finite numbers: the model's weights are broken")
        steps = slice(state.step, state.step + k)
        places = state.order[..., steps].expand(len(state.x), k)
        state.x.scatter_(1, places, self.x[:, steps])
        state.log_weight.copy_(self.log_weight)
        state.step += k

    def _recorded(self, slot: int, stage: Stage) -> Recorded:
        known = self.steps.get((slot, stage.number))
        if known is None:
            known = self.steps[slot, stage.number] = self._record(stage)
        return known

    def _record(self, stage: Stage) -> Recorded:
        """Rehearses a step to see what memory it leaves, records it, and puts back what either has written over."""
        touched = [*(leaf.tensor for leaf in leaves(stage.memory)), *self._counted()]
        before = [each.clone() for each in touched]
        after = self._rehearsed(stage)
        target = [leaf.tensor for leaf in leaves(after.memory)]

        def work() -> None:
            memory = rebuilt(stage.memory, (leaf.tensor for leaf in leaves(stage.memory)))
            self._one(memory)
            settle([leaf.tensor for leaf in leaves(memory)], target)

        settle(before, touched)
        replay = self.capture.record(work)
        settle(before, touched)
        stays = {id(leaf.tensor) for leaf in leaves(stage.memory)}
        return Recorded(replay, after, tuple(leaf.path for leaf in leaves(after.memory) if leaf.frozen and id(leaf.tensor) not in stays))

    def _rehearsed(self, stage: Stage) -> Stage:
        def copy() -> Any:
            return rebuilt(stage.memory, iter([leaf.tensor.clone() for leaf in leaves(stage.memory)]))

        try:
            return self._stage(self.capture.rehearse(lambda memory=copy(): self._one(memory)))
        except Waits:
            self.capture = Calls()
            return self._stage(self._one(copy()))

    def _one(self, memory: Any) -> Any:
        """Autoregressive's step, but that the place is read from the device."""
        logits = self.model.predict(memory)
        self.logits.copy_(logits)
        self.finite.logical_and_(logits.isfinite().all())
        here = self.step.expand(len(logits), 1)
        level = categorical(logits / self.temperature, self.uniforms.gather(1, here)[:, 0])
        if self.known is not None and self.given is not None:
            known = self.known.gather(1, here)[:, 0]
            level = torch.where(known, self.given.gather(1, here)[:, 0], level)
            nats = torch.log_softmax(logits.double(), dim=-1).gather(1, level[:, None])[:, 0]
            self.log_weight += torch.where(known, nats, 0)
        self.x.scatter_(1, here, level.to(torch.uint8)[:, None])
        self.model.take(memory, level)
        self.step += 1
        return memory

    def _counted(self) -> list[Tensor]:
        return [self.step, self.x, self.log_weight, self.logits, self.finite]
