"""An answer that is an error: RFC 9457, content type application/problem+json."""

from collections.abc import Mapping
from http import HTTPStatus

from pydantic import Field

from serve.fields import Json


class Problem(Exception):
    """Status, a short kind ("unknown-model"), and one line of what was got, what is wanted and the way out."""

    def __init__(self, status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, kind, detail, dict(headers or {}))
        self.status, self.kind, self.detail, self.headers = status, kind, detail, dict(headers or {})

    def __str__(self) -> str:
        return self.detail

    def details(self, path: str) -> "ProblemDetails":
        title = HTTPStatus(self.status).phrase
        return ProblemDetails(type=f"urn:genmodels:{self.kind}", title=title, status=self.status, detail=self.detail, instance=path)


class ProblemDetails(Json):
    type: str = Field(description="urn:genmodels:<kind of problem>")
    title: str
    status: int
    detail: str = Field(description="What was got, what is wanted, the way out.")
    instance: str = Field(description="The path that was asked for.")
