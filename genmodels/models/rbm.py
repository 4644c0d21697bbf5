"""The restricted Boltzmann machine: bits and hidden bits that excite or inhibit each other, and nothing within a side.

Information processing in dynamical systems: foundations of harmony theory (Smolensky, 1986); Training Products of Experts by Minimizing
Contrastive Divergence (Hinton, 2002), Neural Computation 14(8); Training Restricted Boltzmann Machines using Approximations to the Likelihood
Gradient (Tieleman, 2008), ICML; labels as a softmax group of visible units, and the weight of log p(y | x) beside the joint objective:
Classification using Discriminative Restricted Boltzmann Machines (Larochelle, Bengio, 2008), ICML.

    p(x) = exp(-F(x)) / Z,    F(x) = -b.x - sum_j softplus(c_j + W_j.x),    grad log p(x) = -grad F(x) + E_p(x')[grad F(x')]

We differ from the papers in what the negative phase averages: gradients of the free energy at its bits, the hidden units summed out, which has less
variance than at drawn hidden units. Independent bits with the data's rates are fitted beside the machine: there its chains begin, and the annealing
that estimates Z; begun elsewhere, chains may stay in a phase of noise for good. An unlabelled example gets a label drawn from p(y | x), whose mean
gradient is that of the label summed out. Grey levels are refused: as probabilities of bits they would leave nothing that sums to one over levels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli

from genmodels.core import (
    Batch,
    Chained,
    Classifies,
    Completes,
    Completion,
    Decodes,
    Encodes,
    Energy,
    Event,
    Metrics,
    Objective,
    Optimizer,
    Partition,
    Trained,
    blocks,
)
from genmodels.models.rbm_units import Units, log_partition, uniforms
from genmodels.noise import Noise, categorical, derive

Training = Literal["cd", "pcd"]


class RBM(Trained, Energy, Encodes, Decodes, Completes, Chained, Classifies):
    modalities = frozenset({"image", "table"})
    classifies_by = "free energies of the labels, exact"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """training: negative examples from chains of k Gibbs steps that begin at the data (cd), or go on from the last step's end (pcd, `particles`
        chains). discriminative: the weight of -log p(y | x). length: Gibbs steps of a sample's chain. chains, temperatures: of the estimate of Z."""

        hidden: int = 64
        training: Training = "pcd"
        k: int = 1
        particles: int = 64
        discriminative: float = 0.0
        length: int = 1000
        chains: int = 100
        temperatures: int = 1000

        def __post_init__(self) -> None:
            if self.training not in ("cd", "pcd"):
                raise ValueError(f"training {self.training!r}; wanted cd or pcd")
            if min(self.hidden, self.k, self.particles, self.length, self.temperatures) < 1 or self.chains < 2:
                raise ValueError(f"{self}; wanted sizes and steps of at least 1, and at least 2 chains")
            if not self.discriminative >= 0:
                raise ValueError(f"discriminative {self.discriminative}; wanted a weight of at least 0")

    config: Config
    particles: Tensor
    """(particles, D + classes) uint8: where the persistent chains are; none of them for cd."""
    moved: Tensor
    """(2,) float32: two numbers that name the step in which the particles last moved."""

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        if event.levels != 2 or event.condition is not None:
            raise ValueError(
                f"RBM models bits without a condition, for grey levels taken as probabilities of bits have no likelihood; got {event}; set levels: 2"
            )
        visible = event.dims + event.classes
        self.latent = Event(modality="table", shape=(config.hidden,), levels=2)
        self.weight = nn.Parameter(0.01 * torch.randn(config.hidden, visible))
        self.visible, self.hidden = nn.Parameter(torch.zeros(visible)), nn.Parameter(torch.zeros(config.hidden))
        self.base = nn.Parameter(torch.zeros(visible))
        start = torch.rand(config.particles if config.training == "pcd" else 0, visible)
        self.register_buffer("particles", self.units.drawn(torch.zeros_like(start), start).to(torch.uint8))
        self.register_buffer("moved", torch.full((2,), -1.0))

    @property
    def units(self) -> Units:
        return Units(self.weight, self.visible, self.hidden, self.event.classes)

    @property
    def chain(self) -> str:
        return f"block Gibbs, {self.config.length:,} steps from independent bits of the data's rates"

    def energy(self, x: Tensor) -> Tensor:
        """x (B, *shape) levels -> (B,) nats: the free energy, hidden units and label summed out, so that p(x) = exp(-energy) / Z."""
        return -self._log_weights(x).logsumexp(1)

    def classify(self, x: Tensor, c: Tensor | None = None, *, length: Tensor | None = None) -> Tensor:
        """x (B, *shape) levels -> (B, classes) nats, log p(y | x): Z cancels. Raises ValueError on an unlabelled model."""
        if self.event.classes == 0:
            raise ValueError("an unlabelled model has no classes to choose from")
        self.given(x, c)
        return self._log_weights(x).log_softmax(1)

    def log_partition(self, noise: Noise) -> Partition:
        """log Z of the present weights, labels summed over: counted out where one side has 16 units at most, else by `chains` annealings."""
        config = self.config
        rows = Noise(derive("partition", noise.seeds[0], noise.step), position=range(config.chains)).to(self.device)
        return log_partition(self.units, self.base, rows, config.temperatures)

    def encode(self, x: Tensor, y: Tensor | None = None) -> Bernoulli:
        """x (B, *shape) levels -> p(h | x, y), exact, of batch shape (B, hidden). Without a label, on a class model: the exact p(h_j | x) of every
        unit, which the label makes depend on each other."""
        x = self.examples(x).flatten(1).to(self.weight.dtype)
        on = torch.sigmoid(self.units.under_each(x))
        if y is None or not self.event.classes:
            return Bernoulli(probs=(on * self.units.log_weights(x).softmax(1)[:, None]).sum(2).clamp(max=1), validate_args=False)
        label = self.labels(y, len(x))
        return Bernoulli(probs=on[torch.arange(len(x), device=self.device), :, label], validate_args=False)

    def codes(self, noise: Noise) -> Tensor:
        y = self.drawn_labels(noise) if self.event.classes else None
        with torch.no_grad():
            return self._walk(noise, *self._start(noise, y))[0]

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (B, hidden) bits, or their probabilities -> (B, *shape) uint8: the likeliest x given them. The label tells nothing beside them."""
        if z.ndim != 2 or z.shape[1] != self.config.hidden:
            raise ValueError(f"codes of shape {tuple(z.shape)}; wanted (n, {self.config.hidden})")
        self.condition(y, len(z))
        with torch.no_grad():
            return self._levels(self.units.logits(z.to(self.device, self.weight.dtype)) > 0)

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        """The end of one chain a row, its label held; so labels come as often as asked for, or as in training, not as often as in the model."""
        return self._levels(self._walk(noise, *self._start(noise, y))[1])

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        seed: int,
        y: Tensor | None = None,
        c: Tensor | None = None,
        temperature: float = 1.0,
        first: int = 0,
    ) -> Completion:
        """As Completes.complete: one chain a row with the known values held, and the label too where one is given. Approximate."""
        n, known = len(x), self.mask(known, len(x))
        x = self.examples(torch.where(known.to(x.device), x, 0))
        noise = Noise(seed, position=range(first, first + n)).to(self.device)
        label = None if y is None else self.condition(y, n)
        self._asked(noise, label, c, torch.full((n,), float(temperature)))
        out = torch.empty_like(x)
        for rows, count in blocks(n):
            v, held = self._start(noise.pick(rows), None if label is None else label[rows], x[rows], known[rows])
            out[rows[:count]] = self._levels(self._walk(noise.pick(rows), v, held)[1])[:count]
        return Completion(x=out, method=f"{self.chain}, the known values held", exact=False)

    def objectives(self) -> list[Objective]:
        return [Objective(name="contrast", loss=self.loss, parameters=list(self.parameters()), optimizer=Optimizer(lr=2e-3, clip=0.0))]

    def loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Nats: the mean free energy of the rows less that of the chains' ends, whose gradient, not its value, is that of -log p(x); and of the
        independent bits -log p(x) itself."""
        with torch.autocast(batch.x.device.type, enabled=False):
            with torch.no_grad():
                data = self._with_labels(batch, noise)
                negative = self._negative(data, noise)
            both = torch.cat([data, negative])
            inputs = self.units.inputs(both)
            free = self.units.free_energy(both, inputs)
            gap = free[: len(data)].mean() - free[len(data) :].mean()
            loss = gap + (self.units.log_sum(self.base) - data @ self.base).mean()
            if self.config.discriminative and batch.y is not None:
                nats = F.nll_loss(self.classify(batch.x), batch.y, ignore_index=-1, reduction="sum") / len(data)
                loss = loss + self.config.discriminative * nats
            return loss, {"free_energy_gap": gap.detach(), "pseudo_log_likelihood": self._pseudo(data, inputs[: len(data)], noise)}

    def _with_labels(self, batch: Batch, noise: Noise) -> Tensor:
        """(B, V): bits and one-hot labels, those that are missing drawn from p(y | x)."""
        x = batch.x.flatten(1).to(self.weight.dtype)
        if not self.event.classes:
            return x
        y = torch.full_like(batch.position, -1) if batch.y is None else batch.y
        if bool((y < 0).any()):
            y = torch.where(y < 0, categorical(self.units.log_weights(x), noise.uniform("label")), y)
        return torch.cat([x, F.one_hot(y, self.event.classes).to(x.dtype)], dim=1)

    def _negative(self, data: Tensor, noise: Noise) -> Tensor:
        """(N, V): where the chains are after k steps more. A step's rows all see the same particles: those of the step, moved once however many
        slices of the batch there are, and alike by every worker, for their noise is the step's and not a row's."""
        units, k = self.units, self.config.k
        if self.config.training == "cd":
            for u in noise.uniform("gibbs", (k, units.draws)).unbind(1):
                _, data = units.gibbs(data, u)
            return data
        v = before = self.particles.to(data.dtype)
        for u in noise.shared("gibbs", (k, len(before), units.draws)):
            _, v = units.gibbs(v, u)
        step = noise.shared("moved", (2,))
        v = torch.where((step == self.moved).all(), before, v)
        if self.training:
            self.particles.copy_(v)
            self.moved.copy_(step)
        return v

    @torch.no_grad()
    def _pseudo(self, v: Tensor, inputs: Tensor, noise: Noise) -> Tensor:
        """() nats: D log p(x_i | all others) at one random bit i a row: an estimate of the log pseudo-likelihood, which is no likelihood."""
        units = self.units
        place = (noise.uniform("flip") * units.bits).long()
        turned = 1 - 2 * v.gather(1, place[:, None])
        other = inputs + turned * units.weight[:, place].T
        gain = turned[:, 0] * units.visible[place] + (F.softplus(other) - F.softplus(inputs)).sum(1)
        return -units.bits * F.softplus(gain).mean()

    def _log_weights(self, x: Tensor) -> Tensor:
        return self.units.log_weights(self.examples(x).flatten(1).to(self.weight.dtype))

    def _start(self, noise: Noise, y: Tensor | None, x: Tensor | None = None, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Where chains begin: (B, V) independent bits of the data's rates, but for a label and values that are given; (B, V) bool: what is held."""
        units, n = self.units, len(noise)
        v = units.drawn(self.base.expand(n, -1), noise.uniform("start", (units.bits + 1,)))
        held = torch.zeros_like(v, dtype=torch.bool)
        if x is not None and known is not None:
            held[:, : units.bits] = known.flatten(1)
            v[:, : units.bits] = torch.where(known.flatten(1), x.flatten(1).to(v.dtype), v[:, : units.bits])
        if y is not None:
            held[:, units.bits :] = True
            v[:, units.bits :] = F.one_hot(y, units.classes).to(v.dtype)
        return v, held

    def _walk(self, noise: Noise, v: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """A sample's chain from v (B, V): the last hidden units, and the visible ones drawn given them."""
        units, h = self.units, v.new_zeros(len(v), self.config.hidden)
        for u in uniforms(noise, "gibbs", self.config.length, units.draws):
            h, moved = units.gibbs(v, u)
            v = torch.where(held, v, moved)
        return h, v

    def _levels(self, v: Tensor) -> Tensor:
        return v[:, : self.event.dims].to(torch.uint8).reshape(len(v), *self.event.shape)
