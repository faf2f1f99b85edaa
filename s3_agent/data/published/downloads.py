"""Downloads published files: lists them with sizes and hashes, fetches them, and checks that they are what was
published.

Names, sizes and hashes are requested once and kept in `downloads.json`, so that a later run fetches the same commit.
Hub files are stored in huggingface_hub's cache (HF_HOME), where other programs, and we without a network, find them.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from s3_agent.data.files.stages import Ledger, Need, Stage
from s3_agent.data.files.whole import Report, write_whole
from s3_agent.data.published.fetching import fetch, git_blob_sha1
from s3_agent.data.published.hub import HubFile, Wanted, listed
from s3_agent.errors import DataError

AT_A_TIME = 4


class Downloads:
    """The published files of one data folder."""

    def __init__(self, ledger: Ledger, *, wanted: Sequence[Wanted], raw: Mapping[str, str]) -> None:
        self._ledger = ledger
        self._wanted = wanted
        self._raw = raw  # name -> address of a file outside the hub
        self._plan = ledger.folder / "downloads.json"
        self._unlisted: dict[str, DataError] = {}

    def files(self) -> list[HubFile]:
        """All wanted hub files, as first listed. Raises DataError."""
        files = self._listed()
        if self._unlisted:
            raise next(iter(self._unlisted.values()))
        return files

    def sizes(self, repos: set[str] | None = None) -> tuple[list[HubFile], dict[str, str]]:
        """The wanted files (of some data sets) that can be listed; for each data set that can not be, the reason."""
        files = [file for file in self._listed() if repos is None or file.repo in repos]
        return files, {repo: cause.message for repo, cause in self._unlisted.items() if repos is None or repo in repos}

    def _listed(self) -> list[HubFile]:
        asked = [wanted.model_dump(mode="json") for wanted in self._wanted]
        try:
            plan = json.loads(self._plan.read_text(encoding="utf-8"))
            if plan["wanted"] == asked:
                return [HubFile.model_validate(file) for file in plan["files"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no list exists yet, or it is for other files
        files = []
        for wanted in self._wanted:
            if wanted.repo in self._unlisted:
                continue
            try:
                files += _all_of(wanted)
            except DataError as cause:
                self._unlisted[wanted.repo] = cause
        if self._unlisted:
            return files
        plan = {"wanted": asked, "files": [file.model_dump(mode="json") for file in files]}
        write_whole(self._plan, json.dumps(plan, indent=1))
        return files

    def of(self, repos: set[str]) -> list[HubFile]:
        """The wanted files of some data sets."""
        return [file for file in self.files() if file.repo in repos]

    def paths(self, repo: str, pattern: str = "*") -> list[Path]:
        """Fetched files of one data set, ordered by name. Raises DataError for a missing one."""
        found = []
        for file in self.files():
            if file.repo == repo and fnmatch(file.path, pattern):
                path = file.cached()
                if path is None:
                    raise DataError(f"{file.name} was not fetched", remedy="run: s3-agent data download")
                found.append(path)
        return found

    def raw_path(self, name: str) -> Path:
        """The path of a file from outside the hub."""
        return self._ledger.folder / "downloads" / name

    def stage(self) -> Stage:
        """The whole download as the first stage."""
        return Stage(name="download", made_of=self._made_of, outputs=self._outputs, work=self._work, need=self._need)

    def _made_of(self) -> dict[str, Any]:
        commits = {file.repo: file.commit for file in self.files()}
        return {"hub": commits, "files": len(self.files()), "raw": dict(self._raw)}

    def _outputs(self) -> dict[str, Path]:
        places = {file.name: file.cached() or Path(file.name) for file in self.files()}
        return places | {f"raw/{name}": self.raw_path(name) for name in self._raw}

    def _need(self) -> Need:
        from huggingface_hub import constants

        files, unknown = self.sizes()
        count = sum(file.size for file in files if file.cached() is None)
        return Need(download=count, disk={Path(constants.HF_HUB_CACHE): count}, unknown=unknown)

    def _work(self, report: Report) -> dict[str, Any]:
        files = self.files()
        total, done, lock = sum(file.size for file in files), 0, threading.Lock()

        def moved(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                report("downloading", done, total)

        pool = ThreadPoolExecutor(AT_A_TIME)
        try:
            for _ in pool.map(lambda file: self._fetch(file, moved), files):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
        for name, url in self._raw.items():
            self._fetch_raw(url, self.raw_path(name))
        for file in files:
            self._check(file, report)
        return {"files": len(files) + len(self._raw), "bytes": total}

    def _fetch(self, file: HubFile, moved: Callable[[int], None]) -> None:
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.file_download import repo_folder_name
        from huggingface_hub.utils import build_hf_headers

        there = file.cached()
        if there is not None and there.stat().st_size == file.size:
            return moved(file.size)
        if constants.HF_HUB_OFFLINE:
            raise DataError(
                f"HF_HUB_OFFLINE is set and {file.name} is not complete in the cache {constants.HF_HUB_CACHE}",
                remedy="fetch it once with a connection",
            )
        if there is not None:
            _forget(there)
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=file.repo, repo_type="dataset")
        blob, pointer = folder / "blobs" / file.oid, folder / "snapshots" / file.commit / file.path
        url = hf_hub_url(file.repo, file.path, repo_type="dataset", revision=file.commit, endpoint=constants.ENDPOINT)
        fetch(url, blob, size=file.size, headers=build_hf_headers(), moved=moved)
        _enter(blob, pointer)

    def _check(self, file: HubFile, report: Report) -> None:
        for last in (False, True):
            path = file.cached()
            assert path is not None
            found = self._ledger.hashes.of(path, report) if file.lfs else git_blob_sha1(path)
            if found == file.oid:
                return
            _forget(path)
            if last:
                raise DataError(
                    f"{file.name} arrived with the hash {found}, but {file.oid} was published",
                    remedy="the mirror or the connection changes files: set another HF_ENDPOINT and run it again",
                )
            self._fetch(file, lambda _: None)

    def _fetch_raw(self, url: str, path: Path) -> None:
        if path.exists():
            return
        whole = path.with_name(path.name + ".unread")
        fetch(url, whole, size=None, headers={}, moved=lambda _: None)
        try:
            json.loads(whole.read_text(encoding="utf-8"))
        except ValueError as cause:
            whole.unlink()
            raise DataError(f"{url} is not JSON: {cause}", remedy="run it again, or name another address") from cause
        whole.replace(path)


def _all_of(wanted: Wanted) -> list[HubFile]:
    found = listed(wanted)
    for pattern in wanted.patterns:
        if not any(fnmatch(file.path, pattern) for file in found):
            raise DataError(
                f"{wanted.repo} has no file {pattern}", remedy="it may have moved: check the data set's page"
            )
    return found


def _enter(blob: Path, pointer: Path) -> None:
    """Put a fetched file into the hub's cache under its name and commit, without a request to the server."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:  # the file system has no links
        shutil.copyfile(blob, pointer)


def _forget(path: Path) -> None:
    """Remove a file that is not what was published from the hub's cache."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
