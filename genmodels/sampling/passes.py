"""A pass: the network over whole examples, with a guess in place of what is not drawn yet, and from its logits a draw of every value at once.

A draw is by the value's own uniform, so it is the ancestral sampler's as soon as all values before it are: what the guess was does not matter.
"""

import threading
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genmodels.core import Autoregressive, Drawing, Fused
from genmodels.core.forced import TeacherForced
from genmodels.noise import categorical
from genmodels.sampling.capture import Calls, Capture, Waits, capture_for

KEPT = 4
"""Passes of different batch sizes and the like that a model keeps at a time."""


@dataclass(frozen=True)
class Asked:
    """What a drawing was begun with."""

    model: Autoregressive
    y: Tensor | None
    c: Tensor | None
    when: Tensor | None
    """(D,) int64 by place: the pass in which each value is drawn; None: in every pass."""
    capture: Capture | None
    """How passes are recorded; None: as the device can."""


class Pass:
    """A pass over n examples, in tensors that stay where they are."""

    def __init__(self, asked: Asked, state: Drawing) -> None:
        assert isinstance(asked.model, TeacherForced)
        self.model, self.forced, self.lock = asked.model, asked.model, threading.Lock()
        self.x, self.order = torch.zeros_like(state.x), state.order.expand(state.x.shape).contiguous()
        self.uniforms, self.temperature = state.uniforms.clone(), state.temperature.clone()
        self.y, self.c, self.when = (None if each is None else each.clone() for each in (asked.y, asked.c, asked.when))
        self.known, self.given = (None if each is None else each.clone() for each in (state.known, state.given))
        self.turn = torch.zeros((), dtype=torch.int64, device=state.x.device)
        self.moved, self.finite = torch.zeros_like(self.turn), torch.ones_like(self.turn, dtype=torch.bool)
        self.replay = self._recorded(asked.capture or capture_for(state.x.device) or Calls())

    def load(self, asked: Asked, state: Drawing, guess: Tensor, turn: int) -> None:
        pairs = [(self.y, asked.y), (self.c, asked.c), (self.when, asked.when), (self.known, state.known), (self.given, state.given)]
        pairs += [(self.x, guess), (self.uniforms, state.uniforms), (self.temperature, state.temperature)]
        for here, there in pairs:
            if here is not None and there is not None:
                here.copy_(there)
        self.order.copy_(state.order.expand(self.order.shape))
        self.turn.fill_(turn)
        self.finite.fill_(True)

    def logits(self) -> Tensor:
        """(B, D, K) by place, given what x holds."""
        whole = self.x.reshape(len(self.x), *self.model.event.shape)
        return self.forced.all_logits(whole, y=self.y, c=self.c).flatten(1, -2)

    def _draw(self) -> None:
        """x, its drawn values where this turn draws them -> x; and the first step, of any row, whose value is not what it was."""
        logits = self.logits()
        self.finite.logical_and_(logits.isfinite().all())
        level = categorical(logits / self.temperature[:, :, None], self.uniforms)
        if self.known is not None and self.given is not None:
            level = torch.where(self.known, self.given, level)
        if self.when is not None:
            level = torch.where(self.when == self.turn, level, self.x)
        changed = (level != self.x).gather(1, self.order).any(0)
        steps = torch.arange(len(changed), device=changed.device)
        self.moved.copy_(torch.where(changed, steps, len(changed)).amin())
        self.x.copy_(level)
        self.turn += 1

    def _recorded(self, capture: Capture) -> Any:
        with torch.no_grad():
            try:
                capture.rehearse(self._draw)
            except Waits:
                return self._draw
            return capture.record(self._draw)


@dataclass
class Guess(Fused):
    """Examples of which some values are drawn, and the rest are a guess."""

    asked: Asked
    x: Tensor
    """(B, D) uint8 levels by place."""
    passes: int = 0
    """How often the network has run over whole examples in order to draw."""
    done: int = 0
    """How far the values are drawn."""

    def advance(self, state: Drawing, k: int, logits: Tensor | None = None) -> None:
        k = min(k, self.asked.model.steps - state.step)
        if k <= 0:
            return
        if self.passes == 0 and state.known is not None and state.given is not None:
            self.x = torch.where(state.known, state.given, self.x).to(torch.uint8)
        recorded = passes_of(self.asked.model).of(self.asked, state)
        with recorded.lock, torch.no_grad():
            recorded.load(self.asked, state, self.x, self.done)
            self._draw(recorded, state.step + k)
            self.x = recorded.x.clone()
            weighed = state.known is not None or logits is not None
            every = recorded.logits() if weighed else None
            if not bool(recorded.finite):
                raise ValueError(f"logits of steps from {state.step} on are not all finite numbers: the model's weights are broken")
        places = state.order[..., state.step : state.step + k].expand(len(self.x), k)
        state.x.scatter_(1, places, self.x.gather(1, places))
        if every is not None:
            _weigh(state, every.gather(1, places[..., None].expand(*places.shape, every.shape[-1])), places, logits)
        state.step += k

    @abstractmethod
    def _draw(self, recorded: Pass, until: int) -> None:
        """Passes, until the values of the steps before `until` are the ancestral sampler's; counts them."""


def _weigh(state: Drawing, every: Tensor, places: Tensor, logits: Tensor | None) -> None:
    """every (B, k, K) logits of the steps whose places (B, k) these are."""
    if logits is not None:
        logits.copy_(every)
    if state.known is not None:
        nats = torch.log_softmax(every.double(), dim=-1).gather(2, state.x.gather(1, places).long()[..., None])[..., 0]
        state.log_weight += torch.where(state.known.gather(1, places), nats, 0).sum(1)


class Passes:
    """A model's passes, the latest ones used. A copy of the model has none yet."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], Pass] = {}

    def __deepcopy__(self, memo: Any) -> "Passes":
        return Passes()

    def __reduce__(self) -> tuple[type["Passes"], tuple[()]]:
        return Passes, ()

    def of(self, asked: Asked, state: Drawing) -> Pass:
        shapes = [None if each is None else each.shape for each in (state.x, state.known, asked.y, asked.c, asked.when)]
        # What is recorded reads weights where they lie: a model that was moved, or given new ones, is recorded anew.
        key = *shapes, asked.capture, *(each.data_ptr() for each in asked.model.parameters())
        found = self.known.pop(key, None) or Pass(asked, state)
        self.known[key] = found
        while len(self.known) > KEPT:
            del self.known[next(iter(self.known))]
        return found


def passes_of(model: Autoregressive) -> Passes:
    known = vars(model)
    if "_passes" not in known:
        known["_passes"] = Passes()
    return known["_passes"]
