"""Likelihoods one example at a time: exact, a bound or an estimate, none called the other; every example counts once, padding never."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genmodels.core import Batch, Bounded, Density, Energy, GenerativeModel, Iterated, Partition
from genmodels.evaluate.score import Score
from genmodels.noise import Noise

_KINDS = {"lower bound": "bound", "estimate of": "estimate"}
"""What a score is called whose protocol says so; any other is exact."""

_ROWS = 1024  # rows times k that a bound is computed on at once: 64 draws of a large batch would not fit


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """N examples one by one: nats (N,) float64, log p, a lower bound or an estimate of it; sizes (N,) float64 valid values of each; how that came
    about; whether the values are reals, whose densities have no bits; log Z of a model with an energy."""

    nats: Tensor
    sizes: Tensor
    protocol: str
    reals: bool = False
    partition: Partition | None = None

    def bits_per_dim(self) -> tuple[float, float | None]:
        """All nats over all valid values, in bits, and the standard error of that ratio (of the plain mean where all sizes are equal)."""
        bits = -self.nats / math.log(2)
        ratio = bits.sum() / self.sizes.sum()
        return ratio.item(), _stderr((bits - ratio * self.sizes) / self.sizes.mean())

    def scores(self, model: str, split: str) -> list[Score]:
        kind = next((f" {word}" for sign, word in _KINDS.items() if sign in self.protocol), "")
        common = {"model": model, "protocol": self.protocol, "split": split, "n": len(self.nats)}
        scores = [Score(name=f"nll{kind}", value=-self.nats.mean().item(), unit="nats", stderr=_stderr(self.nats), **common)]
        if not self.reals:
            value, stderr = self.bits_per_dim()
            scores.insert(0, Score(name=f"bits/dim{kind}", value=value, unit="bits/dim", stderr=stderr, **common))
        if self.partition:
            low, high = self.partition.interval
            common |= {"protocol": self.partition.method}
            scores.append(Score(name="log Z", value=self.partition.value, unit="nats", stderr=(high - low) / 2 / 1.96, **common))
        return scores

    def minus(self, other: "Likelihoods", *, model: str, baseline: str, split: str) -> Score:
        """How many bits/dim this model needs more than a baseline on the same examples (negative: fewer), with the paired standard error."""
        if len(self.nats) != len(other.nats) or not torch.equal(self.sizes, other.sizes):
            raise ValueError(f"{len(self.nats)} and {len(other.nats)} examples, or other lengths; a paired difference needs the same ones")
        pair = Likelihoods(nats=self.nats - other.nats, sizes=self.sizes, protocol=f"{self.protocol} minus {baseline}'s {other.protocol}")
        value, stderr = (-pair.nats.mean().item(), _stderr(pair.nats)) if self.reals else pair.bits_per_dim()
        return Score(
            model=model,
            name="paired difference",
            value=value,
            unit="nats" if self.reals else "bits/dim",
            protocol=pair.protocol,
            split=split,
            n=len(self.nats),
            stderr=stderr,
        )


def _stderr(values: Tensor) -> float | None:
    return None if len(values) < 2 else (values.std() / math.sqrt(len(values))).item()


@contextmanager
def evaluating(model: GenerativeModel) -> Iterator[None]:
    """Inside, the model is in eval mode and keeps no graph; each of its modules gets back the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def has_likelihood(model: GenerativeModel) -> bool:
    """Whether `likelihoods` has something to say of this model."""
    return isinstance(model, Density | Bounded | Energy)


def likelihoods(models: Sequence[GenerativeModel], batches: Iterable[Batch], *, iwae: int = 64, seed: int = 0) -> list[Likelihoods]:
    """Each example once under each model: exact where it has a density, by the bound of `iwae` draws (which the seed names) or by an energy and
    log Z as the model knows it where it has those. Raises ValueError without examples."""
    partitions = [model.partition() if isinstance(model, Energy) else None for model in models]
    nats: list[list[Tensor]] = [[] for _ in models]
    size: list[Tensor] = []
    known: list[Tensor] = []
    for batch in batches:
        size.append(sizes(batch))
        known.append(labelled(batch))
        for model, log_z, column in zip(models, partitions, nats, strict=True):
            with evaluating(model):
                column.append(_nats(model, batch.to(model.device), iwae, seed, log_z).to("cpu", torch.float64))
    if not size:
        raise ValueError("no examples to score; the split is empty")
    return [
        Likelihoods(
            nats=torch.cat(column),
            sizes=torch.cat(size),
            protocol=_protocol(model, torch.cat(known), torch.cat(size), iwae, log_z),
            reals=model.event.levels == 0,
            partition=log_z,
        )
        for model, log_z, column in zip(models, partitions, nats, strict=True)
    ]


