"""What a failed call to Daytona means: whether to make it again at once, later in another attempt, or never."""

from mrp.specs.errors import InfraError

_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE = 60.0


def pause(error: Exception, attempt: int) -> float | None:
    """Seconds to wait before the same call may help, as the service says; None when it will not."""
    if not _is_cut(error) and getattr(error, "status_code", None) not in _PASSING:
        return None
    headers = getattr(error, "headers", None) or {}
    after = {name.lower(): value for name, value in headers.items()}.get("retry-after")
    try:
        wanted = float(after or 0)
    except ValueError:
        wanted = 0.0
    seconds = max(wanted, 0.1 * 2**attempt)
    return seconds if seconds <= _LONGEST_PAUSE else None


def _is_cut(error: BaseException | None) -> bool:
    """Whether a connection broke, in this error or below it: the SDK does not know all of these by name."""
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "urllib3"):
            return getattr(error, "status_code", None) is None
        error = error.__cause__
    return False


def failure(what: str, error: Exception, reason: str) -> InfraError:
    """What a failed call is for the build; refusals that say nothing of the moment are not worth another attempt."""
    status = getattr(error, "status_code", None)
    said = str(error).strip().partition("\n")[0][:300] or type(error).__name__
    said = f"{said} ({reason})" if reason else said
    if status in (401, 403):
        return InfraError(f"Daytona could not {what}: {said}; check DAYTONA_API_KEY", retryable=False)
    return InfraError(f"Daytona could not {what}: {said}", retryable=status not in (400, 405, 422))
