"""A small client: samples and scores from an endpoint as arrays; asks again where that is safe, waits where the server says so."""

import base64
import json
import os
import secrets
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from serve.code_schema import EncodingAnswer
from serve.fields import DRAWN_SEEDS
from serve.media_types import JSON, NPY, WAV, levels_hash
from serve.schema import (
    ClassificationAnswer,
    CompletionAnswer,
    CompletionRequest,
    Description,
    Receipt,
    SampleRequest,
    ScoreAnswer,
)

Labels = int | str | list[int] | None
PathEnd = int | tuple[int, int] | NDArray[Any]
AGAIN = frozenset({429, 500, 502, 503, 504})


class Refused(Exception):
    """The endpoint's answer was a problem; str() is its one line."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True, kw_only=True)
class Samples:
    """levels (n, *shape) uint8 (float32 for real-valued events), and what they can be made again from."""

    levels: NDArray[Any]
    receipt: Receipt


@dataclass(frozen=True, kw_only=True)
class Completions(Samples):
    """By which method, whether exactly, and the effective sample size of each where draws were weighted."""

    method: str
    exact: bool
    ess: NDArray[np.float32] | None


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """q(z|x) of n examples: Normal or Bernoulli, and its parameters (n, *latent shape) float32 by name, the mean (of bits: probs) first."""

    distribution: str
    parameters: Mapping[str, NDArray[np.float32]]
    protocol: str

    @property
    def mean(self) -> NDArray[np.float32]:
        return next(iter(self.parameters.values()))


class Client:
    """Talks to one endpoint. retries: how often a request is asked again after a 429, a 5xx or a lost connection; all requests bear that,
    since each that draws has a seed (chosen here when none is given). token: $GENMODELS_TOKEN where left out."""

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 130.0, retries: int = 8, patience: float = 5.0) -> None:
        token = token or os.environ.get("GENMODELS_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self._retries, self._patience = retries, patience

    def models(self) -> list[Description]:
        return [Description.model_validate(one) for one in self._ask("GET", "/v1/models").json()["models"]]

    def model(self, model: str) -> Description:
        return Description.model_validate(self._ask("GET", f"/v1/models/{model}").json())

    def sample(self, model: str, *, seed: int | None = None, **asked: Any) -> Samples:
        """Samples of a model; further keys as in SampleRequest (n, index, label, condition, temperature).

        Raises Refused for what the endpoint does not take, ValueError when the levels are not those of the receipt.
        """
        body = SampleRequest(seed=secrets.randbelow(DRAWN_SEEDS) if seed is None else seed, **asked).model_dump()
        return self._made(model, "samples", body)

    def complete(
        self, model: str, x: NDArray[Any], known: NDArray[np.bool_] | int, *, seed: int | None = None, **asked: Any
    ) -> Completions:
        """Completions of x (*shape) levels where known (*shape) bool says so, or the first `known` rows, steps or columns; further keys as in
        CompletionRequest (n, index, label, condition, temperature). Raises as `sample`."""
        beginning = {"first": known} if isinstance(known, int) else np.asarray(known).tolist()
        seed = secrets.randbelow(DRAWN_SEEDS) if seed is None else seed
        wanted = CompletionRequest.model_validate({"x": np.asarray(x).tolist(), "known": beginning, "seed": seed, **asked})
        answer = self._ask("POST", f"/v1/models/{model}/completions", json=wanted.model_dump(), headers={"Accept": JSON})
        said = CompletionAnswer.model_validate_json(answer.content)
        levels = np.frombuffer(base64.b64decode(said.levels), said.dtype).reshape(said.shape)
        ess = None if said.ess is None else np.asarray(said.ess, np.float32)
        return Completions(levels=_vouched(levels, said.receipt), receipt=said.receipt, method=said.method, exact=said.exact, ess=ess)

    def file(self, model: str, *, accept: str = "*/*", seed: int | None = None, **asked: Any) -> tuple[str, bytes, Receipt]:
        """Samples as a file -> its media type (by `accept`; left out: a PNG, a WAV, else JSON), its bytes and the receipt."""
        body = SampleRequest(seed=secrets.randbelow(DRAWN_SEEDS) if seed is None else seed, **asked).model_dump()
        answer = self._ask("POST", f"/v1/models/{model}/samples", json=body, headers={"Accept": accept})
        return answer.headers["Content-Type"], answer.content, Receipt.model_validate_json(answer.headers["X-Genmodels-Receipt"])

    def listen(self, model: str, *, seed: int | None = None, **asked: Any) -> Generator[bytes]:
        """The bytes of one sound's WAV as they are drawn; joined they are what `file` gives. Further keys as in SampleRequest."""
        body = SampleRequest(seed=secrets.randbelow(DRAWN_SEEDS) if seed is None else seed, stream=True, **asked).model_dump()
        with closing(self._ask("POST", f"/v1/models/{model}/samples", stream=True, json=body, headers={"Accept": WAV})) as answer:
            yield from answer.iter_bytes()

    def score(
        self,
        model: str,
        x: NDArray[Any],
        *,
        label: Labels = None,
        condition: NDArray[Any] | None = None,
        seed: int = 0,
        k: int = 64,
        map: bool = False,  # noqa: A002 (the request's own key)
    ) -> ScoreAnswer:
        """log p, or its bound, of x (n, *shape) levels; condition: for all of them, or one for each; map: also of every value (`values` unpacks
        them)."""
        given = None if condition is None else np.asarray(condition).tolist()
        body = {"x": np.asarray(x).tolist(), "label": label, "condition": given, "seed": seed, "k": k, "map": map}
        return ScoreAnswer.model_validate(self._ask("POST", f"/v1/models/{model}/scores", json=body).json())

    def classify(self, model: str, x: NDArray[Any]) -> ClassificationAnswer:
        """log p(y|x) of x (n, *shape) levels."""
        return ClassificationAnswer.model_validate(
            self._ask("POST", f"/v1/models/{model}/classifications", json={"x": np.asarray(x).tolist()}).json()
        )

    def encode(self, model: str, x: NDArray[Any], *, label: Labels = None) -> Encodings:
        """q(z|x) of x (n, *shape) levels, or q(z|x,y) under a label."""
        body = {"x": np.asarray(x).tolist(), "label": label}
        said = EncodingAnswer.model_validate(self._ask("POST", f"/v1/models/{model}/encodings", json=body).json())
        names = [name for name, values in dict(said.encodings[0]).items() if values is not None]
        parameters = {name: np.asarray([getattr(one, name) for one in said.encodings], np.float32) for name in names}
        return Encodings(distribution=said.distribution, parameters=parameters, protocol=said.protocol)

    def decode(self, model: str, z: NDArray[Any], *, label: Labels = None) -> Samples:
        """The examples that codes z (n, *latent shape) stand for. Raises as `sample`."""
        return self._made(model, "decodings", {"z": np.asarray(z).tolist(), "label": label})

    def interpolate(self, model: str, a: PathEnd, b: PathEnd, *, steps: int = 9, label: Labels = None) -> Samples:
        """`steps` examples from a to b, both included. An end is a seed, (seed, index), or in a model that encodes an example's levels (*shape).
        Raises as `sample`."""
        return self._made(model, "interpolations", {"a": _end(a), "b": _end(b), "steps": steps, "label": label})

    def _made(self, model: str, verb: str, body: Mapping[str, Any]) -> Samples:
        answer = self._ask("POST", f"/v1/models/{model}/{verb}", json=body, headers={"Accept": NPY})
        levels = np.load(BytesIO(answer.content), allow_pickle=False)
        receipt = Receipt.model_validate_json(answer.headers["X-Genmodels-Receipt"])
        return Samples(levels=_vouched(levels, receipt), receipt=receipt)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, path: str, *, stream: bool = False, **request: Any) -> httpx.Response:
        """The answer, of a stream its beginning; waits and asks again, longer each time, while that may help. Raises Refused, or
        httpx.TransportError at the last."""
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                answer = self._http.send(self._http.build_request(method, path, **request), stream=stream)
                if not answer.is_success:
                    answer.read()
            except httpx.TransportError:
                if last:
                    raise
                time.sleep(self._wait(attempt))
                continue
            if answer.is_success:
                return answer
            if answer.status_code not in AGAIN or last:
                raise Refused(answer.status_code, _detail(answer))
            time.sleep(max(float(answer.headers.get("retry-after", 0)), self._wait(attempt)))
        raise AssertionError("unreachable")

    def _wait(self, attempt: int) -> float:
        """Seconds: doubling from 0.1, with jitter so that clients who were turned away together do not come back together."""
        return min(self._patience, 0.1 * 2**attempt) * (0.5 + secrets.randbelow(1000) / 1000)


def values(scored: ScoreAnswer) -> NDArray[np.float32]:
    """The maps of scores that were asked for with map=True -> (n, *shape) float32 nats."""
    maps = [one.map for one in scored.scores if one.map is not None]
    return np.stack([np.frombuffer(base64.b64decode(one.nats), one.dtype).reshape(one.shape) for one in maps])


def _end(end: PathEnd) -> dict[str, Any]:
    if isinstance(end, int | np.integer):
        return {"seed": int(end)}
    if isinstance(end, tuple):
        return {"seed": end[0], "index": end[1]}
    return {"x": np.asarray(end).tolist()}


def _vouched(levels: NDArray[Any], receipt: Receipt) -> NDArray[Any]:
    if levels_hash(levels) != receipt.levels:
        raise ValueError(f"levels of hash {levels_hash(levels)}; the receipt says {receipt.levels}: the answer was changed on its way")
    return levels


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"HTTP {answer.status_code} from {answer.request.url}"