def _nats(model: GenerativeModel, batch: Batch, iwae: int, seed: int, log_z: Partition | None) -> Tensor:
    """(B,) nats: log p(x|y) of the labelled rows of a class model, log p(x) of the others; a bound in place of it for Bounded models, and log p(x)
    of every row for an energy."""
    if isinstance(model, Energy) and log_z is not None:
        _whole(model, batch)
        return -model.energy(batch.x).double() - log_z.value
    known = labelled(batch).to(batch.x.device) if model.event.classes else torch.zeros(len(batch), dtype=torch.bool)
    if bool(known.any()) and not bool(known.all()):
        out = torch.empty(len(batch), dtype=torch.float64, device=batch.x.device)
        for mask in (known, ~known):
            out[mask] = _nats(model, _pick(batch, mask), iwae, seed, log_z).to(torch.float64)
        return out
    y = batch.y if bool(known.any()) else None
    if isinstance(model, Density):
        return model.log_prob(batch.x, y, batch.c, length=batch.length)
    if not isinstance(model, Bounded):
        raise ValueError(f"{type(model).__name__} has no likelihood and no bound of one; compare it by a Frechet distance")
    _whole(model, batch)
    stride = max(1, _ROWS // iwae)
    parts = [batch.rows(start, start + stride) for start in range(0, len(batch), stride)]
    return torch.cat([model.iwae(part.x, part.y if y is not None else None, iwae, Noise(seed, position=part.position)) for part in parts])


def _whole(model: GenerativeModel, batch: Batch) -> None:
    if batch.length is not None and bool((batch.length < batch.x[0].numel()).any()):
        raise ValueError(f"{type(model).__name__} scores whole examples only, and some of these are padded; use a model with a density")


def _pick(batch: Batch, mask: Tensor) -> Batch:
    columns = {name: getattr(batch, name) for name in ("x", "y", "c", "length", "position")}
    return replace(batch, **{name: column[mask] for name, column in columns.items() if column is not None})


def sizes(batch: Batch) -> Tensor:
    """(B,) float64: how many values of each example are valid."""
    full = torch.full((len(batch),), batch.x[0].numel(), dtype=torch.float64)
    return full if batch.length is None else torch.minimum(full, batch.length.to("cpu", torch.float64))


def labelled(batch: Batch) -> Tensor:
    """(B,) bool: which rows carry a label."""
    return torch.zeros(len(batch), dtype=torch.bool) if batch.y is None else (batch.y >= 0).cpu()


def _protocol(model: GenerativeModel, known: Tensor, size: Tensor, iwae: int, log_z: Partition | None) -> str:
    if log_z is not None:
        return log_z.protocol("p(x)")
    labels, given = int(known.sum()) if model.event.classes else 0, "c" if model.event.condition else ""
    what, unlabelled = _density("y" if labels else "", given), _density("", given)
    text = f"exact {what}" if isinstance(model, Density) else f"IWAE_{iwae} lower bound of {what}"
    text += grounds(model)
    if 0 < labels < len(known):
        text += f", {unlabelled} for {len(known) - labels} without a label"
    if bool((size != size[0]).any()):
        text += f", all nats over all {int(size.sum())} valid steps"
    return text


def grounds(model: GenerativeModel) -> str:
    """What the density of a posterior rests on, and whether that can be relied on; empty for other models."""
    found = model.findings() if isinstance(model, Iterated) else {}
    if "draws" not in found:
        return ""
    agreement = f", R-hat {found['rhat']:.3f}" if "rhat" in found else ""
    return f" given {found['draws']:,} draws by {found['method']}{agreement}" + ("" if found["converged"] else ", not converged")


def _density(*given: str) -> str:
    """p(x), p(x|y), p(x|c) or p(x|y,c)."""
    named = ",".join(filter(None, given))
    return f"p(x|{named})" if named else "p(x)"
