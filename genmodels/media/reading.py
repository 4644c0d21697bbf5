"""What reading pictures and reading sounds share: the types, and an error's message on one line."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.uint8]
Settings = Mapping[str, Any]


def reason(error: BaseException) -> str:
    """An error's message on one line, without addresses, so that the same file always gives the same words."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"\s*(?:file |: )?<[^<>]* object at 0x[0-9a-fA-F]+>:?", "", text)
    return re.sub(r"0x[0-9a-fA-F]{5,}", "0x...", text)[:200]
