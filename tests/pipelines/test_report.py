"""The report: everything of a run on one page that fetches nothing, and a recipe's or label's text stays text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmodels.core import Event
from pipelines import card, chart, trials, tune
from pipelines.evaluate import evaluate
from pipelines.records import Deployment, Scores, Shards, Version
from pipelines.report import _commands, embedded, html, write
from pipelines.storage import read_bytes, write_bytes, write_json
from tests.pipelines import small

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Texts, tags and what they fetch."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action", "data", "poster", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


class Run:
    """A finished run with a search, whose labels and description are hostile."""

    def __init__(self, root: Path) -> None:
        labels = (HOSTILE, '"><img src=x onerror=alert(2)>', *"23456789")
        self.shards: Shards = small.digits(root, rows={"train": 100, "valid": 40, "test": 30}, labels=labels)
        search = {"space": {"train.lr": {"loguniform": [1e-4, 1e-2]}, "model.hidden": {"choice": [16, 32]}}}
        self.recipe = small.recipe(root, "evaluate.samples=10", f"about={json.dumps(HOSTILE)}", f"tune={json.dumps({'search': search})}")
        self.checkpoint = small.checkpoint(root, self.shards)
        self._manifest()
        self._search()
        self._sheet(root)
        self.scores: Scores = evaluate(self.recipe, self.checkpoint, self.shards)
        self.version = Version(
            name="small",
            version="3",
            artifact=self.scores.artifact,
            digest=self.scores.digest,
            champion=True,
            reason="so <it> is",
            fingerprint="v",
        )
        answer = str(root / "answer.png")
        write_bytes(answer, read_bytes(self.scores.samples))
        receipt = {"model": "small", "seed": 7, "label": None, "levels": "abcdef"}
        self.deployment = Deployment(
            url="http://127.0.0.1:8000", model="small", version="3", live=False, answer=answer, receipt=receipt, report=""
        )

    def _manifest(self) -> None:
        uri = f"{self.shards.uri}/manifest.json"
        value = json.loads(Path(uri).read_text())
        counts = {"rows": 100, "levels": list(range(17)), "labels": dict.fromkeys(self.shards.labels, 10), "unlabelled": 0}
        about = {"splits": {"train": counts}, "inputs": 1797, "quarantined": 5, "duplicates": 2, "conflicting_labels": 0, "leakage": {}}
        write_json(uri, {**value, **about})

    def _search(self) -> None:
        found = [
            {
                "id": f"0000{i}",
                "params": {"train.lr": 10.0 ** -(i % 4 + 1), "model.hidden": [16, 32][i % 2]},
                "value": [1.9, 1.7, None, 2.4][i],
            }
            | {"step": 500, "seconds": 3.2, "status": "failed" if i == 2 else "finished"}
            for i in range(4)
        ]
        found[2]["message"] = f"diverged {HOSTILE}"
        again = [{**found[1], "id": "00001-0", "seed": 1, "value": 1.8}]
        winner = {"id": "00001", "params": found[1]["params"], "value": 1.75, "values": [1.7, 1.8]}
        importance = {"method": "fANOVA over 3 trials", "values": {"train.lr": 0.8, "model.hidden": 0.2}}
        about = {"metric": "valid", "steps": 500, "space": self.recipe.tune.search.space if self.recipe.tune else {}}
        uri = f"{tune.output(self.recipe, self.shards).uri}/tune.json"
        write_json(uri, {**about, "trials": found, "reseeds": again, "importance": importance, "winner": winner})

    def _sheet(self, root: Path) -> None:
        uri = str(root / "sheet.png")
        from pipelines import sheet

        write_bytes(uri, sheet.pictures(np.zeros((4, 1, 8, 8), np.uint8), self.shards.event, 2))
        with Path(self.checkpoint.log).open("a") as file:
            file.write(json.dumps({"event": "sheet", "step": 4, "uri": uri}) + "\n")

    def page(self) -> str:
        return html(self.recipe, self.shards, self.checkpoint, self.scores, self.version, self.deployment)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(run: Run) -> Page:
    return Page(run.page())


def test_every_score_is_there_with_its_protocol(run: Run, page: Page) -> None:
    assert len(run.scores.scores) == 11
    for score in run.scores.scores:
        assert card.digits(score.value) in page.text and score.protocol in page.text
    pair = next(score for score in run.scores.scores if score.name == "paired difference")
    assert pair.stderr is not None
    amount = f"{card.digits(abs(pair.value))} ± {card.digits(pair.stderr)} bits/dim above class_histogram"
    assert f"gated_pixelcnn is {amount}, as the paired difference on the same 30 examples." in page.text


def test_every_section_has_its_content(run: Run, page: Page) -> None:
    for title in ("Samples", "Training", "Search", "Scores", "Memorisation", "Data", "Use it", "Lineage"):
        assert title in page.text
    for text in (
        *("Version 3 is the champion", "4 trials of 500 steps, 3 with a score", "mean over 2 seeds is 1.750", "fANOVA over 3 trials"),
        *(
            "100 train, 40 valid, 30 test",
            f"genmodels serve models:/small@champion --storage {run.recipe.storage}",
            "abcdef",
            run.scores.digest,
            "step 4",
        ),
        *("in quarantine", "duplicates left out", "0 of 10 samples equal a training example", "small-gated_pixelcnn-0", "f00000000000"),
    ):
        assert text in page.text, text
    assert page.tags.count("svg") == 1 + 4 + 2 + 2  # headline; loss, validation, throughput, learning rate; search; labels and levels


def test_the_page_fetches_nothing_and_runs_nothing(run: Run, page: Page) -> None:
    assert page.fetched and all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "a"} & set(page.tags)
    assert not re.search(r"url\(|@import|javascript:", run.page())


def test_hostile_text_stays_text(run: Run, page: Page) -> None:
    assert "script" not in page.tags and page.tags.count("img") == len(page.fetched)
    assert page.text.count(HOSTILE) >= 3  # description, labels, a trial's message
    assert HOSTILE not in run.page()
    assert "so <it> is" in page.text


def test_writing_it_twice_gives_the_same_bytes_at_the_same_place(run: Run) -> None:
    arguments = (run.recipe, run.shards, run.checkpoint, run.scores, run.version, run.deployment)
    first = write(*arguments)
    content = read_bytes(first)
    assert first.startswith(f"{run.recipe.root}/reports/small-") and first.endswith("/report.html")
    assert write(*arguments) == first and read_bytes(first) == content
    dethroned = replace(run.version, champion=False, reason="version 4 is champion by now")
    assert write(*arguments[:4], dethroned, run.deployment) != first


def test_a_run_without_search_sheets_or_log_has_a_page_too(run: Run, tmp_path: Path) -> None:
    recipe = small.recipe(tmp_path)
    checkpoint = replace(run.checkpoint, log=str(tmp_path / "none.jsonl"))
    text = Page(html(recipe, run.shards, checkpoint, run.scores, replace(run.version, champion=False), run.deployment)).text
    assert "Version 3 is a candidate" in text and "Search" not in text and "genmodels serve models:/small/3" in text


def test_a_search_is_shown_best_first_and_its_winner_marked(run: Run) -> None:
    found = trials.search(run.recipe, run.shards)
    assert found is not None
    shown = trials.shown(found)
    assert [row["id"] for row in shown["rows"]] == ["00001", "00000", "00003", "00002", "00001-0 (seed 1)"]
    assert [row["chosen"] for row in shown["rows"]] == [True, False, False, False, False]
    assert shown["searched"] == ["model.hidden", "train.lr"] and shown["rows"][3]["state"] == f"diverged {HOSTILE}"
    assert str(shown["parallel"]).count("<polyline") == 3 and 'class="chosen"' in shown["parallel"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1000, [0, 200, 400, 600, 800, 1000]),
        (1.13, 2.31, [1, 1.5, 2, 2.5]),
        (5, 5, [4.4, 4.6, 4.8, 5, 5.2, 5.4, 5.6]),
        (-3, 2, [-3, -2, -1, 0, 1, 2]),
    ],
)
def test_ticks_are_round_and_span(low: float, high: float, expected: list[float]) -> None:
    found = chart.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and len(found) <= 8
    assert expected == pytest.approx(found)


def test_a_line_goes_where_its_points_say() -> None:
    drawn = str(chart.line({"a": [(0, 0), (10, 100)], "b": [(0, 50), (10, 50)]}, x="step", y="loss"))
    first, second = re.findall(r'points="([^"]*)"', drawn)
    top, bottom = chart.TOP, chart.HEIGHT - chart.BOTTOM
    assert first == f"{chart.LEFT:.1f},{bottom:.1f} {chart.WIDTH - chart.RIGHT:.1f},{top:.1f}"
    assert second.endswith(f",{(top + bottom) / 2:.1f}")
    assert str(chart.line({}, x="step", y="loss")) == ""


def test_long_series_are_thinned_and_keep_their_end() -> None:
    points = [(float(i), float(i)) for i in range(12_345)]
    thinned: Any = chart.thin(points)
    assert len(thinned) <= 401 and thinned[0] == points[0] and thinned[-1] == points[-1]


def test_a_file_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert embedded(str(tmp_path / "no.png")) is None


@pytest.mark.parametrize(("shape", "said"), [((1, 2, 2), "[[[0, 0], [0, 0]]]"), ((1, 28, 28), "...")])
def test_a_condition_is_asked_for_in_its_shape(run: Run, shape: tuple[int, ...], said: str) -> None:
    given = Event(modality="image", shape=shape, levels=2)
    shards = replace(run.shards, event=replace(run.shards.event, condition=given))
    lines = "\n".join(_commands(run.version, shards, "./runs"))
    assert f'"condition": {said},' in lines and "--storage" not in lines
