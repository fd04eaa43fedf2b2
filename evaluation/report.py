"""What people look at: the table as text, Markdown, JSON and CSV, and a page with pictures, in one file each."""

import base64
import csv
import html
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.images import decode
from data.sources.shown import in_cell, printable
from data.writing import write_bytes
from evaluation import challenge
from evaluation.run import Result, Scored, in_order

THUMBNAIL_PX = 384
PAGE = Path(__file__).with_name("report.html")


def write(result: Result) -> Path:
    """All forms of the report into its folder; the page's path."""
    folder = Path(result.settings.report)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(image_rows(result))
    for name, text in (
        ("report.md", markdown(result)),
        ("report.json", json.dumps(as_json(result), indent=1)),
        ("images.csv", table.getvalue()),
        ("rows.tex", latex(result)),
        ("report.html", page(result)),
    ):
        write_bytes(folder / name, text.encode("utf-8", "surrogateescape"))
    return folder / "report.html"


def tell(result: Result) -> bool:
    """Prints the table; whether everything could be scored."""
    print(text_table(result))
    for scored in result.folders:
        for edition, low in scored.low.items():
            verdict = "valid" if challenge.is_valid(low) else "NOT valid"
            print(f"{scored.folder}: identity gate of {edition}: {len(low)} images below their threshold, {verdict}")
        if scored.no_score:
            print(f"{scored.folder}: no score: {scored.no_score}")
    for name, why in result.missing.items():
        print(f"missing: {name}: {why}")
    for sentence in result.wrong:
        print(f"error: {printable(sentence)}", file=sys.stderr)
    return not result.wrong


def columns(result: Result) -> list[str]:
    """Metrics in the protocol's order, those of images and of folders, as far as any folder has them."""
    return [n for n in result.metrics if any(n in each.means or n in each.of_folder for each in result.folders)]


def cell(scored: Scored, metric: str) -> str:
    """`0.612 ± 0.008`, or a dash."""
    if metric in scored.of_folder:
        return number(scored.of_folder[metric])
    if metric not in scored.means:
        return "–"
    mean = scored.means[metric]
    return f"{number(mean.mean)} ± {number((mean.high - mean.low) / 2)}"


