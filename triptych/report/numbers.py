"""Format numbers for people."""

from __future__ import annotations


def format_score(value: float | None) -> str:
    """Return a score with three decimals; a tiny one keeps one digit, None is a dash."""
    if value is None:
        return "–"
    if 0 < abs(value) < 0.0005:
        return f"{value:.1g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def format_duration(seconds: float) -> str:
    """Return seconds as `8.4 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_share(share: float) -> str:
    """Return a fraction in whole percent; a small one as `<1 %`."""
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
