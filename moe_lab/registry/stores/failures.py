"""What went wrong at an object store, from TensorStore's status text to a line that a person can act on."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to a user that may use this bucket",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file",
}
_DENIED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
_BAD_CREDENTIALS = re.compile(r"credential|ExpiredToken|InvalidToken|InvalidAccessKeyId|SignatureDoesNotMatch", re.I)
# Curl's numbers for: name not found, no connection; what the service itself may answer to a busy client.
_UNREACHABLE = ("5", "6", "7")
_BUSY = ("408", "409", "429", "500", "502", "503", "504")


class StoreFailure(OSError):
    """A place that could not do its work.

    Attributes:
        advice: what to do, without a capital letter and a full stop.
        passing: trying again may help.
    """

    def __init__(self, number: int, reason: str, where: str, advice: str, passing: bool = False) -> None:
        super().__init__(number, reason, where)
        self.advice = advice
        self.passing = passing


@dataclass(frozen=True, kw_only=True)
class _Status:
    """The parts of `CODE: message [http_response_code='404'] [curl_code='7']`."""

    code: str
    message: str
    http: str
    curl: str


def _read(error: Exception) -> _Status:
    text = re.sub(r"All \d+ retry attempts failed: ", "", str(error))
    match = re.match(r"([A-Z_]+): (.*)", text, re.DOTALL)
    code, message = (match[1], match[2]) if match else ("UNKNOWN", text)
    http = re.search(r"\[http_response_code='(\d+)'\]", message)
    curl = re.search(r"\[curl_code='(\d+)'\]", message)
    message = " ".join(message.partition(" [")[0].split()).rstrip(".")
    return _Status(code=code, message=message, http=http[1] if http else "", curl=curl[1] if curl else "")


def out_of_range(error: Exception) -> bool:
    """Whether a read failed because the object is shorter than the bytes asked for."""
    return _read(error).code == "OUT_OF_RANGE"


def explain(error: Exception, where: str, endpoint: str) -> StoreFailure:
    """Sorts a failure by what a person can do about it.

    Args:
        where: the URL of the registry or of the file.
        endpoint: the address that requests went to.
    """
    status, scheme = _read(error), where.partition(":")[0]
    answer = f" ({status.http} {status.message})" if status.http else f" ({status.message})"
    if _BAD_CREDENTIALS.search(str(error)):
        return StoreFailure(errno.EACCES, f"no usable credentials{answer}", where, _CREDENTIALS[scheme])
    if status.code in _DENIED or status.http in ("401", "403"):
        return StoreFailure(errno.EACCES, f"access denied{answer}", where, _CREDENTIALS[scheme])
    if status.code == "NOT_FOUND":
        return missing_bucket(where)
    if status.curl in _UNREACHABLE:
        reason = f"{endpoint} cannot be reached{answer}"
        return StoreFailure(errno.EHOSTUNREACH, reason, where, "check the network and the address", True)
    if status.http in _BUSY or status.curl or status.code in ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"):
        reason = f"{endpoint} does not answer as it should{answer}"
        return StoreFailure(errno.EBUSY, reason, where, "check that service, or wait", True)
    return StoreFailure(errno.EIO, f"{endpoint} failed{answer}", where, "check that service")


def missing_bucket(where: str) -> StoreFailure:
    # Not ENOENT, which becomes FileNotFoundError and means that one file is missing.
    bucket = where.partition("://")[2].partition("/")[0]
    return StoreFailure(errno.ENXIO, f"there is no bucket {bucket}", where, "make it, or correct its name")
