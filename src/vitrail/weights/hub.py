"""Download files of the Hugging Face hub by name: ``hf://owner/name[@revision][/file]``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrail.errors import WeightsError

HUB_PREFIX = "hf://"
# What weights are called in a repository or its folder, the safe format first.
WEIGHTS_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[\w./@ -]+))?")


def split_hub_name(name: str) -> tuple[str, str | None, str | None]:
    """Split an ``hf://`` name into repository, revision and file; None for missing parts.

    Raises:
        WeightsError: It is not of the form ``hf://owner/name[@revision][/file]``.
    """
    match = _NAME.fullmatch(name.removeprefix(HUB_PREFIX))
    if match is None:
        raise WeightsError(
            f"{name!r} is not a valid Hugging Face repository id; use hf://owner/name, or "
            "hf://owner/name/file.safetensors"
        )
    return match["repo"], match["revision"], match["file"]


def fetch_weights(name: str) -> Path:
    """Download a file of weights, or take it from the local cache.

    Args:
        name: ``hf://owner/name`` (its ``model.safetensors``, else its ``pytorch_model.bin``, or the index of either) or
            ``hf://owner/name/file``; ``@revision`` may follow the repository's name.

    Returns:
        The file in the hub's local cache; of an index, its shards are still to be fetched.

    Raises:
        WeightsError: The name is malformed, the repository or file does not exist or may not be read, or the hub
            cannot be reached.
    """
    repo, _, wanted = split_hub_name(name)
    if wanted is not None:
        path = fetch_file(name, wanted)
    else:
        path = next((p for p in (fetch_file(name, file) for file in WEIGHTS_FILES) if p is not None), None)
    if path is None:
        file = wanted or " or ".join(name for name in WEIGHTS_FILES if not name.endswith(".index.json"))
        raise WeightsError(f"{repo} on the hub has no {file}; name one of its files as hf://{repo}/FILE")
    return path


def fetch_file(name: str, file: str) -> Path | None:
    """Download one file of a repository; None if the repository exists without it.

    Args:
        name: ``hf://owner/name[@revision][/...]``.
        file: Path inside the repository.

    Raises:
        WeightsError: As for :func:`fetch_weights`, but for a missing file.
    """
    # Imported here: what stays off the hub should not wait for its client.
    from huggingface_hub import errors, hf_hub_download

    repo, revision, _ = split_hub_name(name)
    try:
        with _without_retry_messages():
            return Path(hf_hub_download(repo, file, revision=revision))
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{repo} on the hub is gated: accept its terms on its page, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"the hub has no repository {repo} that you may read; check the name, or log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{repo} on the hub has no revision {revision}; leave out @{revision}") from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(repo, file, error.__cause__ or error) from error
    except errors.EntryNotFoundError:
        return None
    except errors.HFValidationError as error:
        raise WeightsError(f"{name!r} is not a valid Hugging Face repository id ({_one_line(error)})") from error
    # The transport's own failures; the client's library differs from version to version, its alias does not.
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise _unreachable(repo, file, error) from error


def _unreachable(repo: str, file: str, cause: BaseException) -> WeightsError:
    return WeightsError(
        f"cannot reach the hub for {repo}/{file} ({_one_line(cause)}); download it where the network allows and give "
        "its path instead"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def _without_retry_messages() -> Iterator[None]:
    """Silence the client's line for each retry; the final error has the cause."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
