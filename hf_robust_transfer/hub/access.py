"""Whether the Hub will take what is to be published, asked before anything expensive and without writing anything."""

from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ..errors import UsageError
from ..markdown import one_line
from ..sharing import without_tokens


class PublishingError(UsageError):
    """Publishing failed; the message says why, that the local files are as they were, and how to publish them later."""


class UnreachableHub(PublishingError):
    """Nobody could be asked: there is no token, or no connection."""


def checked_repo_id(repo_id: str) -> str:
    """The id of a repository on the Hub, if it can be one.

    Raises:
        UsageError: it cannot; the message says why.

    Example:
        >>> checked_repo_id("you/mine")
        'you/mine'
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"--repo_id {one_line(error)}") from None
    return repo_id


def check_access(repo_id: str, *, token: str | None = None) -> None:
    """Make sure that the Hub accepts the token, and that it may write to a repository or make it.

    Args:
        repo_id: ``user/name``, or a name alone for one of the token's owner; it need not exist.
        token: to write with, by default the one of ``hf auth login``.

    Raises:
        UsageError: no name for a repository.
        UnreachableHub: there is no token, or no connection.
        PublishingError: the Hub does not accept the token, or it may not write there.
    """
    checked_repo_id(repo_id)
    api = HfApi(token=token)
    try:
        account = api.whoami()
        owner, _, name = repo_id.rpartition("/")
        owner = owner or account["name"]
        try:
            api.auth_check(f"{owner}/{name}", write=True)
            return
        except RepositoryNotFoundError:  # then the token says what it may make
            refusal = _refusal(account, owner)
    except Exception as error:  # the Hub client raises its HTTP library's errors, too
        status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
        kind = PublishingError if 400 <= status < 500 else UnreachableHub
        raise kind(f"publishing to {repo_id} is not possible now: {reason(error)}") from error
    if refusal:
        raise PublishingError(f"publishing to {repo_id} is not possible: {refusal}")


def _refusal(account: dict[str, Any], owner: str) -> str:
    """Why an account's token may not make a repository of this owner, or nothing."""
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        return _REASONS[403]
    scopes = [
        (scope["entity"].get("name"), scope["permissions"]) for scope in token.get("fineGrained", {}).get("scoped", [])
    ]
    if scopes and not any(name == owner and "repo.write" in permissions for name, permissions in scopes):
        return _REASONS[403]
    may = {account["name"], *(each["name"] for each in account.get("orgs", []) if each.get("roleInOrg") != "read")}
    if owner not in may:
        return f"the token is of {account['name']}, who may not write to {owner}: choose --repo_id {account['name']}/…"
    return ""


_REASONS = {
    401: "the Hub does not accept the token (401): log in with `hf auth login`, or pass --token.",
    403: "the token may not write there (403): use one with write access, or another --repo_id.",
    409: "somebody else committed at the same time (409).",
    412: "somebody else committed at the same time (412).",
}


def reason(error: Exception) -> str:
    """Why a request to the Hub failed, in one sentence and without a token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    line = without_tokens(str(error).strip().partition("\n")[0].rstrip("."))
    return _REASONS.get(status or 0, f"{line}.")
