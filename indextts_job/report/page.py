"""Renders a run as one self-contained HTML page: no script, no font, no request. Pure: from rows to text."""

import html
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar

from indextts_job.report.attempts import Attempt
from indextts_job.report.chart import Curve, StepAxis, chart
from indextts_job.report.console import human_seconds
from indextts_job.report.events import Event, Spoke, Validated
from indextts_job.report.goodput import PARTS, where_time_went
from indextts_job.report.journal import Logged
from indextts_job.report.speech import speech_values
from indextts_job.report.standing import how_it_ended, lost_steps, standing

E = TypeVar("E", bound=Event)
LEAST_SHARE = 0.0005
"""Smaller parts are left out; they would be shown as 0.0 %."""
PART_NAMES = {
    "steps": "steps that count",
    "not committed": "not committed yet",
    "waiting": "between attempts",
    "start-up": "start-up",
    "data": "waiting for data",
    "validation": "validation",
    "saves": "waiting for saves",
    "lost": "done again, and unaccounted",
}


def render(run: str, rows: Sequence[Attempt], now: datetime, *, running: bool | None = None) -> str:
    """The page.

    Args:
        run: Name of the run.
        rows: Attempts with curves, oldest first; at least one.
        now: The present, with a time zone.
        running: Whether the process of the last attempt runs; None if unknown.
    """
    stands = standing(rows, now, running=running)
    known = [(name, text) for name, text in stands.lines() if name != "goodput"]  # goodput has a section of its own
    # Everything is escaped: names and messages come from files.
    facts = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>" for name, text in known)
    # A run that was shortened afterwards has done more steps than its total.
    progress = min(1.0, rows[-1].last_step / stands.total_steps) if stands.total_steps else 0.0
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(run)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{html.escape(run)}</h1>
<p class="when">as of {now.strftime("%Y-%m-%d %H:%M")} UTC</p>
<div class="progress" role="img" aria-label="{progress:.0%} of all steps">
<span style="width:{progress:.2%}"></span></div>
</header>
<main>
<section><dl>{facts}</dl></section>
{_goodput(rows)}
<section class="charts">{"".join(_charts(rows))}</section>
<section><h2>Attempts</h2>{_attempts(rows, running)}</section>
</main>
<footer>Bands in the charts are attempts; a dot is a validation.</footer>
</body>
</html>
"""


def _charts(rows: Sequence[Attempt]) -> list[str]:
    train = _counting(rows, lambda row: row.train_lines)
    validation = _counting(rows, lambda row: row.validations)
    # At least 1: the axis divides by it.
    axis = StepAxis(last=max([1, *(row.last_step for row in rows)]), starts=[(r.from_step, r.number) for r in rows])

    def losses(title: str, key: str) -> str:
        train_points = [(line.step, getattr(line.losses, key)) for line in train]
        validation_points = [(one.step, getattr(one.losses, key)) for one in validation]
        return chart(title, [Curve("train", train_points), Curve("validation", validation_points, marks=True)], axis)

    def of_train(title: str, key: str) -> str:
        return chart(title, [Curve("train", [(line.step, getattr(line, key)) for line in train])], axis)

    return [
        *_of_languages(validation, axis),
        *_of_speech(_counting(rows, lambda row: row.speeches), axis),
        losses("Text loss", "text_loss"),
        losses("Mel loss", "mel_loss"),
        losses("Mel top-1", "mel_top1"),
        of_train("Learning rate", "learning_rate"),
        of_train("Samples per second", "samples_per_s"),
        of_train("Gradient norm", "grad_norm"),
    ]


def _of_languages(validation: Sequence[Validated], axis: StepAxis) -> Iterator[str]:
    """What a guard has measured; nothing in a run without one."""
    named = sorted({one.language for event in validation for one in event.languages})
    for title, key in (("Mel loss by language", "mel_loss"), ("Rise above the base, nats per code", "rise")):
        curves = [Curve(name, _points(validation, name, key), marks=True) for name in named]
        if any(curve.points for curve in curves):
            yield chart(title, [curve for curve in curves if curve.points], axis)


_SPOKEN = {
    "agreement": "Spoken codes: agreement with the reference",
    "length_ratio": "Spoken codes: length over that of the reference",
    "no_stop": "Spoken codes: share of records without a stop",
    "distinct": "Spoken codes: distinct outputs over distinct pairs of text and output",
}
"""Charts of what the model spoke by itself."""


def _of_speech(spoken: Sequence[Spoke], axis: StepAxis) -> Iterator[str]:
    """What a free-running check has measured; nothing in a run without one."""
    for figure, title in _SPOKEN.items():
        curves: dict[str, list[tuple[int, float]]] = {}
        for event in spoken:
            for speech in event.languages:
                if (value := speech_values(speech).get(figure)) is not None:
                    curves.setdefault(speech.language, []).append((event.step, value))
        if curves:
            yield chart(title, [Curve(name, curves[name], marks=True) for name in sorted(curves)], axis)


def _points(validation: Sequence[Validated], language: str, key: str) -> list[tuple[int, float]]:
    found = [
        (event.step, getattr(one, key)) for event in validation for one in event.languages if one.language == language
    ]
    return [(step, value) for step, value in found if value is not None]


def _counting(rows: Sequence[Attempt], events_of: Callable[[Attempt], Sequence[Logged[E]]]) -> list[E]:
    """Events of steps that count. Of a step that was done again only the last result is shown."""
    kept: list[E] = []
    for index, row in enumerate(rows):
        following = min((other.from_step for other in rows[index + 1 :]), default=math.inf)
        # Up to and including the start of the next attempt: that step itself was committed.
        kept += [logged.event for logged in events_of(row) if logged.event.step <= following]
    # An attempt that went back comes later in the list, but its steps are earlier.
    return sorted(kept, key=lambda event: event.step)


def _goodput(rows: Sequence[Attempt]) -> str:
    spent = where_time_went(rows)
    total = sum(spent.values())
    if not total:
        return ""
    parts = [(part, spent[part]) for part in PARTS if spent[part] / total >= LEAST_SHARE]
    bar = "".join(_bar_part(part, seconds / total) for part, seconds in parts)
    keys = "".join(_key(part, seconds, seconds / total) for part, seconds in parts)
    share = f"{spent['steps'] / total:.1%}"
    return f'<section><h2>Goodput {share}</h2><div class="goodput">{bar}</div><ul class="keys">{keys}</ul></section>'


def _bar_part(part: str, share: float) -> str:
    return f'<span class="p-{_css(part)}" style="width:{share:.3%}" title="{PART_NAMES[part]}"></span>'


def _key(part: str, seconds: float, share: float) -> str:
    swatch = f'<span class="swatch p-{_css(part)}"></span>'
    return f"<li>{swatch}{PART_NAMES[part]} <b>{share:.1%}</b> {human_seconds(seconds)}</li>"


def _css(part: str) -> str:
    return part.replace(" ", "-")


def _attempts(rows: Sequence[Attempt], running: bool | None) -> str:  # noqa: FBT001  # private
    """The table of attempts, newest first."""
    names = ("", "started", "node", "device", "steps", "lost", "committed", "end")
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"
        for cells in _attempt_cells(rows, running)
    ]
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _attempt_cells(rows: Sequence[Attempt], running: bool | None) -> Iterator[tuple[object, ...]]:  # noqa: FBT001
    for row, lost in reversed(list(zip(rows, lost_steps(rows), strict=True))):
        how = how_it_ended(row, newest=row is rows[-1], running=running)
        started = row.record.started.replace("T", " ").partition("+")[0]
        committed = "" if row.committed_step is None else row.committed_step
        steps = f"{row.from_step} … {row.last_step}"
        yield (row.number, started, row.record.node, row.record.device, steps, lost or "", committed, how)


_STYLE = """
:root{--ink:#1d2530;--soft:#66717f;--paper:#fff;--card:#f5f7f9;--line:#dfe4ea;--c0:#2563c9;--c1:#c2410c;--c2:#1f7a4d;--c3:#7c3aed;--c4:#a16207;--c5:#be185d;
--b0:#2563c90d;
--b1:#c2410c12;--steps:#2f8f5b;--waiting:#9aa5b1;--startup:#c9a227;--data:#7c5cc4;--validation:#2563c9;--saves:#1f9aa8;
--lost:#c2410c}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#98a4b3;--paper:#12161c;--card:#1a2029;--line:#2b3441;
--c0:#7eb0ff;--c1:#ffa069;--c2:#6ee7a8;--c3:#c4a7ff;--c4:#facc15;--c5:#ff8fc0;
--b0:#7eb0ff14;--b1:#ffa06918}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:16px;background:var(--paper);color:var(--ink);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.3rem;margin:0;overflow-wrap:anywhere}h2{font-size:1.05rem;margin:1.4rem 0 .5rem}
.when{margin:.1rem 0 .6rem;color:var(--soft)}
.progress{height:8px;border-radius:4px;background:var(--line);overflow:hidden}
.progress span{display:block;height:100%;background:var(--steps)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:8px;margin:14px 0 0}
dl div{background:var(--card);border-radius:8px;padding:8px 12px}
dt{color:var(--soft);font-size:.82rem}dd{margin:0;overflow-wrap:anywhere}
.goodput{display:flex;height:22px;border-radius:6px;overflow:hidden}
.keys{list-style:none;margin:.5rem 0 0;padding:0;display:flex;flex-wrap:wrap;gap:2px 18px}
.swatch{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
.p-steps{background:var(--steps)}.p-not-committed{background:var(--steps);opacity:.5}.p-waiting{background:var(--waiting)}.p-start-up{background:var(--startup)}
.p-data{background:var(--data)}.p-validation{background:var(--validation)}.p-saves{background:var(--saves)}
.p-lost{background:var(--lost)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:14px;margin-top:18px}
figure{margin:0;background:var(--card);border-radius:8px;padding:10px}
figcaption{font-weight:600;margin-bottom:4px}.key{font-weight:400;margin-left:10px;color:var(--soft)}
.key.c0 b{color:var(--c0)}.key.c1 b{color:var(--c1)}
.key.c2 b{color:var(--c2)}.key.c3 b{color:var(--c3)}.key.c4 b{color:var(--c4)}.key.c5 b{color:var(--c5)}
svg{display:block;width:100%;height:auto}svg text{font-size:12px;fill:var(--soft)}
.grid{stroke:var(--line)}.curve{fill:none;stroke-width:1.8;stroke-linejoin:round}
polyline.c0{stroke:var(--c0)}circle.c0{fill:var(--c0)}polyline.c1{stroke:var(--c1)}circle.c1{fill:var(--c1)}
polyline.c2{stroke:var(--c2)}circle.c2{fill:var(--c2)}polyline.c3{stroke:var(--c3)}circle.c3{fill:var(--c3)}
polyline.c4{stroke:var(--c4)}circle.c4{fill:var(--c4)}polyline.c5{stroke:var(--c5)}circle.c5{fill:var(--c5)}
.b0{fill:var(--b0)}.b1{fill:var(--b1)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;white-space:nowrap}
th{text-align:left;color:var(--soft);font-weight:500}th,td{padding:4px 12px 4px 0;border-bottom:1px solid var(--line)}
@media(max-width:600px){svg text{font-size:18px}}
footer{color:var(--soft);margin:18px 0 4px;font-size:.85rem}
"""
