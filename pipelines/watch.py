"""What the driver does as Ray Tune's trials end: a record of each in storage, and the progress bar."""

import math
from typing import Any

from ray.tune import Callback

from pipelines import console, storage
from pipelines.train import one_line


class Watch(Callback):
    """first: trials recorded by an earlier, killed search; steps: of a full trial."""

    def __init__(self, uri: str, bar: console.Bar, *, first: int, steps: int) -> None:
        self.uri, self.bar, self.done, self.steps = uri, bar, first, steps
        self.lowest = math.inf
        bar.to(first)

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps a pickle of its settings, which nobody reads; a progress bar is not to be in it."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        if message := result.get("failed"):
            self._record(trial, {"status": "failed", "value": None, "message": message})
        else:
            self._record(trial, {"status": "finished" if result.get("step", 0) >= self.steps else "stopped"})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Not the candidate's own error, which it reports, but its process's end."""
        error = trial.get_pickled_error()
        self._record(trial, {"status": "failed", "value": None, "message": one_line(error) if error else "its process ended"})

    def _record(self, trial: Any, more: dict[str, Any]) -> None:
        result = trial.last_result or {}
        value = result.get("lowest")
        record = {
            "id": f"{self.done:05d}",
            "params": {key: _plain(each) for key, each in trial.config.items()},
            "value": value if value is not None and math.isfinite(value) else None,
            "step": result.get("step", 0),
            "seconds": result.get("seconds", 0.0),
        } | more
        storage.write_json(storage.join(self.uri, "trials", f"{record['id']}.json"), record)
        self.done += 1
        self.lowest = min(self.lowest, math.inf if record["value"] is None else record["value"])
        self.bar.to(self.done, note=f"best {self.lowest:.4g}")


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's."""
    return value.item() if type(value).__module__ == "numpy" else value
