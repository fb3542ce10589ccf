"""Object store servers as processes of their own, and a proxy before them that misbehaves on request."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# One thread: with several, moto looks for the key and stores it in two steps, and both of two writers may win.
_MOTO = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""
_GCS = """
import sys, time
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
time.sleep(3600)
"""
_SIGNED = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process. It holds everything in memory, so killing it loses all of it."""

    def __init__(self, code: str) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.05)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def s3_server() -> Iterator[Server]:
    """A moto server with a bucket called `bucket`."""
    server = Server(_MOTO)
    try:
        make = urllib.request.Request(f"{server.url}/bucket", method="PUT", headers={"Authorization": _SIGNED})
        urllib.request.urlopen(make, timeout=30).close()
        yield server
    finally:
        server.kill()


@contextmanager
def gcs_server() -> Iterator[Server]:
    """A gcp-storage-emulator with a bucket called `bucket`. It ignores `ifGenerationMatch`."""
    server = Server(_GCS)
    try:
        yield server
    finally:
        server.kill()


class Request:
    """What a client asked, for a rule to look at and to change."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body

    def writes(self, part: str) -> bool:
        return self.method in ("PUT", "POST") and part in self.path.replace("%2F", "/")


Answer = tuple[int, dict[str, str], bytes]
Forward = Callable[[Request], Answer]
Rule = Callable[[Request, Forward], Answer | None]
"""Answers a request, with the server's help or without; None drops the connection."""


def honest(request: Request, forward: Forward) -> Answer | None:
    return forward(request)


class Proxy:
    """Stands before a server and treats every request as its `rule` says.

    Attributes:
        url: of a registry behind it.
        seen: the method and path of every request so far.
        sent: bytes of answers so far.
    """

    def __init__(self, server: str) -> None:
        self.start_over("", honest)
        self._server = server.removeprefix("http://")
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *arguments: Any) -> None:
                pass

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, self.path, dict(self.headers.items()), body)
                proxy.seen.append(f"{self.command} {self.path.replace('%2F', '/')}")
                answer = proxy.rule(request, proxy.forward)
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, content = answer
                self.send_response_only(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, headers.get(name, value) if self.command == "HEAD" else value)
                self.end_headers()
                if self.command != "HEAD":
                    proxy.sent += len(content)
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._listener.daemon_threads = True
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def start_over(self, url: str, rule: Rule) -> None:
        self.url = url
        self.rule = rule
        self.sent = 0
        self.seen: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._listener.server_address[1]}"

    def forward(self, request: Request) -> Answer:
        connection = http.client.HTTPConnection(self._server, timeout=30)
        try:
            connection.request(request.method, request.path, request.body, request.headers)
            response = connection.getresponse()
            skipped = ("transfer-encoding", "connection", "date", "server")
            headers = {name: value for name, value in response.getheaders() if name.lower() not in skipped}
            return response.status, headers, response.read()
        finally:
            connection.close()

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()


@contextmanager
def proxy_before(server: str) -> Iterator[Proxy]:
    proxy = Proxy(server)
    try:
        yield proxy
    finally:
        proxy.close()


def without_conditions(request: Request, forward: Forward) -> Answer | None:
    """A service of before conditional writes: it takes the condition for an unknown header and overwrites."""
    request.headers = {name: value for name, value in request.headers.items() if name.lower() != "if-none-match"}
    return forward(request)


class Corrected:
    """What gcp-storage-emulator lacks: ranges of listings, 416 past the end, JSON errors, `ifGenerationMatch=0`."""

    def __init__(self, conditions: bool = True) -> None:
        self._conditions = conditions
        self._writing = threading.Lock()

    def __call__(self, request: Request, forward: Forward) -> Answer | None:
        if self._conditions and "ifGenerationMatch=0" in request.path:
            with self._writing:
                bucket, _, rest = request.path.partition("/b/")[2].partition("/")
                name = rest.partition("name=")[2].partition("&")[0]
                held, _, _ = forward(Request("GET", f"/storage/v1/b/{bucket}/o/{name}?alt=json", {}, b""))
                return (412, {}, b"") if held == 200 else forward(request)
        status, headers, content = forward(request)
        query = urllib.parse.parse_qs(request.path.partition("?")[2])
        if status == 200 and "startOffset" in query:
            found = json.loads(content)
            first, end = query["startOffset"][0], query["endOffset"][0]
            found["items"] = [item for item in found.get("items", ()) if first <= item["name"] < end]
            content = json.dumps(found).encode()
        if status == 404 and "startOffset" in query:
            content = b'{"error": {"code": 404, "message": "The specified bucket does not exist."}}'
        return (416, {}, b"") if status == 206 and not content else (status, headers, content)


ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
}


def environment_for(endpoint: str) -> dict[str, str]:
    """The variables that send s3:// and gs:// to this address."""
    return {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint, "TENSORSTORE_GCS_HTTP_URL": endpoint}
