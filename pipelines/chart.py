"""Small charts as inline SVG, coloured by the page's own style sheet: lines, bars, histograms, parallel coordinates."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 10, 34

Points = Sequence[tuple[float, float]]


def line(series: Mapping[str, Points], *, x: str, y: str) -> Markup:
    """Each series a line with its name in the legend; x is the axis's title, y what the values are. Empty where there is not a point."""
    points = [point for each in series.values() for point in each]
    if not points:
        return Markup("")
    xs, ys = ticks(min(p[0] for p in points), max(p[0] for p in points)), ticks(min(p[1] for p in points), max(p[1] for p in points))
    right, up = _scale(xs, LEFT, WIDTH - RIGHT), _scale(ys, HEIGHT - BOTTOM, TOP)
    parts = [_grid(xs, ys, right, up, x)]
    for index, (name, each) in enumerate(series.items()):
        path = " ".join(f"{right(a):.1f},{up(b):.1f}" for a, b in thin(each))
        parts.append(_format('<polyline class="s{}" points="{}"><title>{}</title></polyline>', index % 4, path, name))
        if len(each) <= 40:
            parts += [_format('<circle class="d{}" cx="{:.1f}" cy="{:.1f}" r="2.4"/>', index % 4, right(a), up(b)) for a, b in each]
    return _figure(Markup("").join(parts), HEIGHT, f"{y} by {x}") + _legend(list(series))


def bars(rows: Sequence[tuple[str, float, float | None]], *, unit: str = "", first: bool = True) -> Markup:
    """rows (name, value, standard error or none): horizontal bars from 0, the first one in the accent where `first`."""
    if not rows:
        return Markup("")
    wide = 8 + 7.2 * max(len(name) for name, _, _ in rows)
    right = _scale([0, max(value + 2 * (error or 0) for _, value, error in rows) or 1], wide, WIDTH - 74)
    parts = []
    for index, (name, value, error) in enumerate(rows):
        middle = 18 + 30 * index
        shade = "f0" if first and index == 0 else "f9"
        parts.append(_format('<text x="{}" y="{}" text-anchor="end">{}</text>', wide - 8, middle + 4, name))
        parts.append(
            _format('<rect class="{}" x="{}" y="{}" width="{:.1f}" height="16" rx="2"/>', shade, wide, middle - 8, right(value) - wide)
        )
        if error:
            a, b = right(value - 2 * error), right(value + 2 * error)
            parts.append(_format('<path class="error" d="M{:.1f} {m}H{:.1f}"><title>± 2 s.e.</title></path>', a, b, m=middle))
        end = right(value + 2 * (error or 0))
        parts.append(
            _format('<text class="value" x="{:.1f}" y="{}">{}</text>', end + 6, middle + 4, f"{value:.3g}" + (f" {unit}" if unit else ""))
        )
    return _figure(Markup("").join(parts), 30 * len(rows) + 6, ", ".join(f"{name} {value:.3g}" for name, value, _ in rows))


def histogram(counts: Sequence[float], *, names: Sequence[str] = (), x: str) -> Markup:
    """One column a count; its name, or its number at the ends, below."""
    if not counts or max(counts) <= 0:
        return Markup("")
    height, step = 130, (WIDTH - 20) / len(counts)
    parts = []
    for index, count in enumerate(counts):
        tall = (height - 44) * count / max(counts)
        name = names[index] if names else str(index)
        left = 10 + index * step
        parts.append(
            _format(
                '<rect class="f0" x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}"><title>{}: {:,.0f}</title></rect>',
                *(left + step * 0.08, height - 34 - tall, step * 0.84, tall, name, count),
            )
        )
        if (names and step > 7 * max(map(len, names))) or index in (0, len(counts) - 1):
            parts.append(_format('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>', left + step / 2, height - 20, name))
    parts.append(_format('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>', WIDTH / 2, height - 3, x))
    return _figure(Markup("").join(parts), height, f"histogram of {x}")


