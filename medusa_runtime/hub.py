"""Where a model's files come from: a folder here, or a Hugging Face Hub repository at one commit."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.constants import HUGGINGFACE_HEADER_X_REPO_COMMIT
from huggingface_hub.errors import EntryNotFoundError, RemoteEntryNotFoundError, RevisionNotFoundError

from .errors import InputError

CONFIG = "config.json"
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
FAILURES = (OSError, ValueError, httpx.HTTPError)  # of a question to the Hub


@dataclass(frozen=True)
class Hub:
    """How the Hub is asked for a repository, in the words of huggingface_hub and transformers.

    revision: a branch, tag or commit; by default the main branch.
    token: to get in with; by default the one that this machine is logged in with (False: none).
    cache_dir: folder of downloads; by default huggingface_hub's own.
    force_download: take files again that are in the cache.
    local_files_only: take nothing but what is in the cache.
    """

    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    force_download: bool = False
    local_files_only: bool = False


DEFAULT = Hub()


@dataclass(frozen=True)
class Source:
    """A folder, or a Hub repository at one commit, so that config, tokenizer, heads and weights read from it belong together.

    Made by :meth:`of`, which finds out the commit that a branch or tag stands for; ``hub.revision`` is then that commit.
    """

    where: str
    hub: Hub = DEFAULT

    @classmethod
    def of(cls, where: str | Path, hub: Hub = DEFAULT) -> Source:
        """The folder or Hub repository ``where``. Where the Hub cannot be reached, and the revision is in the cache, the
        cache is all that is read.

        Raises:
            InputError: neither a folder here nor a repository and revision that the Hub could give.
        """
        where = str(where)
        if where and Path(where).is_dir():
            if hub.revision is not None:
                raise InputError(
                    f"{where}: is a folder, which has no revision {hub.revision!r}; leave the revision out"
                )
            return cls(where, hub)
        if not REPOSITORY.fullmatch(where):
            raise InputError(
                f"{where}: no such folder here, and no Hugging Face Hub id (owner/name); check the spelling"
            )
        reason = "only the cache was to be read, and does not hold it"
        if not hub.local_files_only:
            try:
                return cls(where, replace(hub, revision=_ask(where, hub)))
            except RevisionNotFoundError:
                raise InputError(
                    f"{where}: has no revision {hub.revision or 'main'!r} on the Hugging Face Hub; name a branch, tag or commit of it"
                ) from None
            except FAILURES as error:
                reason = _told(error)
        commit = None if hub.force_download else _cached(where, hub)
        if commit is None:
            raise _refused(where, hub, reason)
        return cls(where, replace(hub, revision=commit, local_files_only=True))

    @property
    def commit(self) -> str | None:
        """The repository's commit; None of a folder."""
        return self.hub.revision if self.hub.revision and COMMIT.fullmatch(self.hub.revision) else None

    def options(self) -> dict[str, Any]:
        """Keyword arguments by which transformers' ``from_pretrained`` reads the same commit in the same way."""
        return asdict(self.hub)

    def file(self, name: str) -> Path | None:
        """The file ``name``, downloaded if need be; None if there is none.

        Raises:
            InputError: the Hub did not give it.
        """
        if Path(self.where).is_dir():
            path = Path(self.where) / name
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(self.where, name, **self.options()))
        except RemoteEntryNotFoundError:
            return None
        except (EntryNotFoundError, *FAILURES) as error:
            if self.hub.local_files_only:
                return None  # what is not in the cache is not there
            raise _refused(self.where, self.hub, _told(error)) from None


def _ask(where: str, hub: Hub) -> str | None:
    """The commit that the Hub has at the revision; its answer is kept in the cache."""
    with suppress(RemoteEntryNotFoundError):  # heads may have no config.json
        # One question without retries first: a wrong name, or no network, should not cost a minute.
        get_hf_file_metadata(hf_hub_url(where, CONFIG, revision=hub.revision), token=hub.token)
    try:
        return Path(hf_hub_download(where, CONFIG, **asdict(hub))).parent.name
    except RemoteEntryNotFoundError as error:
        return error.response.headers.get(HUGGINGFACE_HEADER_X_REPO_COMMIT) or hub.revision


def _cached(where: str, hub: Hub) -> str | None:
    """The commit that the cache has at the revision, if any."""
    try:
        folder = snapshot_download(
            where, revision=hub.revision, cache_dir=hub.cache_dir, local_files_only=True, allow_patterns=[]
        )
    except FAILURES:
        return None
    return Path(folder).name


def _told(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _refused(where: str, hub: Hub, reason: str) -> InputError:
    at = f" at revision {hub.revision!r}" if hub.revision else ""
    return InputError(
        f"{where}: no such folder here, and the Hugging Face Hub did not give it{at} ({reason}); check the spelling, the network and your access"
    )
