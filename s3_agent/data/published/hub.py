"""Lists the wanted files of a hub data set, from the hub or, without a network, from its cache."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from s3_agent.errors import DataError
from s3_agent.names import ContentHash, GitHash, RelativePath


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Wanted(_Frozen):
    """Files of one hub data set, by patterns."""

    repo: str
    patterns: tuple[str, ...]
    revision: str = "main"


class HubFile(_Frozen):
    """One listed file. `oid` is its SHA-256 where `lfs`, else git's SHA-1.

    Listed values become paths in the hub's cache, so anything except hex digits and a path below it is refused.
    """

    repo: RelativePath
    commit: GitHash
    path: RelativePath
    size: int = Field(ge=0)
    oid: ContentHash
    lfs: bool

    @property
    def name(self) -> str:
        """Its name in a manifest."""
        return f"{self.repo}/{self.path}"

    def cached(self) -> Path | None:
        """Its path in the hub's cache; None if it is not there."""
        from huggingface_hub import constants, try_to_load_from_cache

        found = try_to_load_from_cache(
            self.repo, self.path, cache_dir=constants.HF_HUB_CACHE, revision=self.commit, repo_type="dataset"
        )
        return Path(found) if isinstance(found, str) else None


def listed(wanted: Wanted) -> list[HubFile]:
    """The wanted files by name. Raises DataError if they can not be listed."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE:
        return _in_cache(wanted)
    try:
        api = HfApi(endpoint=constants.ENDPOINT)
        info = api.dataset_info(wanted.repo, revision=wanted.revision, files_metadata=True)
    except OfflineModeIsEnabled:
        return _in_cache(wanted)
    except (HfHubHTTPError, OSError, RuntimeError) as cause:
        raise DataError(
            f"the data set {wanted.repo} can not be listed at {constants.ENDPOINT}: {cause}",
            remedy="check the connection, HF_ENDPOINT and HF_TOKEN; with HF_HUB_OFFLINE=1 only the cache is used",
        ) from cause
    except Exception as cause:
        # The hub's HTTP library, and with it the error classes, changes between its releases.
        if "http" not in type(cause).__module__:
            raise
        raise DataError(
            f"{constants.ENDPOINT} does not answer: {cause}", remedy="check the connection and HF_ENDPOINT"
        ) from cause
    return [
        _described(
            wanted,
            constants.ENDPOINT,
            commit=info.sha,
            path=file.rfilename,
            size=file.size or 0,
            oid=file.lfs.sha256 if file.lfs else file.blob_id,
            lfs=file.lfs is not None,
        )
        for file in sorted(info.siblings or [], key=lambda file: file.rfilename)
        if any(fnmatch(file.rfilename, pattern) for pattern in wanted.patterns)
    ]


def _described(wanted: Wanted, where: str, **fields: Any) -> HubFile:
    """One file of a listing. Raises DataError for an invalid name or hash."""
    try:
        return HubFile(repo=wanted.repo, **fields)
    except ValidationError as cause:
        told = "; ".join(f"{'.'.join(map(str, item['loc']))} {item['input']!r}" for item in cause.errors())
        raise DataError(
            f"{where} lists an invalid file of {wanted.repo}: {told}",
            remedy="nothing was written; set HF_ENDPOINT to another mirror, or HF_HOME to a complete cache",
        ) from cause


def _in_cache(wanted: Wanted) -> list[HubFile]:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                wanted.repo,
                repo_type="dataset",
                revision=wanted.revision,
                allow_patterns=list(wanted.patterns),
                cache_dir=constants.HF_HUB_CACHE,
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError as cause:
        raise DataError(
            f"HF_HUB_OFFLINE is set and {wanted.repo} is not in the cache {constants.HF_HUB_CACHE}",
            remedy="fetch it once with a connection, or point HF_HOME at a cache that has it",
        ) from cause
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, oid = path.relative_to(folder).as_posix(), path.resolve().name
        if any(fnmatch(name, pattern) for pattern in wanted.patterns):
            size = path.stat().st_size
            files.append(
                _described(wanted, str(folder), commit=folder.name, path=name, size=size, oid=oid, lfs=len(oid) == 64)
            )
    return files