def parallel(axes: Sequence[str], rows: Sequence[Sequence[float | str | None]], *, chosen: int | None = None) -> Markup:
    """One line a row through its value on every axis; the last axis is the result (lower is better), the chosen row stands out."""
    if len(axes) < 2 or not rows:
        return Markup("")
    columns = [_positions([row[i] for row in rows]) for i in range(len(axes))]
    gap = (WIDTH - 96) / (len(axes) - 1)
    at = [48 + gap * i for i in range(len(axes))]
    parts = []
    for index in sorted(range(len(rows)), key=lambda i: i == chosen):
        places = [(at[i], column[0][index]) for i, column in enumerate(columns)]
        path = " ".join(f"{a:.1f},{30 + 150 * (1 - p):.1f}" for a, p in places if p is not None)
        parts.append(_format('<polyline class="{}" points="{}"/>', "chosen" if index == chosen else "trial", path))
    for i, (name, (_, low, high)) in enumerate(zip(axes, columns, strict=True)):
        anchor = "start" if i == 0 else "end" if i == len(axes) - 1 else "middle"
        x = at[i] - 40 if i == 0 else at[i] + 40 if i == len(axes) - 1 else at[i]
        parts.append(_format('<path class="axis" d="M{x:.1f} 30V180"/>', x=at[i]))
        parts.append(_format('<text class="name" x="{:.1f}" y="12" text-anchor="{}">{}</text>', x, anchor, name.rpartition(".")[2]))
        parts.append(_format('<text class="tick" x="{:.1f}" y="25" text-anchor="middle">{}</text>', at[i], high))
        parts.append(_format('<text class="tick" x="{:.1f}" y="194" text-anchor="middle">{}</text>', at[i], low))
    return _figure(Markup("").join(parts), 200, "parallel coordinates of the trials")


def _positions(values: Sequence[float | str | None]) -> tuple[list[float | None], str, str]:
    """Each value's place in 0..1 and what stands at the two ends; numbers that span a factor of 20 are placed by their logarithm."""
    given = [value for value in values if value is not None]
    if not all(isinstance(value, int | float) for value in given):
        names = sorted({str(value) for value in given})
        spread = max(1, len(names) - 1)
        return [None if value is None else names.index(str(value)) / spread for value in values], names[0], names[-1]
    numbers = [float(value) for value in given]
    low, high = min(numbers), max(numbers)
    change = math.log if low > 0 and high / low >= 20 else float
    span = (change(high) - change(low)) or 1.0
    return [None if value is None else (change(float(value)) - change(low)) / span for value in values], f"{low:.3g}", f"{high:.3g}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that span low..high: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    start = math.floor(low / step + 1e-9)
    return [round(step * i, 12) for i in range(start, math.ceil(high / step - 1e-9) + 1)]


def thin(points: Points, most: int = 400) -> Points:
    """At most so many points, evenly taken, the last one among them."""
    stride = max(1, math.ceil(len(points) / most))
    return [point for i, point in enumerate(points) if i % stride == 0 or i == len(points) - 1]


def _grid(xs: list[float], ys: list[float], right: "_Axis", up: "_Axis", x: str) -> Markup:
    parts = [_format('<path class="grid" d="M{} {:.1f}H{}"/>', LEFT, up(tick), WIDTH - RIGHT) for tick in ys]
    parts += [_format('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>', LEFT - 6, up(t) + 3.5, f"{t:g}") for t in ys]
    parts += [_format('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>', right(t), HEIGHT - 18, f"{t:g}") for t in xs]
    parts.append(_format('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>', (LEFT + WIDTH) / 2, HEIGHT - 3, x))
    return Markup("").join(parts)


class _Axis:
    """Data to drawing coordinates."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.start = low, start
        self.slope = (stop - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.slope


def _scale(ends: Sequence[float], start: float, stop: float) -> _Axis:
    return _Axis(ends[0], ends[-1], start, stop)


def _legend(names: Sequence[str]) -> Markup:
    if len(names) < 2:
        return Markup("")
    entries = [_format('<span><i class="b{}"></i>{}</span>', index % 4, name) for index, name in enumerate(names)]
    return Markup('<div class="legend">') + Markup("").join(entries) + Markup("</div>")


def _figure(content: Markup, height: int, about: str) -> Markup:
    opening = _format('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">', WIDTH, height, about)
    return opening + content + Markup("</svg>")


def _format(template: str, *values: object, **named: object) -> Markup:
    """str.format on markup whose values are escaped; numbers keep their format."""
    safe = [value if isinstance(value, int | float) else escape(value) for value in values]
    return Markup(template.format(*safe, **{k: v if isinstance(v, int | float) else escape(v) for k, v in named.items()}))
