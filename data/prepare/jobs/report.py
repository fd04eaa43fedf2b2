"""A page that shows which images were kept and which were dropped, in one file that needs no other."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.images import UnreadableImage
from data.prepare.jobs.files import encode, read_photo

THUMBNAIL_PX = 128
BARS, BAR_WIDTH, CHART_HEIGHT = 40, 8, 80  # of a histogram, in pixels
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse } td, th { padding: 2px 12px 2px 0; text-align: left }
.tiles { display: flex; flex-wrap: wrap; gap: 12px }
figure { margin: 0; width: 150px } figcaption { font-size: 11px; overflow-wrap: anywhere }
.why { color: #b00020 } .charts { display: flex; flex-wrap: wrap; gap: 32px }
"""


@dataclass(frozen=True)
class Tile:
    """One image of the page, with its figures in words and why it was dropped (empty: kept)."""

    path: str
    figures: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """A figure's values over the data set, and the limit that was applied."""

    title: str
    values: Sequence[float]
    limit: float | None


def page(*, title: str, root: Path, rows: Mapping[str, str], tiles: Sequence[Tile], charts: Sequence[Chart], most: int) -> str:
    """The page as HTML.

    Args:    rows: a table on top, name to value. tiles: all images; at most `most` kept and `most` dropped ones are shown,
                 evenly from first to last.
    """
    table = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
    graphs = "".join(_chart(chart) for chart in charts)
    dropped, kept = [tile for tile in tiles if tile.reasons], [tile for tile in tiles if not tile.reasons]
    sections = _section("Dropped", root, dropped, most) + _section("Kept", root, kept, most)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    body = f"<h1>{html.escape(title)}</h1><table>{table}</table><div class=charts>{graphs}</div>{sections}"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n"


def _section(name: str, root: Path, tiles: Sequence[Tile], most: int) -> str:
    places = np.linspace(0, len(tiles) - 1, min(most, len(tiles))).round().astype(int)
    shown = "".join(_figure(root, tiles[place]) for place in places)
    note = f" ({len(places)} of them shown)" if len(places) < len(tiles) else ""
    return f"<h2>{name}: {len(tiles)}{note}</h2><div class=tiles>{shown}</div>"


def _figure(root: Path, tile: Tile) -> str:
    why = "".join(f"<div class=why>{html.escape(reason)}</div>" for reason in tile.reasons)
    text = f"{html.escape(tile.path)}{why}<div>{html.escape(tile.figures)}</div>"
    return f"<figure>{_thumbnail(root / tile.path)}<figcaption>{text}</figcaption></figure>"


def _thumbnail(path: Path) -> str:
    try:
        photo = read_photo(path)
    except UnreadableImage:
        return "<div>unreadable</div>"
    image = Image.fromarray(photo)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small = base64.b64encode(encode(np.asarray(image), ".jpg", 80)).decode()
    return f'<img src="data:image/jpeg;base64,{small}" width={image.width} height={image.height} alt="">'


def _chart(chart: Chart) -> str:
    """A histogram with the limit as a line; the highest 1 % share the last bar."""
    if not chart.values:
        return ""
    low, high = min(chart.values), float(np.percentile(chart.values, 99))
    low, high = min(low, chart.limit or low), max(high, chart.limit or high)
    high = high if high > low else low + 1
    counts, _ = np.histogram(np.clip(chart.values, low, high), bins=BARS, range=(low, high))
    heights = (counts / counts.max() * CHART_HEIGHT).round(1)
    bars = "".join(
        f'<rect x="{place * BAR_WIDTH}" y="{CHART_HEIGHT - tall}" width="{BAR_WIDTH - 1}" height="{tall}" fill="#557"/>'
        for place, tall in enumerate(heights.tolist())
    )
    width = BARS * BAR_WIDTH
    at = None if chart.limit is None else (chart.limit - low) / (high - low) * width
    line = "" if at is None else f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{CHART_HEIGHT}" stroke="#b00020"/>'
    limit = "" if chart.limit is None else f", limit {chart.limit:g}"
    picture = f'<svg width="{width}" height="{CHART_HEIGHT}">{bars}{line}</svg>'
    return f"<div><b>{html.escape(chart.title)}</b><br>{picture}<br>{low:.4g} to {high:.4g}{limit}</div>"
