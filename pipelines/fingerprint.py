"""The name of a stage's output: a hash of everything that shapes its bytes, so that nothing is done twice and nothing stale is reused."""

import hashlib
import json
from importlib.metadata import version
from typing import Any


def fingerprint(*parts: Any) -> str:
    """12 hex digits of blake2b over the parts' canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def libraries(*names: str) -> dict[str, str]:
    """Installed versions of the libraries that shape a stage's bytes."""
    return {name: version(name) for name in names}
