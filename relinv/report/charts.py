"""Charts as small inline SVG: text that scales, colours that follow the page's light or dark mode.

Every chart is drawn for a panel about 360 pixels wide, so that a page shows several side by side and a
phone shows one below the other at the same text size. Colours are the CSS classes `s0` … `s7`, one per
series in the order given, and `quiet`, `rule`, `zero`, `whisker`; `STYLE` defines them for use outside a page.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import accumulate

from relinv.statistics import Interval

WIDTH = 360  # pixels
LABEL, SHORT = 92, 13  # pixels on the left that hold a row's name, and the characters in a line of it
RIGHT = 12  # pixels kept free on the right, half a tick label
DIGIT = 7  # the width of a tick label's character, at most
NAME, LINE = 54, 13  # characters in a line of a difference's name, and any line's height in pixels
SERIES_COLOURS = 8
Scale = Callable[[float], float]  # from a value to pixels
STYLE = """
svg{font:12px system-ui,sans-serif;background:#fff}
text{fill:#24292f;paint-order:stroke;stroke:#fff;stroke-width:3px}.quiet{fill:#6b737c}.rule{stroke:#d8dce1}.zero{stroke:#6b737c}.whisker{stroke:#24292f}
.s0{fill:#8b929b;stroke:#8b929b}.s1{fill:#d98a2b;stroke:#d98a2b}.s2{fill:#2f6db5;stroke:#2f6db5}
.s3{fill:#2b9a7b;stroke:#2b9a7b}.s4{fill:#9a5bb5;stroke:#9a5bb5}.s5{fill:#c9506b;stroke:#c9506b}
.s6{fill:#7d8f2d;stroke:#7d8f2d}.s7{fill:#8a6346;stroke:#8a6346}
"""


def bars(
    title: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[Interval | None]],
    chance: float | None = None,
) -> str:
    """Return horizontal bars from 0 to 1: one group per label, with one bar and its interval per series.

    `chance` draws a dotted line at what guessing reaches; None in place of an interval leaves a gap.
    """
    thickness, gap, top = 9, 9, 8
    names = [textwrap.wrap(label, SHORT) for label in labels]
    body = max(thickness * len(series), LINE * max(map(len, names), default=0))
    pitch = body + gap
    height = top + pitch * len(labels) + 22
    x = _scale(0.0, 1.0)
    parts = _axis(x, [0, 0.25, 0.5, 0.75, 1], top, height - 22)
    if chance is not None:
        parts.append(_vertical(x(chance), top, height - 22, "zero", dash="2 3"))
    for row, label in enumerate(labels):
        y = top + pitch * row
        middle = y + body / 2 + 4 - LINE * (len(names[row]) - 1) / 2  # of the first line
        parts += [_text(LABEL - 8, middle + LINE * place, line, "end") for place, line in enumerate(names[row])]
        for place, (name, intervals) in enumerate(series.items()):
            if (interval := intervals[row]) is not None:
                note = f"{label}, {name}: {_words(interval)}"
                bar = y + (body - thickness * len(series)) / 2 + place * thickness
                parts.append(_bar(x, bar, thickness - 1.5, interval, place, note))
    return _svg(title, height, parts)


def differences(title: str, entries: Sequence[tuple[str, Interval]]) -> str:
    """Return dots with intervals about a zero line, one row per entry, with its name above."""
    top = 4
    names = [textwrap.wrap(name, NAME) for name, _ in entries]
    tops = list(accumulate((21 + LINE * len(lines) for lines in names), initial=top))  # of the rows, then the axis
    height = tops[-1] + 22
    reach = max([0.01] + [abs(value) for _, i in entries for value in (i.low, i.high)])
    reach = _round_up(reach)
    x = _scale(-reach, reach, left=RIGHT)
    parts = _axis(x, [-reach, -reach / 2, 0, reach / 2, reach], top, height - 22)
    parts.append(_vertical(x(0), top, height - 22, "zero"))
    for y, lines, (label, interval) in zip(tops, names, entries, strict=False):
        colour = "s2" if interval.excludes_zero else "s0"  # grey: cannot be told from zero
        parts += [_text(RIGHT, y + 12 + LINE * place, line, size=11) for place, line in enumerate(lines)]
        middle = y + 9 + LINE * len(lines)
        parts.append(
            f'<g class="{colour}"><title>{escape(f"{label}: {_words(interval)}")}</title>'
            f'<line x1="{x(interval.low):.1f}" x2="{x(interval.high):.1f}"'
            f' y1="{middle}" y2="{middle}"'
            f' stroke-width="2.5" stroke-linecap="round"/>'
            f'<circle cx="{x(interval.mean):.1f}" cy="{middle}" r="4"/></g>'
        )
    return _svg(title, height, parts)


def curves(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], bold: str, colour: int) -> str:
    """Return one thin line per name through its (x, y) points; the one named `bold` is drawn thick, on top."""
    top, bottom, left = 8, 150, 44
    points = [point for line in lines.values() for point in line]
    first, last = min(p[0] for p in points), max(p[0] for p in points)
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    margin = 0.05 * (high - low) or max(0.05 * abs(high), 1e-6)
    low, high = low - margin, high + margin
    x = _scale(first, max(last, first + 1), left)

    def y(value: float) -> float:
        """Return where a value lies, in pixels from the top."""
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = _axis(x, [first, (first + last) / 2, last], top, bottom)
    for value in (low + margin, (low + high) / 2, high - margin):
        parts.append(_text(left - 6, y(value) + 4, f"{value:.3g}", "end", quiet=True))
    for name in sorted(lines, key=lambda name: (name == bold, name)):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in lines[name])
        look = 'stroke-width="2.5"' if name == bold else 'stroke-width="1" stroke-opacity=".35"'
        parts.append(
            f'<polyline class="s{colour % SERIES_COLOURS}" style="fill:none" {look} points="{path}">'
            f"<title>{escape(name)}</title></polyline>"
        )
    return _svg(title, bottom + 22, parts)


def stack(charts: Sequence[str], headings: Sequence[str]) -> str:
    """Return charts one below the other, a heading above each, as one standalone SVG document."""
    parts, y = [], 0
    for chart, heading in zip(charts, headings, strict=True):
        height = int(chart.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split()[1])
        parts.append(f'<text x="{RIGHT}" y="{y + 20}" font-weight="600">{escape(heading)}</text>')
        parts.append(chart.replace("<svg ", f'<svg y="{y + 28}" width="{WIDTH}" height="{height}" ', 1))
        y += height + 44
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH * 2}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img"'
        f' aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _scale(low: float, high: float, left: float = LABEL) -> Scale:
    """Return the function from a value in [low, high] to pixels."""
    return lambda value: left + (value - low) / (high - low) * (WIDTH - RIGHT - left)


def _axis(x: Scale, ticks: Sequence[float], top: float, bottom: float) -> list[str]:
    parts = [_vertical(x(tick), top, bottom, "rule") for tick in ticks]
    labels = [(x(tick), f"{tick:.3g}") for tick in ticks]
    # moved inwards at the drawing's edge, which would cut off a minus sign
    places = [min(max(place, DIGIT * len(text) / 2), WIDTH - DIGIT * len(text) / 2) for place, text in labels]
    return parts + [
        _text(place, bottom + 15, text, "middle", quiet=True) for place, (_, text) in zip(places, labels, strict=True)
    ]


def _bar(x: Scale, y: float, thickness: float, interval: Interval, place: int, note: str) -> str:
    middle, end = y + thickness / 2, x(max(interval.mean, 0.0))
    return (
        f"<g><title>{escape(note)}</title>"
        f'<rect class="s{place % SERIES_COLOURS}" stroke="none" x="{x(0):.1f}" y="{y:.1f}"'
        f' width="{end - x(0):.1f}" height="{thickness}" rx="1.5"/>'
        f'<line class="whisker" x1="{x(interval.low):.1f}" x2="{x(interval.high):.1f}"'
        f' y1="{middle:.1f}" y2="{middle:.1f}"/></g>'
    )


def _vertical(x: float, top: float, bottom: float, kind: str, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"{dashes}/>'


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 12, quiet: bool = False) -> str:
    kind = ' class="quiet"' if quiet else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 6, 8, 10 times a power of ten, so that ticks at its half read well."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 6, 8, 10) if value <= power * step * 1.0000001)


def _words(interval: Interval) -> str:
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"
