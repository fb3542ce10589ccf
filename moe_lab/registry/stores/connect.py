"""From `s3://bucket/prefix` or `gs://bucket/prefix` and the usual environment to an open key-value store."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_lab.errors import LabError

_URL = re.compile(r"(s3|gs)://([a-z0-9][a-z0-9._-]{1,221}[a-z0-9])(?:/([A-Za-z0-9._/-]*))?")
# A silent connection is dropped after these seconds. Read by TensorStore when it opens its first connection.
_QUIET = {
    "TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS": "10",
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "30",
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "1",
}


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A registry's place in an object store.

    Attributes:
        scheme: "s3" or "gs".
        prefix: "" or a path that ends in "/".
        endpoint: the server's address where it is not the provider's own.
    """

    scheme: str
    name: str
    prefix: str
    endpoint: str | None

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.name}/{self.prefix}".rstrip("/")

    @property
    def server(self) -> str:
        return self.endpoint or {"s3": "Amazon S3", "gs": "Google Cloud Storage"}[self.scheme]

    @property
    def identity(self) -> str:
        """Tells apart equal URLs on different servers."""
        return f"{self.endpoint or ''} {self.url}"


def parse_url(url: str) -> Bucket:
    match = _URL.fullmatch(url)
    parts = (match[3] or "").strip("/").split("/") if match else []
    if match is None or any(part in (".", "..") or (not part and len(parts) > 1) for part in parts):
        raise LabError(
            f"registry {url!a} cannot be read as a place: write a folder, s3://bucket/prefix or "
            "gs://bucket/prefix; a bucket has lowercase letters, digits, '.', '-' and '_'."
        )
    prefix = "/".join(parts)
    return Bucket(
        scheme=match[1],
        name=match[2],
        prefix=f"{prefix}/" if prefix else "",
        endpoint=_endpoint(match[1], os.environ),
    )


def _endpoint(scheme: str, environment: Mapping[str, str]) -> str | None:
    names = {
        "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "gs": ("TENSORSTORE_GCS_HTTP_URL", "STORAGE_EMULATOR_HOST"),
    }[scheme]
    name = next((name for name in names if environment.get(name)), None)
    if name is None:
        return None
    address = environment[name].rstrip("/")
    if name == "STORAGE_EMULATOR_HOST" and "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise LabError(f"{name} is {environment[name]!a}: it must begin with http:// or https://.")
    return address


def connect(bucket: Bucket) -> Any:
    """A `tensorstore.KvStore` below the prefix. Talks to no server yet."""
    for name, seconds in _QUIET.items():
        os.environ.setdefault(name, seconds)
    if bucket.scheme == "gs" and bucket.endpoint:
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", bucket.endpoint)
    import tensorstore

    # Repeating is ours: only who counts the attempts can tell an own earlier write from somebody else's.
    once = {"max_retries": 0}
    context = tensorstore.Context({"s3_request_retries": once, "gcs_request_retries": once})
    spec = _s3(bucket, os.environ) if bucket.scheme == "s3" else {"driver": "gcs"}
    spec |= {"bucket": bucket.name, "path": bucket.prefix}
    return tensorstore.KvStore.open(spec, context=context).result()


def _s3(bucket: Bucket, environment: Mapping[str, str]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "driver": "s3",
        # Without this the driver asks first and writes later on servers other than Amazon's, which is a race.
        "use_conditional_write": True,
        "aws_credentials": {"type": _credentials(bucket, environment)},
    }
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if bucket.endpoint:
        spec["endpoint"] = bucket.endpoint
        region = region or "us-east-1"
    if region:
        spec["aws_region"] = region
    return spec


def _credentials(bucket: Bucket, environment: Mapping[str, str]) -> str:
    """The one source that applies: the driver's own search prints a line of log for each that does not."""
    if environment.get("AWS_ACCESS_KEY_ID"):
        return "environment"
    file = environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    if environment.get("AWS_PROFILE") or Path(file).expanduser().is_file():
        return "profile"
    roles = (
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )
    if bucket.endpoint and not any(environment.get(name) for name in roles):
        return "anonymous"
    return "default"
