"""The compiled samplers step over no end, do nothing undefined and race nowhere: `make sanitize` in short, on the copy that any machine has."""

import subprocess
import sys
from pathlib import Path

import pytest

from genmodels.sampling import library
from tests.genmodels import sanitized


@pytest.mark.skipif(not library.runnable(), reason="no compiled sampler in this installation")
@pytest.mark.parametrize(("sanitizer", "families"), [("address,undefined", sanitized.FAMILIES), ("thread", ["wavenet", "made"])])
def test_the_samplers_are_clean_under(sanitizer: str, families: list[str], tmp_path: Path) -> None:
    if sanitized.preloads(sanitizer) is None:
        pytest.skip(f"no compiler with {sanitizer} sanitizers")
    asked = ["--sanitizer", sanitizer, "--families", *families, "--cases", "3", "--copies", "portable", "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "tests.genmodels.sanitized", *asked]
    done = subprocess.run(command, cwd=sanitized.ROOT, capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel lays memory out in a way that the compiler's thread sanitizer does not know")
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"{3 * len(families)} cases clean on portable" in done.stdout
