"""Uploading a saved policy to the Hugging Face Hub."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from workbench.errors import RunError, SettingError
from workbench.text import SIZES, scaled

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Upload what `policy.save` wrote to `folder` to the model repository `repo_id`, which is made if it is new.

    It is said first what goes where, and how much. Returns the URL of the files. Raises SettingError where there is no
    login, no right to write, or the repository holds something else; RunError where the Hub cannot be reached or fails.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    check_id(repo_id)
    api = HfApi(token=token)
    try:
        user = api.whoami()["name"]
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        there = _files(api, repo_id, revision)
        _check_kind(folder, repo_id, there)
        _say(folder, repo_id, private, revision, there is not None)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message
            or f"Upload of {json.loads((folder / 'workbench.json').read_text())['kind']} by workbench",
        )
    except LocalTokenNotFoundError as error:
        raise SettingError(_no_login()) from error
    except OfflineModeIsEnabled as error:
        raise RunError("The Hub is switched off here (HF_HUB_OFFLINE is set), so nothing can be uploaded.") from error
    except HfHubHTTPError as error:
        raise _said(error, repo_id) from error
    except ValueError as error:  # the Hub refused the card's metadata
        raise SettingError(f"{repo_id}: the Hub does not take the model card: {error}") from error
    except Exception as error:
        # no network: httpx and its layers have many names for it, and the upload wraps them in RuntimeError
        raise RunError(
            f"The Hub at {api.endpoint} could not be reached for {repo_id}: {type(error).__name__}: {error}. What was "
            "to be uploaded can be written with save(folder) and uploaded later."
        ) from error
    at = f"/tree/{revision}" if revision else ""
    return f"{api.endpoint}/{repo_id}{at}"


def saved(what: Any, repo_id: str, **how: Any) -> str:
    """Save a policy or a run to a folder for the time being, and upload that. See `upload`."""
    check_id(repo_id)
    with tempfile.TemporaryDirectory(prefix="workbench-push-") as place:
        return upload(Path(what.save(Path(place) / "upload")), repo_id, **how)


def check_id(repo_id: str) -> None:
    """Raise SettingError for a repository id that the Hub would refuse."""
    if not isinstance(repo_id, str) or not REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
        raise SettingError(
            f"repo_id={repo_id!r} is no name on the Hub: give 'you/name' or 'name', of letters, digits, '-', '_' "
            "and '.'."
        )


def _files(api: Any, repo_id: str, revision: str | None) -> list[str] | None:
    """The files of the repository; None where there is none that we can see."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return api.list_repo_files(repo_id, revision=revision)
    except RepositoryNotFoundError as error:
        if error.response is not None and error.response.status_code == 401 and api.token is None:
            raise
        return None
    except RevisionNotFoundError:
        return []


def _check_kind(folder: Path, repo_id: str, there: list[str] | None) -> None:
    """An adapter does not go into a repository of a whole model, nor the other way round."""
    mine = "adapter_config.json" if (folder / "adapter_config.json").is_file() else "config.json"
    other = "config.json" if mine == "adapter_config.json" else "adapter_config.json"
    if there and other in there and mine not in there:
        holds, goes = ("a whole model", "an adapter") if other == "config.json" else ("an adapter", "a whole model")
        raise SettingError(f"{repo_id} holds {holds}, and this is {goes}. Give another name; nothing was uploaded.")


def _say(folder: Path, repo_id: str, private: bool, revision: str | None, exists: bool) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    whose = "that is there" if exists else "new, private" if private else "new, PUBLIC"
    print(
        f"Uploading {len(files)} files, {scaled(size, SIZES)}, to {repo_id}{f' ({revision})' if revision else ''} "
        f"({whose}): "
        + ", ".join(f"{path.relative_to(folder)} {scaled(path.stat().st_size, SIZES)}" for path in files)
    )


def _no_login() -> str:
    return "There is no login to the Hub here: `hf auth login`, or give token=... (a token with the right to write)."


def _said(error: Any, repo_id: str) -> SettingError | RunError:
    """What an answer of the Hub means for the one who asked."""
    code = error.response.status_code if error.response is not None else 0
    detail = getattr(error, "server_message", None) or str(error).splitlines()[0]
    if code == 401:
        return SettingError(f"The Hub does not know this token ({detail}). {_no_login()}")
    if code in (403, 404):
        return SettingError(
            f"This token may not write to {repo_id} ({detail}). Is the name before the slash yours or your "
            "organisation's, and has the token the right to write?"
        )
    if code == 409:
        return SettingError(f"{repo_id} is taken by something else, or was changed meanwhile ({detail}).")
    return RunError(f"The Hub failed on {repo_id} (status {code}: {detail}). Nothing is lost; push again later.")
