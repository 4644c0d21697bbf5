"""From files to an answering endpoint: the six stages in one sentence. What exists for these inputs is not made again."""

from dataclasses import replace

from pipelines.deploy import deploy
from pipelines.evaluate import evaluate
from pipelines.prepare import prepare
from pipelines.recipe import Recipe
from pipelines.records import Deployment
from pipelines.register import register
from pipelines.report import write
from pipelines.train import train
from pipelines.tune import tune


def run(recipe: Recipe) -> Deployment:
    """All stages; the report's URI is in the deployment."""
    shards = prepare(recipe)
    recipe = tune(recipe, shards)  # the same recipe where it asks for no search
    checkpoint = train(recipe, shards)
    scores = evaluate(recipe, checkpoint, shards)
    version = register(recipe, checkpoint, scores)
    deployment = deploy(recipe, version)
    return replace(deployment, report=write(recipe, shards, checkpoint, scores, version, deployment))
