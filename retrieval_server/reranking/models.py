"""Loads a reranking model by sentence-transformers, with our errors.

If a model lacks the head that the task needs, sentence-transformers adds one with random weights. It would rank at
random, so such a model is refused.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from retrieval_server.errors import RetrievalError
from retrieval_server.rerankers import RerankSettings


class ModelSettings(RerankSettings, frozen=True):
    """The settings of a model in the process."""

    model: str
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    batch: int = Field(default=32, ge=1, description="pairs or texts that the model reads at a time")

    def answers(self) -> dict[str, Any]:
        exact = {"dtype"} if self.dtype == "float32" else set()
        return self.model_dump(mode="json", exclude={"device", "batch"} | exact)


def load(class_name: str, heads: tuple[str, ...], *, model: str, device: str, dtype: str, **options: Any) -> Any:
    """The class of sentence-transformers with that name, with the weights of `model`. Raises RetrievalError.

    `heads` are the ends of the architectures that have a trained head. What sentence-transformers saved has one, too.
    """
    try:
        import sentence_transformers
        import torch
    except ImportError as cause:
        raise RetrievalError(
            f"a reranker in the process needs sentence-transformers: {cause}",
            remedy="pip install 's3-agent[rerank]', or use a reranker by `url`",
        ) from cause
    try:
        found = _file(model, "config.json")
        made = json.loads(found).get("architectures") or [] if found else []
        if _file(model, "modules.json") is None and not any(name.endswith(heads) for name in made):
            named = ", ".join(made) or "no architecture"
            raise RetrievalError(
                f"the model {model} ({named}) has no trained head for {class_name}",
                remedy="give `rerank.model` a model that was trained for this",
            )
        types = {"dtype": getattr(torch, dtype)}
        kind = getattr(sentence_transformers, class_name)
        return kind(model, device=device, trust_remote_code=False, model_kwargs=types, **options)
    except RetrievalError:
        raise
    except Exception as cause:  # each library underneath raises its own errors
        raise RetrievalError(
            f"the reranker {model} can not be loaded on {device}: {cause}",
            remedy="give `rerank.model` a folder with such a model, or a name that this machine can download, and "
            "`rerank.device` a device of this machine",
        ) from cause


def _file(model: str, name: str) -> str | None:
    from transformers.utils.hub import cached_file

    path = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path).read_text(encoding="utf-8")