def number(value: float) -> str:
    """Four digits that say something."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if abs(value) >= 1e-3 else f"{value:.2e}"


def rows(result: Result) -> Iterator[list[str]]:
    """The table, its head first."""
    with_score = result.settings.edition is not None
    yield ["outputs", "images", *(["S"] if with_score else []), *(f"{name} {arrow(result, name)}" for name in columns(result))]
    for each in result.folders:
        total = []
        if with_score:
            between = each.score_between
            total = [f"{each.score.total:.4f} ({between[0]:.4f} to {between[1]:.4f})" if each.score and between else "–"]
        yield [each.folder, str(len(each.pairs)), *total, *(cell(each, name) for name in columns(result))]


def arrow(result: Result, metric: str) -> str:
    return "↑" if result.metrics[metric].higher_is_better else "↓"


def text_table(result: Result) -> str:
    table = list(rows(result))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(each.ljust(width) for each, width in zip(row, widths, strict=True)).rstrip() for row in table)


def markdown(result: Result) -> str:
    head, *body = rows(result)
    lines = [f"# {result.protocol}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    lines += ["", "± is half of the 95 % interval, by drawing the images anew (2,000 times, seeded)."]
    if result.comparisons:
        a, b = result.folders[:2]
        lines += [
            "",
            f"## {b.folder} against {a.folder}, image by image",
            "",
            "| metric | better by | 95 % interval | images won |",
            "|---|---|---|---|",
        ]
        lines += ["| " + " | ".join(row) + " |" for row in comparison_rows(result)]
    for scored in result.folders:
        for edition, low in scored.low.items():
            which = f": {', '.join(low)}" if low else ""
            lines += ["", f"{scored.folder}, identity gate of {edition}: {len(low)} below their threshold{which}"]
    lines += [f"\nmissing: {name}: {why}" for name, why in result.missing.items()]
    return "\n".join(lines) + "\n"


def comparison_rows(result: Result) -> Iterator[list[str]]:
    """What the second folder is better by than the first."""
    for name, of in result.comparisons.items():
        change = of.difference
        yield [name, number(change.mean), f"{number(change.low)} to {number(change.high)}", f"{of.won:.0%}"]


def as_json(result: Result) -> dict[str, Any]:
    folders = [
        {
            "outputs": each.folder,
            "images": len(each.pairs),
            "means": {name: asdict(mean) for name, mean in each.means.items()},
            "of_folder": each.of_folder,
            "sets": each.sets,
            "score": asdict(each.score) if each.score else None,
            "score_between": each.score_between,
            "no_score": each.no_score,
            "low": each.low,
        }
        for each in result.folders
    ]
    compared = {n: {"difference": asdict(of.difference), "won": of.won} for n, of in result.comparisons.items()}
    return {
        "protocol": result.protocol,
        "folders": folders,
        "comparison": compared,
        "missing": result.missing,
        "wrong": result.wrong,
    }


def image_rows(result: Result) -> Iterator[Sequence[object]]:
    """A row for each image of each folder."""
    names = [name for name in result.metrics if any(name in each.values.of_images for each in result.folders)]
    yield ["outputs", "image", "set", *names]
    for each in result.folders:
        for pair in each.pairs:
            values = [each.values.of_images.get(name, {}).get(pair.name, "") for name in names]
            yield [in_cell(each.folder), in_cell(pair.name), pair.dataset, *values]


def shown(result: Result) -> list[tuple[str, Scored, int]]:
    """(why, folder, number of the image) of the pictures on the page: the largest changes either way, or the best and worst."""
    count = result.settings.show
    metric = next(iter(result.comparisons), None) or next((n for n in columns(result) if n in result.folders[0].means), None)
    if metric is None or not count:
        return []
    first = result.folders[0]
    if result.comparisons:
        order = result.comparisons[metric].order
        worse, better = order[:count], order[::-1][:count]
        second = result.folders[1]
        return [(f"{metric}: lost", second, i) for i in worse] + [(f"{metric}: gained", second, i) for i in better]
    up = result.metrics[metric].higher_is_better
    order = list(np.argsort(np.array(in_order(first, metric)) * (1 if up else -1), kind="stable"))
    return [(f"{metric}: worst", first, int(i)) for i in order[:count]] + [
        (f"{metric}: best", first, int(i)) for i in order[::-1][:count]
    ]


def page(result: Result) -> str:
    """One file that works from the disk: no script or picture comes from elsewhere."""
    head, *body = rows(result)
    table = table_of(head, body)
    quoted = ""
    if result.published:
        keys = list(dict.fromkeys(key for row in result.published for key in row))
        quoted = "<h2>Published under this protocol (quoted, not measured here)</h2>" + table_of(
            keys, [[str(row.get(key, "–")) for key in keys] for row in result.published]
        )
    parts = [table, "<p>± is half of the 95 % interval, by drawing the images anew.</p>", quoted]
    if result.comparisons:
        a, b = (html.escape(each.folder) for each in result.folders[:2])
        head = ["metric", "better by", "95 % interval", "images won"]
        parts.append(f"<h2>{b} against {a}, image by image</h2>" + table_of(head, list(comparison_rows(result))))
    for scored in result.folders:
        if scored.sets:
            names = list(scored.means)
            each = [
                [name, *(number(means[key]) if key in means else "–" for key in names)] for name, means in scored.sets.items()
            ]
            parts.append(f"<h2>{html.escape(scored.folder)}, by set</h2>" + table_of(["set", *names], each))
        for edition, low in scored.low.items():
            verdict = f"{len(low)} low, {'valid' if challenge.is_valid(low) else 'not valid'}"
            parts.append(f"<h2>{html.escape(scored.folder)}: identity gate of {edition}: {verdict}</h2>")
            parts += [_figure(name, scored, _number_of(scored, name), result) for name in low[:40]]
    parts += [f"<h2>{html.escape(scored.folder)}</h2>{''.join(histograms(scored))}" for scored in result.folders]
    parts.append("<h2>Pictures: drag the line; left is the LQ (or the other folder), right the output</h2>")
    parts += [_figure(why, scored, i, result) for why, scored, i in shown(result)]
    wrong = "".join(
        f"<li>{html.escape(each)}</li>" for each in [*result.wrong, *(f"missing: {n}: {w}" for n, w in result.missing.items())]
    )
    parts.append(f"<ul class=wrong>{wrong}</ul>")
    title = html.escape(f"{result.protocol}: {', '.join(each.folder for each in result.folders)}")
    return PAGE.read_text(encoding="utf-8").replace("TITLE", title).replace("CONTENT", "\n".join(parts))


def table_of(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    heads = "".join(f"<th><button>{html.escape(each)}</button></th>" for each in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(each)}</td>" for each in row) + "</tr>" for row in body)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


def histograms(scored: Scored) -> Iterator[str]:
    """A small drawing for each metric."""
    for name in scored.means:
        counts, edges = np.histogram(in_order(scored, name), bins=24)
        bars = "".join(
            f'<rect x="{5 * i}" y="{40 - 40 * count / counts.max():.1f}" width="4" height="{40 * count / counts.max():.1f}"/>'
            for i, count in enumerate(counts)
        )
        label = f"{html.escape(name)}: {number(edges[0])} to {number(edges[-1])}"
        yield f'<figure class=histogram><svg viewBox="0 0 120 40">{bars}</svg><figcaption>{label}</figcaption></figure>'


def _number_of(scored: Scored, name: str) -> int:
    return next(i for i, pair in enumerate(scored.pairs) if pair.name == name)


def _figure(why: str, scored: Scored, i: int, result: Result) -> str:
    """A picture under a line that is dragged: what stands against the output on the left, the output on the right."""
    pair = scored.pairs[i]
    values = ", ".join(f"{name} {number(in_order(scored, name)[i])}" for name in scored.means)
    other = pair.lq
    if len(result.folders) > 1 and scored is result.folders[1]:
        other = result.folders[0].pairs[i].output
    pictures = [("after", pair.output), *([("before", other)] if other else []), *([("truth", pair.hq)] if pair.hq else [])]
    images = "".join(f'<img class="{kind}" alt="{kind}" src="{inline(path)}">' for kind, path in pictures if kind != "truth")
    slider = '<input type="range" min="0" max="100" value="50" aria-label="before and after">' if other else ""
    truth = f'<img class=truth alt="ground truth" src="{inline(pair.hq)}">' if pair.hq else ""
    caption = html.escape(f"{pair.name} ({why}): {values}")
    return f"<figure class=pair><div class=slider>{images}{slider}</div>{truth}<figcaption>{caption}</figcaption></figure>"


def inline(path: Path) -> str:
    """A picture as a data URL, at most THUMBNAIL_PX wide and high."""
    photo = Image.fromarray(decode(path.read_bytes(), str(path)))
    photo.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    stream = io.BytesIO()
    photo.save(stream, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def latex(result: Result) -> str:
    """Rows for a paper's table."""
    names = columns(result)
    lines = [
        " & ".join([each.folder.replace("_", r"\_"), *(cell(each, n).partition(" ")[0] for n in names)])
        for each in result.folders
    ]
    return "\n".join(f"{line} \\\\" for line in lines)
