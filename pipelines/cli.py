"""The command `genmodels`. Each verb is a thin function over a stage; what is heavy is imported inside it, so that --help answers at once."""

import errno
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from pipelines import console, model_commands
from pipelines.errors import Stop
from pipelines.model_commands import AsJson, Storage
from serve.names import unknown

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # typer keeps its copy of click private

app = typer.Typer(
    name="genmodels",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="From pictures, sounds or a table to a generative model answering on an endpoint. Start with `genmodels run digits-pixelcnn`.",
)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="a path to a recipe, or a shipped recipe's name")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a key of the recipe, as train.steps=100")]


def _stages(recipe_name: str, changes: Sequence[str] | None, last: str) -> dict[str, Any]:
    """Runs the stages up to `last` and returns their records by name."""
    from pipelines import recipe as recipes

    recipe = recipes.load(recipe_name, changes or ())
    from pipelines import run, submit

    submit.check_versions()
    return run.until(last, recipe)


def _stage_command(name: str, text: str) -> None:
    def command(recipe: RecipeName, changes: Changes = None, as_json: AsJson = False) -> None:
        from pipelines import summary

        console.speak_json(as_json)
        records = _stages(recipe, changes, name)
        summary.show(records)

    app.command(name, help=text)(command)


_stage_command("run", "All stages: prepare, tune, train, evaluate, register, deploy, report.")
_stage_command("prepare", "Turn the recipe's pictures, sounds or rows into Shards.")
_stage_command("tune", "Search the recipe's hyperparameters (after what comes before it).")
_stage_command("train", "Train the model (after what comes before it).")
_stage_command("evaluate", "Score the model on the test split (after what comes before it).")
_stage_command("register", "Register the model and let the gate decide on champion (after what comes before it).")
_stage_command("deploy", "Deploy the registered version and query it once (after what comes before it).")


@app.command()
def infer(
    recipe: RecipeName,
    changes: Changes = None,
    register: Annotated[bool, typer.Option(help="register the posterior by the recipe's own method, as `run` does")] = True,
    as_json: AsJson = False,
) -> None:
    """Compare ways of inference on a posterior, variational and Markov chains, beside a long reference run; then register the recipe's own."""
    from pipelines import recipe as recipes

    console.speak_json(as_json)
    checked = recipes.load(recipe, changes or ())
    from pipelines import infer as inference
    from pipelines import submit

    submit.check_versions()
    asked = shlex.join([recipe, *(word for change in changes or () for word in ("--set", change))])
    inference.infer(checked, register=register, asked=asked)


@app.command()
def plan(recipe: RecipeName, changes: Changes = None, as_json: AsJson = False) -> None:
    """What would run, what is done, and why."""
    from pipelines import plan as plans
    from pipelines import recipe as recipes

    console.speak_json(as_json)
    plans.show(plans.plan(recipes.load(recipe, changes or ())))


@app.command()
def submit(
    recipe: RecipeName,
    address: Annotated[str, typer.Option(help="the cluster's dashboard, as http://head:8265")],
    changes: Changes = None,
    follow: Annotated[bool, typer.Option(help="show the job's log until it ends")] = True,
    as_json: AsJson = False,
) -> None:
    """Run a recipe as a job on a Ray cluster; submitting it again goes on from what is done."""
    from pipelines import recipe as recipes
    from pipelines import submit as submission

    console.speak_json(as_json)
    submission.submit(recipes.load(recipe, changes or ()), address=address, follow=follow)


@app.command()
def serve(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="model folders, URLs, or models:/name@alias")],
    host: Annotated[str, typer.Option(help="0.0.0.0 answers other machines too")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    replicas: Annotated[int, typer.Option(min=1)] = 1,
    storage: Storage = "./runs",
) -> None:
    """Keep an endpoint up until Ctrl-C."""
    from pipelines import deploy as deployment
    from pipelines.sections import Serve

    deployment.serve_forever(models, storage=storage, settings=Serve(host=host, port=port, replicas=replicas))


for command in model_commands.ALL:
    app.command()(command)


@app.command()
def models(as_json: AsJson = False) -> None:
    """The families and what each can do."""
    from pipelines import summary

    console.speak_json(as_json)
    summary.families()


@app.command()
def recipes(as_json: AsJson = False) -> None:
    """The shipped recipes, their cost and expected score."""
    from pipelines import summary

    console.speak_json(as_json)
    summary.recipes()


@app.command()
def doctor(storage: Storage = "./runs", as_json: AsJson = False) -> None:
    """What this machine has, and what is missing."""
    from pipelines import doctor as health

    console.speak_json(as_json)
    raise typer.Exit(health.show(storage))


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: exit 0 done, 1 failed, 2 wrong use; one line for whatever went wrong."""
    sys.exit(_exit_code(lambda: app(args=None if arguments is None else list(arguments), standalone_mode=False)))


def _exit_code(command: Callable[[], Any]) -> int:
    try:
        code = int(command() or 0)
        return _complain(STOPPED, code) if code == 130 else code  # typer makes a Ctrl-C this code, without a word
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _complain(STOPPED, 130)
    except UsageError as error:
        return _complain(_usage(error), 2)
    except Exception as error:
        line, code = _explain(error)
        if line is None or os.environ.get("GENMODELS_TRACEBACK"):
            raise
        return _complain(line, code)
    finally:
        _end()


STOPPED = "stopped; the same command goes on from what is done"


def _complain(line: str, code: int) -> int:
    console.emit(event="error", message=line, code=code)
    print(f"genmodels: {line}", file=sys.stderr)
    return code


def _usage(error: Any) -> str:
    message = str(error.format_message()).replace("\n", " ").strip()
    if message.startswith("No such command"):
        names = [command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands]
        return unknown("command", message.split("'")[1], names)
    return (
        (message[:1].lower() + message[1:].rstrip(".") + "; see genmodels --help") if message else "no command given; see genmodels --help"
    )


def _explain(error: BaseException) -> tuple[str | None, int]:
    """The line and exit code of an error that a user can do something about; None for a fault of ours."""
    for cause in _causes(error):
        if isinstance(cause, Stop):
            return str(cause), cause.code
        if type(cause).__name__ in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"):
            return f"S3 credentials are missing or incomplete ({cause}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE", 1
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full ({cause.filename or 'storage'}); free some space and run the same command again: it goes on", 1
        if isinstance(cause, PermissionError) or (isinstance(cause, OSError) and cause.errno == errno.EROFS):
            return f"cannot write or read {cause.filename or ''}: {cause.strerror or cause}; check its permissions", 1
        if isinstance(cause, FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError) and cause.filename:
            return f"cannot write or read {cause.filename}: {cause.strerror}; check the path", 1
        if type(cause) is ValueError:
            return " ".join(str(cause).split()), 1
    return None, 1


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it wraps: Ray puts a task's error inside its own."""
    found: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop(0)
        if one is None or one in found:
            continue
        found.append(one)
        inner = getattr(one, "cause", None)
        queue += [inner if isinstance(inner, BaseException) else None, one.__cause__, one.__context__]
    return found


def _end() -> None:
    """A local Ray ends with the command."""
    if "pipelines.cluster" in sys.modules:
        sys.modules["pipelines.cluster"].shutdown()


if __name__ == "__main__":
    main()
