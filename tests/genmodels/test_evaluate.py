"""Scores are what they say: exact counts, padding left out, bounds called bounds, baselines and Frechet distances as computed by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genmodels.core import Batch, Bounded, Energy, Event, GenerativeModel, Iterated
from genmodels.evaluate import Features, Histogram, evaluate, evaluating, frechet, frechet_score, histograms, likelihoods, validation
from genmodels.noise import Noise
from genmodels.zoo import build

IMAGE = Event(modality="image", shape=(1, 2, 2), levels=3, classes=2)
SOUND = Event(modality="audio", shape=(5,), levels=4, sample_rate=8000)


def uniform(event: Event) -> Histogram:
    places = 1 if event.modality == "audio" else event.dims
    return Histogram(event, torch.zeros(max(1, event.classes), places, event.levels))


def batch(x: Tensor, *, first: int = 0, y: Tensor | None = None, length: Tensor | None = None) -> Batch:
    return Batch(x=x.to(torch.uint8), y=y, length=length, position=torch.arange(first, first + len(x)))


def pictures(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    noise = Noise(seed, position=range(n))
    return (noise.uniform("x", (1, 2, 2)) * 3).to(torch.uint8), (noise.uniform("y") * 2).to(torch.int64)


class Bound(Bounded):
    """A bound that is log p - 1 / k exactly, of a uniform p; it notes what it was asked."""

    def __init__(self, event: Event) -> None:
        super().__init__(event, self.Config())
        self.drop = torch.nn.Dropout(0.5)
        self.asked: list[tuple[int, int, list[int]]] = []

    def elbo(self, x: Tensor, y: Tensor | None, noise: Noise) -> Tensor:
        return self.iwae(x, y, 1, noise)

    def iwae(self, x: Tensor, y: Tensor | None, k: int, noise: Noise) -> Tensor:
        assert not self.training
        self.asked.append((len(x), k, noise.position.tolist()))
        return torch.full((len(x),), -self.event.dims * math.log(self.event.levels) - 1 / k)

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        raise NotImplementedError


class Uniform(GenerativeModel):
    """No likelihood: it only draws, every level alike; its label, if any, is the first level."""

    def __init__(self, event: Event) -> None:
        super().__init__(event, self.Config())

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        x = (noise.uniform("x", self.event.shape) * self.event.levels).to(torch.uint8)
        if y is not None:
            x[:, 0, 0, 0] = y.to(torch.uint8)
        return x


def test_a_uniform_model_scores_the_log_of_its_levels() -> None:
    x, y = pictures(7)
    bits, nats = evaluate(uniform(IMAGE), [batch(x, y=y)], split="test", name="flat")
    assert bits.value == pytest.approx(math.log2(3), abs=1e-12)
    assert nats.value == pytest.approx(4 * math.log(3), abs=1e-12)
    assert (bits.model, bits.protocol, bits.split, bits.n, bits.unit) == ("flat", "exact p(x|y)", "test", 7, "bits/dim")
    assert bits.stderr == pytest.approx(0, abs=1e-12)


def test_uneven_batches_count_every_example_once() -> None:
    x, y = pictures(10)
    model = histograms(IMAGE, [batch(x, y=y)])[1]
    whole = evaluate(model, [batch(x, y=y)], split="test")
    parts = [batch(x[a:b], y=y[a:b], first=a) for a, b in ((0, 7), (7, 8), (8, 10))]
    for one, other in zip(whole, evaluate(model, parts, split="test"), strict=True):
        assert other.value == pytest.approx(one.value, abs=1e-12)
        assert other.stderr == pytest.approx(one.stderr, abs=1e-12)
        assert other.n == 10
    by_hand = torch.stack([-model.log_prob(x[i : i + 1], y[i : i + 1])[0] for i in range(10)]) / math.log(2) / 4
    assert whole[0].value == pytest.approx(by_hand.mean().item(), abs=1e-12)
    assert whole[0].stderr == pytest.approx((by_hand.std() / math.sqrt(10)).item(), abs=1e-12)


def test_padding_is_never_counted() -> None:
    x = torch.tensor([[0, 0, 0, 3, 3], [1, 0, 0, 0, 0], [2, 2, 2, 2, 2]])
    length = torch.tensor([3, 1, 5])
    counts = torch.tensor([[[7, 1, 3, 0]]])
    model = Histogram(SOUND, counts)
    p = torch.tensor([8, 2, 4, 1]) / 15
    nats = -torch.tensor([3 * p[0].log(), p[1].log(), 5 * p[2].log()], dtype=torch.float64)
    bits, nll = evaluate(model, [batch(x, length=length)], split="test")
    ratio = nats.sum() / 9 / math.log(2)
    assert bits.value == pytest.approx(ratio.item(), abs=1e-6)
    assert bits.protocol == "exact p(x), all nats over all 9 valid steps"
    assert nll.value == pytest.approx(nats.mean().item(), abs=1e-6)
    residual = nats / math.log(2) - ratio * length
    assert bits.stderr == pytest.approx((residual.std() / math.sqrt(3) / 3).item(), abs=1e-6)
    padded = x.where(torch.arange(5) < length[:, None], 1)
    assert evaluate(model, [batch(padded, length=length)], split="test")[0].value == pytest.approx(bits.value, abs=1e-12)


def test_rows_without_a_label_are_scored_by_the_marginal_and_said() -> None:
    x, y = pictures(6)
    model = histograms(IMAGE, [batch(x, y=y)])[1]
    mixed = y.clone()
    mixed[2:4] = -1
    one = likelihoods([model], [batch(x, y=mixed)])[0]
    expected = torch.cat([model.log_prob(x[:2], y[:2]), model.log_prob(x[2:4]), model.log_prob(x[4:], y[4:])])
    assert torch.allclose(one.nats, expected, atol=1e-12)
    assert one.protocol == "exact p(x|y), p(x) for 2 without a label"
    assert likelihoods([model], [batch(x)])[0].protocol == "exact p(x)"


def test_a_density_given_a_condition_says_so() -> None:
    x, y = pictures(6)
    mixed = torch.where(torch.arange(6) < 2, -1, y)
    labelled, plain = (build("gated_pixelcnn", replace(IMAGE, classes=classes), condition="masked") for classes in (IMAGE.classes, 0))
    assert likelihoods([labelled], [batch(x, y=y)])[0].protocol == "exact p(x|y,c)"
    assert likelihoods([labelled], [batch(x, y=mixed)])[0].protocol == "exact p(x|y,c), p(x|c) for 2 without a label"
    assert likelihoods([plain], [batch(x)])[0].protocol == "exact p(x|c)"


def test_a_bound_is_called_a_bound_and_k_is_named() -> None:
    model = Bound(IMAGE).train()
    model.drop.eval()  # a mode of its own, which must come back
    x, y = pictures(40)
    bound, nll = evaluate(model, [batch(x, y=y)], split="test", iwae=64)
    assert bound.value == pytest.approx(math.log2(3) + 1 / 64 / 4 / math.log(2), rel=1e-6)
    assert (bound.name, nll.name) == ("bits/dim bound", "nll bound")
    assert bound.protocol == "IWAE_64 lower bound of p(x|y)"
    assert model.training and not model.drop.training
    assert max(n * k for n, k, _ in model.asked) <= 1024
    assert [p for _, _, positions in model.asked for p in positions] == list(range(40))
    score = validation(model, [batch(x, y=y)])
    assert score is not None and score.protocol == "IWAE_16 lower bound of p(x|y)" and score.split == "valid"


def test_a_bound_of_padded_sounds_is_refused() -> None:
    with pytest.raises(ValueError, match="Bound scores whole examples only, and some of these are padded"):
        evaluate(Bound(SOUND), [batch(torch.zeros(1, 5), length=torch.tensor([4]))], split="test")


def test_no_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="no examples to score; the split is empty"):
        evaluate(uniform(IMAGE), [], split="test")


def test_evaluation_changes_no_state() -> None:
    x, y = pictures(5)
    model = histograms(IMAGE, [batch(x, y=y)])[1].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.random.get_rng_state()
    evaluate(model, [batch(x, y=y)], split="test")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator)
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training


def test_histograms_are_laplace_counts_of_the_training_set() -> None:
    x = torch.tensor([[[[0, 1], [2, 0]]], [[[0, 1], [1, 0]]], [[[2, 2], [2, 2]]]])
    overall, by_class = histograms(IMAGE, [batch(x[:2], y=torch.tensor([0, 0])), batch(x[2:], y=torch.tensor([1]), first=2)])
    assert (overall.name, by_class.name) == ("histogram", "class_histogram")
    # place 0 holds 0, 0, 2: (3, 1, 2) / 6 with one added to each; of class 0 it is (3, 1, 1) / 5
    assert torch.allclose(overall.table[0, 0].exp(), torch.tensor([3, 1, 2], dtype=torch.float64) / 6)
    assert torch.allclose(by_class.table[0, 0].exp(), torch.tensor([3, 1, 1], dtype=torch.float64) / 5)
    assert torch.allclose(by_class.table[1, 0].exp(), torch.tensor([1, 1, 2], dtype=torch.float64) / 4)
    expected = sum(math.log(p) for p in (3 / 5, 3 / 5, 2 / 5, 3 / 5))
    assert by_class.log_prob(x[:1], torch.tensor([0])).item() == pytest.approx(expected, abs=1e-12)


def test_unlabelled_rows_count_for_the_overall_histogram_alone() -> None:
    x = torch.tensor([[[[0, 1], [2, 0]]], [[[1, 1], [1, 1]]]])
    overall, by_class = histograms(IMAGE, [batch(x, y=torch.tensor([0, -1]))])
    assert torch.allclose(overall.table[0, 0].exp(), torch.tensor([2, 2, 1], dtype=torch.float64) / 5)
    assert torch.allclose(by_class.table[0, 0].exp(), torch.tensor([2, 1, 1], dtype=torch.float64) / 4)


def test_a_sounds_histogram_is_shared_by_its_steps_and_skips_padding() -> None:
    x = torch.tensor([[0, 0, 1, 3, 3], [2, 3, 3, 3, 3]])
    (model,) = histograms(SOUND, [batch(x, length=torch.tensor([3, 1]))])
    assert torch.allclose(model.table[0, 0].exp(), torch.tensor([3, 2, 2, 1], dtype=torch.float64) / 8)


def test_a_histogram_sums_to_one_and_draws_from_itself() -> None:
    x, y = pictures(9)
    overall, model = histograms(IMAGE, [batch(x, y=y)])
    grid = torch.cartesian_prod(*[torch.arange(3)] * 4).reshape(-1, 1, 2, 2)
    for label in (0, 1):
        assert model.log_prob(grid, torch.full((81,), label)).exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert overall.log_prob(grid).exp().sum().item() == pytest.approx(1, abs=1e-12)
    drawn = model.sample(4096, seed=1, y=1).flatten(1)
    for place in range(4):
        share = torch.bincount(drawn[:, place].to(torch.int64), minlength=3) / 4096
        assert torch.allclose(share.double(), model.table[1, place].exp(), atol=0.04)


def test_the_paired_difference_is_of_the_same_examples() -> None:
    x, y = pictures(30)
    baselines = histograms(IMAGE, [batch(x[:20], y=y[:20])])
    scores = evaluate(uniform(IMAGE), [batch(x, y=y)], split="test", name="flat", baselines=baselines)
    by_name = {(score.model, score.name): score for score in scores}
    pair = by_name["flat", "paired difference"]
    assert pair.value == pytest.approx(by_name["flat", "bits/dim"].value - by_name["class_histogram", "bits/dim"].value, abs=1e-12)
    each = (baselines[1].log_prob(x, y) - uniform(IMAGE).log_prob(x, y)) / math.log(2) / 4
    assert pair.stderr == pytest.approx((each.std() / math.sqrt(30)).item(), abs=1e-12)
    assert pair.protocol == "exact p(x|y) minus class_histogram's exact p(x|y)"
    assert by_name["histogram", "bits/dim"].protocol == "exact p(x)"


def test_a_paired_difference_needs_the_same_examples() -> None:
    x, y = pictures(4)
    a, b = (likelihoods([uniform(IMAGE)], [batch(x[:n], y=y[:n])])[0] for n in (3, 4))
    with pytest.raises(ValueError, match="3 and 4 examples"):
        a.minus(b, model="a", baseline="b", split="test")


def gaussian(n: int, k: int, *, seed: int = 0) -> Tensor:
    return Noise(seed, position=range(n)).normal("z", (k,)).double()


def test_frechet_distance_of_two_known_gaussians() -> None:
    a, b = gaussian(200_000, 3), gaussian(200_000, 3, seed=1)
    mix = torch.tensor([[2.0, 0, 0], [0.5, 1, 0], [0, 0.3, 0.5]], dtype=torch.float64)
    shift = torch.tensor([1.0, -2, 0], dtype=torch.float64)
    cov = mix @ mix.T
    # against a standard normal the cross term is the trace of the other covariance's root
    exact = shift.square().sum() + cov.trace() + 3 - 2 * torch.linalg.eigvalsh(cov).sqrt().sum()
    assert frechet(a, b @ mix.T + shift) == pytest.approx(exact.item(), rel=0.01)
    line = torch.tensor([[-1.0], [1.0]])
    assert frechet(line, 3 * line + 5) == pytest.approx(25 + (3 * math.sqrt(2) - math.sqrt(2)) ** 2, abs=1e-9)


def test_frechet_distance_where_covariances_do_not_commute() -> None:
    """Of two by two matrices tr (A^1/2 B A^1/2)^1/2 = (tr AB + 2 (det AB)^1/2)^1/2; tr A^1/2 B^1/2 is another number."""
    square = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64) * math.sqrt(3 / 4)  # its covariance is the identity
    tall, bent = (torch.tensor(matrix, dtype=torch.float64) for matrix in ([[3.0, 0], [0, 0.5]], [[2.0, 0], [1.8, 0.6]]))
    shift = torch.tensor([0.5, -1], dtype=torch.float64)
    a, b = tall @ tall.T, bent @ bent.T
    cross = ((a @ b).trace() + 2 * torch.linalg.det(a @ b).sqrt()).sqrt()
    exact = shift.square().sum() + a.trace() + b.trace() - 2 * cross
    assert frechet(square @ tall.T, square @ bent.T + shift) == pytest.approx(exact.item(), abs=1e-9)


def test_frechet_distance_is_zero_on_itself_and_symmetric() -> None:
    a, b = gaussian(100, 64), 2 * gaussian(80, 64, seed=3)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a.flip(0)) == pytest.approx(0, abs=1e-9)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)
    rank_one = torch.ones(5, 64) * torch.arange(5)[:, None]  # covariances that are not invertible
    assert frechet(rank_one, rank_one) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_is_biased_upwards_by_few_samples() -> None:
    real = gaussian(4000, 16)
    few, some, many = (sum(frechet(real, gaussian(n, 16, seed=9 + i)) for i in range(5)) / 5 for n in (40, 200, 2000))
    assert few > 2 * some > 4 * many > 0


def test_frechet_distance_needs_two_rows() -> None:
    with pytest.raises(ValueError, match="a Frechet distance of 1 and 5 rows; wanted at least 2 of each"):
        frechet(torch.zeros(1, 2), torch.zeros(5, 2))


def test_features_are_principal_components() -> None:
    x, y = pictures(50)
    features = Features.fit(IMAGE, [batch(x[:30], y=y[:30]), batch(x[30:], y=y[30:], first=30)], components=3)
    flat = x.flatten(1).double() / 2
    _, _, vectors = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    assert torch.allclose(features.mean, flat.mean(0))
    assert torch.allclose((features.components * vectors[:3].T).sum(0).abs(), torch.ones(3, dtype=torch.float64))
    largest = features.components.gather(0, features.components.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all()), "components of the other sign would have another name"
    assert torch.allclose(features(x).mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    again = Features.fit(IMAGE, [batch(x, y=y)], components=3)
    assert torch.allclose(again.components, features.components, atol=1e-9)
    assert features.title == f"PCA-3 of training values {features.digest}" and len(features.digest) == 12
    assert Features.fit(IMAGE, [batch(x[:49])], components=3).digest != features.digest
    assert Features.fit(IMAGE, [batch(x)]).components.shape == (4, 4)


def test_features_of_a_huge_event_are_refused() -> None:
    with pytest.raises(ValueError, match="principal components of 8000 values"):
        Features.fit(Event(modality="audio", shape=(8000,), levels=256, sample_rate=8000), [])


def test_a_model_without_likelihood_is_validated_by_a_named_distance() -> None:
    x, y = pictures(500)
    features = Features.fit(IMAGE, [batch(x)])
    model = Uniform(IMAGE)
    assert validation(model, [batch(x, y=y)]) is None
    assert evaluate(model, [batch(x, y=y)], split="test") == []
    batches = [batch(x[:300], y=y[:300]), batch(x[300:], y=y[300:], first=300)]
    score = validation(model, batches, features=features, seed=5)
    assert score is not None
    assert score.protocol == f"Frechet distance in PCA-4 of training values {features.digest}, n_real 500, n_fake 500"
    assert "FID" not in score.protocol and score.name == "Frechet distance"
    assert score.value == pytest.approx(frechet(features(x), features(model.sample(500, seed=5, y=y))), abs=1e-12)
    ours = frechet_score(features(x), features(x), model="same", space=features.title, split="valid")
    assert ours.value < 1e-9 < score.value


@pytest.mark.parametrize("hidden", [16, 17])
def test_an_energy_is_scored_by_its_log_partition_and_says_whether_that_was_counted_out(hidden: int) -> None:
    """An estimate is never called exact, nor stands under the name of an exact score."""
    event = Event(modality="image", shape=(1, 5, 4), levels=2)
    model = build("rbm", event, hidden=hidden, chains=20, temperatures=50)
    assert isinstance(model, Energy)
    x = torch.randint(0, 2, (6, 1, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bits, nll, log_z = evaluate(model, [Batch(x=x, position=torch.arange(6))], split="test")
    partition = model.log_partition(Noise(0, position=[0]))
    assert partition.exact == (hidden == 16)
    assert nll.value == pytest.approx((model.energy(x).double().mean() + partition.value).item(), abs=1e-4)
    assert bits.value == pytest.approx(nll.value / 20 / math.log(2), abs=1e-6)
    assert (log_z.name, log_z.value, log_z.protocol) == ("log Z", partition.value, partition.method)
    if partition.exact:
        assert (bits.name, nll.name, log_z.stderr) == ("bits/dim", "nll", 0) and bits.protocol.startswith("exact p(x) (log Z exact")
    else:
        assert (bits.name, nll.name) == ("bits/dim estimate", "nll estimate") and bits.protocol.startswith(
            "estimate of p(x) (log Z by AIS, "
        )
        assert log_z.stderr is not None and log_z.stderr > 0
        assert log_z.stderr == pytest.approx((partition.interval[1] - partition.value) / 1.96)


@pytest.mark.parametrize(("rounds", "said"), [(1, "not converged"), (40, "R-hat 1.0")])
def test_a_posterior_is_scored_with_its_r_hat(rounds: int, said: str) -> None:
    """A density of draws names them, and chains that have not converged are told wherever it is printed."""
    features = Noise(3, position=range(60)).normal("c", (2,))
    target = features.sum(1, keepdim=True) + Noise(3, position=range(60)).normal("x", (1,))
    table = Event(modality="table", shape=(1,), levels=0, condition=Event(modality="table", shape=(2,), levels=0))
    model = build("posterior", table, method="gibbs" if rounds > 1 else "metropolis", chains=4)
    assert isinstance(model, Iterated)
    data = Batch(x=target, c=features, position=torch.arange(60))
    for step in range(rounds):
        if not model.converged:
            model.iterate([data], Noise(0, position=torch.empty(0, dtype=torch.int64), step=step))
    assert model.converged == (rounds > 1)
    (nll,) = evaluate(model, [data], split="test")
    assert nll.name == "nll" and nll.protocol.startswith("exact p(x|c) given ") and said in nll.protocol
