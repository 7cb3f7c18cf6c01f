"""Numbers as Grafana writes them, in the units that the dashboards use."""

from __future__ import annotations

from collections.abc import Callable

_SI = ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K"))
_BINARY = ((2.0**40, " TiB"), (2.0**30, " GiB"), (2.0**20, " MiB"), (2.0**10, " KiB"))
_DECIMAL = ((1e12, " TB/s"), (1e9, " GB/s"), (1e6, " MB/s"), (1e3, " kB/s"))
_TIME = ((86_400.0, " days"), (3_600.0, " hours"), (60.0, " mins"), (1.0, " s"), (1e-3, " ms"), (1e-6, " µs"))


def _digits(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1_000 else f"{value:.0f}"


def _scaled(value: float, scale: tuple[tuple[float, str], ...], rest: str) -> str:
    for size, name in scale:
        if abs(value) >= size:
            return _digits(value / size) + name
    return _digits(value) + rest


FORMATS: dict[str, Callable[[float], str]] = {
    "none": _digits,
    "short": lambda value: _scaled(value, _SI, ""),
    "cps": lambda value: _scaled(value, _SI, "") + " c/s",
    "mps": lambda value: _scaled(value, _SI, "") + " msg/s",
    "eps": lambda value: _scaled(value, _SI, "") + " evt/s",
    "reqps": lambda value: _scaled(value, _SI, "") + " req/s",
    "percentunit": lambda value: _digits(value * 100) + "%",
    "s": lambda value: _scaled(value, _TIME, " s"),
    "bytes": lambda value: _scaled(value, _BINARY, " B"),
    "Bps": lambda value: _scaled(value, _DECIMAL, " B/s"),
}
"""By Grafana's name of the unit; the test of dashboards holds that there is one for each that they use."""
