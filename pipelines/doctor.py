"""What this machine has for genmodels, and what is missing; each line says what follows from it."""

import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines import console
from pipelines.storage import absolute, is_local

LIBRARIES = ("genmodels", "torch", "ray", "mlflow", "pyarrow", "numpy", "pillow", "soundfile", "soxr", "fastapi", "optuna")


def show(storage: str) -> int:
    """Prints the findings; 1 when something that every run needs is missing, else 0."""
    findings = [*_libraries(), *_hardware(), _data(), _storage(absolute(storage)), _cluster(), _registry(storage)]
    table = Table("", "what", "found", box=None, show_header=False, pad_edge=False)
    for state, what, found in findings:
        table.add_row({"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}[state], what, escape(found))
        console.emit(state=state, what=what, found=found)
    if not console.speaks_json():
        Console(soft_wrap=True).print(table)
    return int(any(state == "bad" for state, _, _ in findings))


Finding = tuple[str, str, str]


def _libraries() -> list[Finding]:
    findings = []
    for name in LIBRARIES:
        try:
            findings.append(("ok", name, version(name)))
        except PackageNotFoundError:
            findings.append(("bad", name, "not installed; run make setup"))
    return findings


def _hardware() -> list[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [
        ("ok", "processor", f"{cores} cores, {torch.backends.cpu.get_cpu_capability()}"),
        ("ok" if gpus else "note", "GPU", ", ".join(gpus) or "none: recipes train on the processor; train.gpus_per_worker must stay 0"),
        _sampler(),
    ]


def _sampler() -> Finding:
    """Which copy of the compiled samplers draws, and which others there are."""
    from genmodels.sampling import library

    try:
        chosen = library.chosen()
    except ValueError as error:
        return "bad", "sampler", str(error)
    runnable = library.runnable()
    if not runnable:
        reason = "none were built" if not library.path("portable").exists() else "those found are of another version or machine"
        return "note", "sampler", f"eager: no compiled samplers here ({reason}); with a C++ compiler, reinstall: make setup"
    others = ", ".join(copy for copy in runnable if copy != chosen)
    precisions = "f32, bf16 and for WaveNet int8" if chosen in library.NARROW else "f32"
    said = (
        f"compiled, copy {chosen} ({precisions}); also here: {others}" if chosen else f"eager, as {library.CHOICE} says; compiled: {others}"
    )
    return "ok", "sampler", said


def _data() -> Finding:
    folder = os.environ.get("GENMODELS_DATA")
    if not folder:
        return "note", "GENMODELS_DATA", "not set: mnist and its like are downloaded; digits and tones need nothing"
    if not Path(folder).is_dir():
        return "bad", "GENMODELS_DATA", f"{folder} is no folder"
    return "ok", "GENMODELS_DATA", f"{folder}: {', '.join(sorted(entry.name for entry in Path(folder).iterdir() if entry.is_dir()))}"


def _storage(uri: str) -> Finding:
    if not is_local(uri):
        return "note", "storage", f"{uri} (not probed)"
    near = next(path for path in (Path(uri), *Path(uri).parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=near):
            free = shutil.disk_usage(near).free / 2**30
    except OSError as error:
        return "bad", "storage", f"{uri} cannot be written: {error.strerror}"
    return "ok" if free > 2 else "note", "storage", f"{uri}, {free:.0f} GiB free"


def _cluster() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    return "ok", "Ray", f"the cluster at {address}" if address else "a local one, started by each command and ended with it"


def _registry(storage: str) -> Finding:
    from serve.catalogue import tracking_uri

    return "ok", "MLflow", tracking_uri(storage)
