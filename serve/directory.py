"""The models that an endpoint knows: what each says of itself, and which one `name`, `name@alias` or `name:version` means."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from serve.messages import Classified, Decode, Decoded, Draw, Drawn, Encode, Encoded, Examples, Fill, Filled, Interpolate, Weigh, Weighed
from serve.names import unknown
from serve.problem import Problem
from serve.schema import Description

FRESH = 1.0
"""Seconds for which a model's description is not asked for again."""
_ASKED = re.compile(r"(?P<name>[^@:]+)(?:@(?P<alias>[^@:]+)|:(?P<version>[^@:]+))?")


class Handle(Protocol):
    """What answers for one model: a replica in this process, or Ray Serve's replicas. Its errors are Problems."""

    async def describe(self) -> Description: ...
    async def sample(self, asked: Draw) -> Drawn: ...
    def listen(self, asked: Draw) -> AsyncGenerator[Drawn]:
        """One sound as it is drawn, levels (1, t) at a time."""
        ...

    async def complete(self, asked: Fill) -> Filled: ...
    async def score(self, asked: Weigh) -> Weighed: ...
    async def classify(self, asked: Examples) -> Classified: ...
    async def encode(self, asked: Encode) -> Encoded: ...
    async def decode(self, asked: Decode) -> Decoded: ...
    async def interpolate(self, asked: Interpolate) -> Decoded: ...


class Directory:
    """Handles by slot. A slot is one model; its version may change while it is served."""

    def __init__(self, handles: Mapping[str, Handle] | None = None) -> None:
        self._handles: dict[str, Handle] = dict(handles or {})
        self._known: dict[str, tuple[float, Description]] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    def put(self, handles: Mapping[str, Handle]) -> None:
        """These models from now on, in this order."""
        self._handles = dict(handles)
        self._known = {slot: seen for slot, seen in self._known.items() if slot in handles}

    async def all(self) -> list[tuple[Handle, Description]]:
        return [(handle, await self._describe(slot)) for slot, handle in list(self._handles.items())]

    async def find(self, asked: str) -> tuple[Handle, Description, str | None]:
        """-> the model's handle, its description, and the version that is meant where one is. Raises Problem 404 naming the nearest known."""
        found = _ASKED.fullmatch(asked)
        if found is None:
            raise Problem(404, "unknown-model", f"{asked!r} names no model; wanted name, name@alias or name:version")
        name, alias, version = found["name"], found["alias"], found["version"]
        models = await self.all()
        named = [(handle, one) for handle, one in models if one.model == name]
        if not named:
            raise Problem(404, "unknown-model", unknown("model", name, [one.model for _, one in models]))
        for handle, one in named:
            if (alias is None or alias in one.aliases) and (version is None or version == one.version):
                return handle, one, version
        if version is not None:
            raise Problem(
                404, "unknown-version", f"{name} has no version {version} here; served: {', '.join(one.version for _, one in named)}"
            )
        aliases = [known for _, one in named for known in one.aliases]
        raise Problem(404, "unknown-alias", f"{name}: {unknown('alias', alias or '', aliases)}")

    async def _describe(self, slot: str) -> Description:
        """What a model said of itself at most a second ago; many who ask at once ask it once."""
        async with self._asking.setdefault(slot, asyncio.Lock()):
            seen, now = self._known.get(slot), time.monotonic()
            if seen is not None and now - seen[0] < FRESH:
                return seen[1]
            try:
                async with asyncio.timeout(5):
                    description = await self._handles[slot].describe()
            except (Problem, TimeoutError) as error:
                if seen is not None:  # busy or starting again: what it said a moment ago still holds
                    return seen[1]
                if isinstance(error, Problem) and error.status == 429:
                    raise
                raise Problem(503, "not-ready", f"model {slot} does not answer yet; ask again", {"Retry-After": "1"}) from error
            self._known[slot] = time.monotonic(), description
            return description

    async def ready(self) -> list[str]:
        """The models, each of which has just answered, if only that it is busy. Raises Problem 503 when one does not."""
        for slot, handle in list(self._handles.items()):
            try:
                async with asyncio.timeout(5):
                    await handle.describe()
            except (Problem, TimeoutError) as error:
                if isinstance(error, Problem) and error.status == 429:
                    continue
                raise Problem(
                    503, "not-ready", f"model {slot} does not answer yet: {error or 'no answer in 5 s'}", {"Retry-After": "1"}
                ) from error
        if not self._handles:
            raise Problem(503, "not-ready", "no model is served here yet", {"Retry-After": "1"})
        return list(self._handles)
