"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from moe_lab.generation.receipts import Receipt

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class ServerMetrics:
    """Counters of one server; all begin with `moe_lab_`."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.texts = Gauge("moe_lab_texts", "Texts that are being written or wait.", registry=own)
        self._ended = Counter("moe_lab_texts_ended", "Texts, by why they ended.", ["end"], registry=own)
        self.refused = Counter(
            "moe_lab_requests_refused", "Requests, by the status they got.", ["status"], registry=own
        )
        self._read = Counter("moe_lab_tokens_read", "Tokens read, of prompts and written ones.", registry=own)
        self._written = Counter("moe_lab_tokens_written", "Tokens written.", registry=own)
        self._router = Counter("moe_lab_router_multiply_adds", "The router's own.", registry=own)
        self._modules = Counter("moe_lab_module_multiply_adds", "Of each module.", ["module"], registry=own)
        self._first = Histogram(
            "moe_lab_first_token_seconds", "From a request to its first token.", buckets=_SECONDS, registry=own
        )
        self._next = Histogram(
            "moe_lab_next_token_seconds", "From one token of a text to the next.", buckets=_SECONDS, registry=own
        )

    def note_token(self, seconds: float, *, first: bool) -> None:
        """How long a client waited for a token."""
        (self._first if first else self._next).observe(seconds)

    def note_text(self, written: int, receipt: Receipt, end: str) -> None:
        """A text that ended."""
        self._ended.labels(end).inc()
        self._read.inc(receipt.tokens_read)
        self._written.inc(written)
        self._router.inc(receipt.router_multiply_adds)
        for use in receipt.modules:
            self._modules.labels(use.module).inc(use.multiply_adds)

    def text(self) -> str:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry).decode()
