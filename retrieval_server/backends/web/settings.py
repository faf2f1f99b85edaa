"""The settings of web search."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from retrieval_server.backends.web.providers import PROVIDERS
from retrieval_server.backends.web.providers.base import Provider
from retrieval_server.errors import RetrievalError
from retrieval_server.index_kinds import IndexSettings

Mode = Literal["live", "record", "replay", "replay_else_empty"]


class WebSettings(IndexSettings, frozen=True):
    """Search of the web through a provider, with an optional record of every answer.

    `live` asks the provider every time and keeps no answer; `record` keeps every answer, and asks for none that it has;
    `replay` uses only kept answers, and refuses any other query; `replay_else_empty` finds nothing for any other query.
    """

    kind: Literal["web"] = "web"
    provider: str
    mode: Mode = "record"
    results: int = Field(default=10, ge=1)
    """Results of one request. More passages than that can not be asked for."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further parameters of the provider's requests, for example the country."""
    address: str | None = Field(default=None, pattern=r"^https?://")
    """Where the provider's API is; default: the provider's own address."""
    at_a_time: int = Field(default=8, ge=1)
    per_second: float | None = Field(default=None, gt=0)
    """Requests to the provider in a second at most; None: no limit of ours."""
    budget: int | None = Field(default=None, ge=0)
    """Paid requests at most: of all recordings into the same folder together, or of one live server."""
    timeout_s: float = Field(default=30.0, gt=0)
    patience_s: float = Field(default=60.0, ge=0)
    """Seconds for which a failed request is tried again."""

    @field_validator("provider")
    @classmethod
    def _registered(cls, name: str) -> str:
        try:
            PROVIDERS[name]
        except RetrievalError as cause:
            raise ValueError(str(cause)) from cause
        return name

    @model_validator(mode="after")
    def _fits_the_provider(self) -> Self:
        if unknown := self.options.keys() - set(self.service.options):
            known = ", ".join(self.service.options)
            raise ValueError(f"options: {self.provider} has no {', '.join(sorted(unknown))}; it has {known}")
        if missing := [name for name in self.service.required if name not in self.options]:
            raise ValueError(f"options: {self.provider} needs {', '.join(missing)}")
        if self.results > self.service.most:
            raise ValueError(f"results: {self.provider} gives at most {self.service.most}, not {self.results}")
        return self

    @property
    def service(self) -> Provider:
        """The provider."""
        return PROVIDERS[self.provider]

    @property
    def replays(self) -> bool:
        """Whether the web is never asked."""
        return self.mode in ("replay", "replay_else_empty")

    def identity(self) -> dict[str, Any]:
        """What answers depend on, besides the kept answers."""
        asked = self.model_dump(mode="json", include={"provider", "results", "options"})
        misses = {"misses": "empty"} if self.mode == "replay_else_empty" else {}
        return {**asked, "version": self.service.version, **misses}

    def check_topk(self, topk: int) -> None:
        """Raise ValueError for more passages than one request gives."""
        if topk > self.results:
            raise ValueError(f"{topk} passages a query are more than the {self.results} `results` of a web search")
