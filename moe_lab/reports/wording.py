"""Numbers and moments as a reader wants to see them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from moe_lab.metrics.bootstrap import Interval

MINUS = "\N{MINUS SIGN}"


def count(number: int) -> str:
    """1234567 as 1,234,567."""
    return f"{number:,}"


def short_count(number: float) -> str:
    """1234567 as 1.23 M: three digits that matter and a unit."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{_three_digits(number / size)}\N{NO-BREAK SPACE}{unit}"
    return _three_digits(number)


def bits(number: float) -> str:
    """Bits per byte to three decimals, with a real minus sign."""
    return _signed_text(f"{number:.3f}")


def change(number: float) -> str:
    """A difference in bits per byte, always with its sign."""
    return _signed_text(f"{number:+.3f}")


def percent(number: float, decimals: int = 1) -> str:
    """A relative change that is already in percent, always with its sign; what rounds to zero has none."""
    text = f"{number:+.{decimals}f}"
    return _signed_text(text.lstrip("+-") if float(text) == 0 else text) + "%"


def share(fraction: float) -> str:
    """0.256 as 26%; a share above none and below half a percent as <1%."""
    return "<1%" if 0 < fraction < 0.005 else f"{100 * fraction:.0f}%"


def price(number: float) -> str:
    """Nats per token for the dearest candidate: 4e-06 as 4e-6."""
    return re.sub(r"e([+-])0?", lambda match: "e" + match[1].strip("+"), f"{number:.3g}").replace("-", MINUS)


def span(interval: Interval) -> str:
    """The two bounds of an interval of bits per byte."""
    separator = " to " if interval.low < 0 else "\N{EN DASH}"
    return f"{bits(interval.low)}{separator}{bits(interval.high)}"


def duration(seconds: float) -> str:
    """75 as 1 min 15 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(iso: str) -> str:
    """An ISO moment with a time zone as 3 March 2026, 14:05 UTC."""
    utc = datetime.fromisoformat(iso).astimezone(UTC)
    return f"{utc.day} {utc:%B %Y, %H:%M} UTC"


def counted(number: int, noun: str) -> str:
    """1 domain, 3 domains."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def _three_digits(number: float) -> str:
    size = abs(number)
    decimals = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    text = f"{number:.{decimals}f}"
    return _signed_text(text.rstrip("0").rstrip(".") if "." in text else text)


def _signed_text(text: str) -> str:
    return text.replace("-", MINUS)
