"""The services that search the web, by name. Each module holds one service's requests and answers, and nothing else."""

from retrieval_server.backends.web.providers.base import Provider
from retrieval_server.errors import RetrievalError
from retrieval_server.registry import Registry

PROVIDERS: Registry[Provider] = Registry(
    "provider of web search",
    group="retrieval_server.web_providers",
    own={
        name: f"retrieval_server.backends.web.providers.{name}:PROVIDER"
        for name in ("serper", "serpapi", "tavily", "brave", "google_cse")
    },
    kind=Provider,
    error=RetrievalError,
)
