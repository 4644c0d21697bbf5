"""What is built to be handed on: a wheel with the compiled samplers for its platform, one without them where no compiler is, a source archive."""

import os
import platform
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from genmodels.sampling import library
from pipelines import recipe as recipes
from pipelines import submit

ROOT = Path(__file__).resolve().parents[1]
KERNELS = {f"genmodels/sampling/kernels/{path.name}" for path in (ROOT / "genmodels/sampling/kernels").iterdir()}
COPIES = set(library.COPIES if platform.machine() == "x86_64" else ["portable"])

pytestmark = pytest.mark.ray

DRAW = """
import logging
logging.basicConfig(format="%(message)s")
from genmodels import Event, build
from genmodels.sampling import library
print(library.__file__)
print(*library.runnable())
for _ in range(2):
    model = build("made", Event(modality="image", shape=(1, 4, 4), levels=2))
    model.sample(2, seed=0)
print(model.sampler.backend(model))
"""


def built(folder: Path, *, compiler: str | None = None) -> Path:
    """The wheel of this checkout, as `submit` builds it."""
    with pytest.MonkeyPatch.context() as patch:
        if compiler is not None:
            patch.setenv("CXX", compiler)
        return submit._wheel(folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = {path.name for path in ROOT.iterdir()}
    wheel = built(tmp_path_factory.mktemp("wheel"))
    assert {path.name for path in ROOT.iterdir()} == before, "nothing is left in the checkout"
    return wheel


def installed(wheel: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """DRAW in an environment that has nothing but this wheel and, from ours, its dependencies."""
    venv.create(folder / "fresh")
    target, python = folder / "target", folder / "fresh" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True)
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GENMODELS_")}
    found_in = variables | {"PYTHONPATH": os.pathsep.join([str(target), libraries])}
    done = subprocess.run([python, "-c", DRAW], cwd=folder, env=found_in, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(target))
    return done


def samplers(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) >= KERNELS
        return {name for name in archive.namelist() if name.endswith(".so")}


def test_the_wheel_holds_what_the_checkout_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith("genmodels-")}
    kept = {path for part in ("genmodels", "pipelines", "serve") for path in (ROOT / part).rglob("*.py")} | set(recipes.shipped())
    assert {name for name in names if name.endswith((".py", ".yaml"))} == {str(path.relative_to(ROOT)) for path in kept}


def test_a_wheel_holds_its_platforms_copies_for_any_python(wheel: Path) -> None:
    assert wheel.name.split("-", 2)[2] == f"py3-none-{sys.platform}_{platform.machine()}.whl"
    assert samplers(wheel) == {f"genmodels/sampling/_native_{copy}.so" for copy in COPIES}


def test_installed_it_finds_them(wheel: Path, tmp_path: Path) -> None:
    _, copies, backend = installed(wheel, tmp_path).stdout.splitlines()
    assert copies.startswith("portable") and set(copies.split()) <= COPIES
    assert backend == ("native-portable" if copies == "portable" else "native-f32")


def test_without_a_compiler_it_is_built_and_drawn_from_eagerly(tmp_path: Path) -> None:
    empty = built(tmp_path / "wheel", compiler="/bin/false")
    assert samplers(empty) == set()
    done = installed(empty, tmp_path)
    assert done.stdout.splitlines()[1:] == ["", "eager"]
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("no compiled samplers in this installation: sampling is eager")


def test_the_installation_says_which_copies_it_left_out(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"CXX": "/no/compiler"}, capture_output=True, text=True, check=True)
    for copy in COPIES:
        assert f"_native_{copy}.so left out: [Errno 2] No such file or directory: '/no/compiler'; sampling will be slower" in done.stderr


def test_the_source_archive_holds_what_a_wheel_is_built_from(tmp_path: Path) -> None:
    source = submit.sources(tmp_path / "source")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, capture_output=True, check=True)
    with tarfile.open(next(tmp_path.glob("genmodels-*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"setup.py", "pyproject.toml", "LICENSE", "pipelines/cli.py", *KERNELS}
    assert not [name for name in names if name.endswith(".so")]
