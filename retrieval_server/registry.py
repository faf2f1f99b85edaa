"""Finds variants by name: our own in a table, and those that installed packages register as entry points.

Index kinds here, and agents, rewards and data sets in `s3_agent`, are found through a `Registry`. A variant is loaded
when its name is first used, so that our own table costs no import. A broken package can not stop a command that does
not use its variants.
"""

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

from retrieval_server.errors import RetrievalError

OURS = "s3-agent"


@dataclass(frozen=True, slots=True)
class Variant:
    """A name, its object as `module:attribute`, and the package (with version) that provides it."""

    name: str
    target: str
    package: str


class Registry[T](Mapping[str, T]):
    """The variants of one kind by name, for example `what="agent"` with the entry-point group `s3_agent.agents`.

    `own` maps our names to `module:attribute`. An installed package adds one by an entry point of `group`:

        [project.entry-points."s3_agent.agents"]
        my_agent = "my_package.agent:METHOD"

    `kind` is what the object must be. `error(message, remedy=…)` makes the exception that is raised.
    """

    def __init__(
        self, what: str, *, group: str, own: Mapping[str, str], kind: type[T], error: Callable[..., Exception]
    ) -> None:
        self.what = what
        self.group = group
        self.own = own
        self._kind = kind
        self._error = error
        self._loaded: dict[str, T] = {}

    def get(self, name: str, default: Any = None) -> Any:
        """Like `[name]`, but `default` for an unregistered name."""
        if name not in self:
            return default
        return self[name]

    @cached_property
    def _variants(self) -> dict[str, list[Variant]]:
        found = {name: [Variant(name, target, OURS)] for name, target in self.own.items()}
        brought = sorted(entry_points(group=self.group), key=lambda point: (point.name, point.value))
        for point in brought:
            package = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
            variant = Variant(point.name, point.value.replace(" ", ""), package)
            if variant not in found.setdefault(point.name, []):  # a package may be in two folders of the path
                found[point.name].append(variant)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._variants

    def __iter__(self) -> Iterator[str]:
        return iter(self._variants)

    def __len__(self) -> int:
        return len(self._variants)

    def __getitem__(self, name: str) -> T:
        """The variant with that name. Raises `error` if it is unknown, broken, or registered by two packages."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def variants(self) -> list[Variant]:
        """All variants, including names that two packages register."""
        return [variant for claimed in self._variants.values() for variant in claimed]

    def loadable(self) -> Iterator[T]:
        """Every variant that can be loaded, without broken ones and names that two packages register."""
        for name in self:
            with suppress(Exception):
                yield self[name]

    def _load(self, name: str) -> T:
        claimed = self._variants.get(name, [])
        if not claimed:
            close = difflib.get_close_matches(name, self._variants, n=1)
            raise self._error(
                f"there is no {self.what} {name!r}; there are {', '.join(self._variants)}",
                remedy=f"do you mean {close[0]}?" if close else f"name one of them, or install the package of {name!r}",
            )
        if len(claimed) > 1:
            raise self._error(
                f"the {self.what} {name!r} is registered by two packages: "
                + " and ".join(f"{one.package} ({one.target})" for one in claimed),
                remedy="uninstall one of them, or rename its entry point",
            )
        [variant] = claimed
        module, _, attribute = variant.target.partition(":")
        try:
            value = getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as cause:  # a third-party package may raise anything when it is imported
            raise self._error(
                f"the {self.what} {name!r} of the package {variant.package} can not be loaded from {variant.target}: "
                f"{type(cause).__name__}: {cause}",
                remedy=f"repair or uninstall {variant.package}",
            ) from cause
        if not isinstance(value, self._kind):
            raise self._error(
                f"the {self.what} {name!r} of the package {variant.package} is a {type(value).__name__}, not a "
                f"{self._kind.__name__}: {variant.target}",
                remedy=f"its entry point must name a {self._kind.__module__}.{self._kind.__qualname__}",
            )
        return value


def settings_of(registry: Registry[Any], values: Any, *, field: str, default: str | None = None) -> Any:
    """The settings of the variant that `values[field]` names, checked by the variant's class `settings`.

    For a pydantic validator that comes before: what is no dict is returned unchanged. Without the field, the variant
    is `default`. Raises ValueError.
    """
    if not isinstance(values, dict):
        return values
    if field not in values and default is None:
        raise ValueError(f"`{field}` is missing: name one of {', '.join(registry)}")
    try:
        variant = registry[str(values.get(field, default))]
    except RetrievalError as cause:
        raise ValueError(str(cause)) from cause
    return variant.settings.model_validate(values)
