"""The two plots, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT = 960, 190, 16  # pixels
VALID, INVALID, FROZEN, INK, PALE = "#2e7d5b", "#c62828", "#9db4d6", "#222222", "#dddddd"
FONT = 'font-family="DejaVu Sans, Verdana, sans-serif"'


class Drawing:
    def __init__(self, height: float, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{height:g}" fill="#ffffff"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, fill: str, opacity: float = 1) -> None:
        faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"{faint}/>'
        )

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, fill: str = INK) -> None:
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" {FONT} font-size="{size}" text-anchor="{anchor}" fill="{fill}">'
            f"{escape(text)}</text>"
        )

    def done(self) -> str:
        return "\n".join([*self._parts, "</svg>"]) + "\n"


def _scale(until: float) -> Callable[[float], float]:
    return lambda moment: LEFT + (WIDTH - LEFT - RIGHT) * min(max(moment, 0), until) / until


def _axis(drawing: Drawing, until: float, step: int, y: float, x: Callable[[float], float]) -> None:
    for moment in range(0, int(until) + 1, step):
        drawing.box(x(moment), y - 14, 1, 4, INK)
        drawing.text(x(moment), y, f"{moment} s", anchor="middle", size=11)


def outage(result: Mapping[str, Any]) -> str:
    """A thin line for each instance, green where its token was valid; blue are the freezes."""
    timeline, until = result["timeline"], result["until"]
    names = sorted(timeline, key=lambda name: not name.startswith("krbrefresh"))
    thick, gap, top = 4, 14, 40
    height = top + sum(len(timeline[name]) * (thick + 1) + gap for name in names) + 34
    drawing = Drawing(height, "Validity of each peer's tokens over time, through two freezes of the KDC")
    x, y = _scale(until), float(top)
    for since, to in result["frozen"]:
        drawing.box(x(since), top - 12, x(to) - x(since), height - top - 22, FROZEN, 0.55)
        drawing.text((x(since) + x(to)) / 2, top - 18, f"KDC frozen, {to - since:g} s", anchor="middle", size=12)
    for name in names:
        rows = timeline[name]
        drawing.text(LEFT - 12, y + len(rows) * (thick + 1) / 2 + 4, name, anchor="end")
        for spans in rows:
            drawing.box(x(0), y, x(until) - x(0), thick, VALID)
            for since, to, _ in spans:
                drawing.box(x(since), y, max(x(to) - x(since), 0.8), thick, INVALID)
            y += thick + 1
        y += gap
    _axis(drawing, until, max(1, round(until / 7 / 10) * 10), height - 8, x)
    drawing.box(12, 8, 10, 10, VALID)
    drawing.text(27, 17, "valid", size=12)
    drawing.box(72, 8, 10, 10, INVALID)
    drawing.text(87, 17, "no valid token", size=12)
    return drawing.done()


def requests(result: Mapping[str, Any]) -> str:
    """AS exchanges in each second, for each peer, on one scale."""
    series, until = result["per_second"], result["seconds"]
    tall, gap, top = 70, 26, 34
    height = top + len(series) * (tall + gap) + 24
    most = max((count for counts in series.values() for _, count in counts), default=1)
    drawing = Drawing(height, "AS exchanges in each second")
    drawing.text(12, 18, f"AS exchanges in each second: {result['count']} tokens of {result['life']} s", size=13)
    x, y = _scale(until), float(top)
    for name, counts in series.items():
        drawing.box(x(0), y + tall, x(until) - x(0), 1, INK)
        drawing.text(LEFT - 12, y + tall / 2, name, anchor="end")
        drawing.text(
            LEFT - 12, y + tall / 2 + 17, f"at most {max((n for _, n in counts), default=0)}", anchor="end", size=11
        )
        for second, count in counts:
            if 0 <= second < until:
                high = tall * count / most
                drawing.box(x(second), y + tall - high, max(x(second + 1) - x(second) - 0.4, 0.8), high, VALID)
        y += tall + gap
    _axis(drawing, until, max(1, round(until / 7 / 10) * 10), height - 8, x)
    return drawing.done()


PLOTS: dict[str, Callable[[Mapping[str, Any]], str]] = {"outage": outage, "requests": requests}
