"""What a comparison says: a table on the terminal, rows for machines, and its pictures."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipelines import comparison, console, plots, storage
from pipelines.comparison import Found

ABOUT = (
    "Errors: root mean square over the unknowns against the reference run; of means in its standard deviations, of variances relative to its own. "
    "In brackets: what Monte Carlo error alone would explain."
)
TITLES = ("method", "error of means", "error of variances", "ELBO, nats", "log p(x) - ELBO", "ESS/s", "time", "R-hat")


def show(result: Mapping[str, Any]) -> None:
    """The table and what it means; for machines a JSON object a row."""
    for row in result["rows"]:
        console.emit(**row)
    if console.speaks_json():
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, title in enumerate(TITLES):
        table.add_column(title, justify="right" if index else "left", no_wrap=index == 0)
    for row in result["rows"]:
        style = "yellow" if row["failed"] or row["converged"] is False else "bold" if row["method"] == result["chosen"] else ""
        table.add_row(*cells(row), style=style)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for line in notes(result):
        console.result(line)


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of figures as text. Chains are never without their R-hat, nor is a gap to an estimate without a word."""
    if row["failed"]:
        return [_name(row), f"failed: {row['failed']}", *[""] * (len(TITLES) - 2)]
    gap = "-" if row["gap"] is None else f"{row['gap']:.2f}"
    return [
        _name(row),
        _error(row["mean_error"], row["mean_by_chance"]),
        _error(row["variance_error"], row["variance_by_chance"]),
        _within(row["elbo"], row["elbo_stderr"]),
        gap + (" (estimate)" if row["gap_is"] == "estimate" else ""),
        "-" if row["ess_per_second"] is None else f"{row['ess_per_second']:,.0f}",
        f"{row['seconds']:.1f} s",
        _rhat(row),
    ]


def _error(value: float | None, by_chance: float | None) -> str:
    return "-" if value is None else f"{value:.3f} ({'-' if by_chance is None else f'{by_chance:.3f}'})"


def _within(value: float | None, error: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" + (f" ± {error:.2f}" if error else "")


def _rhat(row: Mapping[str, Any]) -> str:
    if row["converged"] is None:
        return "-"
    return _number(row) + ("" if row["converged"] else ", not converged")


def _number(row: Mapping[str, Any]) -> str:
    return f"{row['rhat']:.3f}" if row["rhat"] is not None else "none"


def _name(row: Mapping[str, Any]) -> str:
    return row["method"] + (" (reference)" if row["role"] == "reference" else "")


def notes(result: Mapping[str, Any]) -> list[str]:
    """What the figures mean, and which of them not to rely on."""
    known = result["evidence"]
    where = "log p(x) is not known here, and importance sampling does not find it: no gap."
    if known is not None:
        how = "exact." if known["exact"] else f"an estimate ± {known['stderr']:.2f} by {known['method']}."
        where = f"log p(x) = {known['value']:.2f} nats, {how}"
    lines = [ABOUT, where, "Times are of runs side by side on one machine; ESS/s is of the worst unknown, warmup included."]
    for row in result["rows"]:
        if row["converged"] is False:
            what = "no error above can be relied on" if row["role"] == "reference" else "its figures are no answer"
            lines.append(f"{_name(row)}: chains have not converged (R-hat {_number(row)}; wanted below {comparison.CONVERGED}); {what}.")
        if row["errors"]:
            lines.append(f"{row['method']}: {row['errors']:,} proposals had a log density that is no number, and were refused.")
    return lines


def pictures(result: Mapping[str, Any], reference: Found, found: Sequence[Found]) -> dict[str, Any]:
    """Draws the marginals and every chain's traces and ranks into the comparison's folder -> their URIs, and what is to be said of each chain."""
    sound = [each for each in found if not each.failed]
    marginals = _kept(result, "marginals.png", plots.marginals(reference, _named(result, sound), reference.names))
    return {
        "marginals": marginals,
        "chains": [_chains(result, each, row) for each, row in _pairs(result, reference, sound) if each.chains],
    }


def _named(result: Mapping[str, Any], sound: Sequence[Found]) -> dict[str, Found]:
    """Each method by its name; chains that have not converged are not shown without their R-hat."""
    rows = {row["method"]: row for row in result["rows"] if row["role"] == "method"}
    said = {each.method: f" (R-hat {_rhat(rows[each.method])})" if rows[each.method]["converged"] is False else "" for each in sound}
    return {each.method + said[each.method]: each for each in sound}


def _pairs(result: Mapping[str, Any], reference: Found, sound: Sequence[Found]) -> list[tuple[Found, Mapping[str, Any]]]:
    return list(zip([*sound, reference], [*(row for row in result["rows"][1:] if not row["failed"]), result["rows"][0]], strict=True))


def _chains(result: Mapping[str, Any], found: Found, row: Mapping[str, Any]) -> dict[str, Any]:
    """The pictures of a method's chains, and what is to be said of them."""
    own = comparison.moments(found)
    assert own.rhat is not None
    shown = [int(index) for index in np.argsort(-np.nan_to_num(own.rhat, nan=np.inf))[: plots.COORDINATES]]
    role = "reference" if row["role"] == "reference" else found.method
    name = f"{found.method} (reference run)" if row["role"] == "reference" else found.method
    chains, draws, _ = found.draws.shape
    said = [f"R-hat {_rhat(row)}", f"{chains} chains of {draws:,} draws"]
    said += [f"shown are the {plots.CHAINS} that stray furthest"] if chains > plots.CHAINS else []
    said += [f"acceptance {found.accepted:.2f}"] if found.accepted is not None else []
    said += [f"step size {found.step_size:.3g}"] if found.step_size is not None else []
    return {
        "method": name,
        "converged": row["converged"],
        "text": ", ".join(said) + ".",
        "traces": _kept(result, f"traces-{role}.png", plots.traces(found, found.names, shown)),
        "ranks": _kept(result, f"ranks-{role}.png", plots.ranks(found, found.names, shown)),
    }


def _kept(result: Mapping[str, Any], name: str, png: bytes) -> str:
    uri = storage.join(result["uri"], name)
    storage.write_bytes(uri, png)
    return uri
