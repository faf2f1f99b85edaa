"""A module that does not import."""

import no_such_module_of_anybody  # noqa: F401  # pyright: ignore[reportMissingImports]


class Never:
    def run(self) -> None:
        pass
