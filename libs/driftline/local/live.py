"""
The live view of a play: a picture on a terminal, plain lines elsewhere. It shows what `progress` knows and decides nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from driftline.clock import Clock
from driftline.local.progress import DAY_MS, Line, Meters, Progress, day_text, most_drifted, weekly_auc

WIDTH_MAX = 110
SPARKS = "▁▂▃▄▅▆▇█"
SPARKS_MAX = 32
STORY_LINES = 8
PLAIN_EVERY_S = 1.0
PICTURE_EVERY_S = 0.5  # twice a second costs a hundredth of a core
PSI_LIMIT = 0.2
STAGES = ("intake", "feature", "inference", "labeler", "drift")


@dataclass(frozen=True, slots=True)
class Scene:
    """What a frame is drawn from, besides the progress: which play this is, and how long it has been going on."""

    pipeline: str
    start_ms: int
    days: int
    elapsed_s: float


class View(Protocol):
    """Shows a play. `show` may be called as often as one likes; it draws when it is time to."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def say(self, text: str) -> None:
        """One line that stays."""

    def show(self, scene: Scene, progress: Progress, meters: Meters) -> None:
        """The play as it stands now."""


def make_view(clock: Clock, out: TextIO = sys.stdout) -> View:
    """A picture when `out` is a terminal, plain lines otherwise."""
    return Screen(clock, Console(file=out)) if out.isatty() else Plain(clock, out)


class Plain:
    """Lines for a log: everything that happened, and at most one line a second on how far the play is."""

    def __init__(self, clock: Clock, out: TextIO) -> None:
        self._clock = clock
        self._out = out
        self._told = 0
        self._shown_s = -PLAIN_EVERY_S
        self._status = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._out.flush()

    def say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def show(self, scene: Scene, progress: Progress, meters: Meters) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._shown_s < PLAIN_EVERY_S:
            return
        self._shown_s = now_s
        lines = [story_line(line) for line in progress.lines_since(self._told)]
        self._told = progress.told
        status = status_line(scene, progress, meters)
        if status != self._status:
            lines.append(status)
            self._status = status
        if lines:
            self.say("\n".join(lines))


class Screen:
    """A picture that is drawn over and over, under the lines that stay."""

    def __init__(self, clock: Clock, console: Console) -> None:
        self._clock = clock
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._shown_s = -PICTURE_EVERY_S

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(Text(text))

    def show(self, scene: Scene, progress: Progress, meters: Meters) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._shown_s >= PICTURE_EVERY_S:
            self._shown_s = now_s
            width = min(self._console.width, WIDTH_MAX)
            drawn = "\n".join(picture(scene, progress, meters, width))
            self._live.update(Text(drawn, no_wrap=True, overflow="ellipsis"), refresh=True)


def picture(scene: Scene, progress: Progress, meters: Meters, width: int) -> list[str]:
    """The whole picture, line by line."""
    return [
        "",
        _title(scene, progress, width),
        *_counts(progress, meters),
        "",
        *_quality(progress),
        _drift(progress),
        "",
        *(story_line(line) for line in progress.lines[-STORY_LINES:]),
    ]


def status_line(scene: Scene, progress: Progress, meters: Meters) -> str:
    """How far the play is, in one line."""
    if not progress.time:
        return "waiting for the first day"
    read = f"{meters.read.get('intake', 0):,.0f} messages in, {sum(meters.behind.values()):,.0f} behind"
    return f"{day_text(progress.time - DAY_MS)} ({days_played(scene, progress)} of {scene.days} days)  {read}  {_serving(progress)}"


def days_played(scene: Scene, progress: Progress) -> int:
    """How many days have been published; those without questions at the end, in which answers mature, are not counted."""
    return min(scene.days, max(0, (progress.time - scene.start_ms) // DAY_MS))


def story_line(line: Line) -> str:
    """One thing that happened."""
    return f"  {day_text(line.time):<17} {line.who:<9} {line.text}"


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """The last values as bars between `low` and `high`."""
    span = (high - low) or 1.0
    steps = [int((value - low) / span * len(SPARKS)) for value in values[-SPARKS_MAX:]]
    return "".join(SPARKS[min(max(step, 0), len(SPARKS) - 1)] for step in steps)


def _title(scene: Scene, progress: Progress, width: int) -> str:
    if not progress.time:
        return f"─ {scene.pipeline} ─ waiting for the first day ".ljust(width, "─")
    played_s = max(0, progress.time - scene.start_ms) / 1000
    speed = f"{played_s / scene.elapsed_s:,.0f} times real time" if scene.elapsed_s else ""
    left = f"─ {scene.pipeline} ─ {day_text(progress.time - DAY_MS)} "
    right = f" {speed} ─ day {days_played(scene, progress)} of {scene.days} ─ {scene.elapsed_s:.0f} s ─"
    return left + "─" * max(1, width - len(left) - len(right)) + right


def _counts(progress: Progress, meters: Meters) -> list[str]:
    arrows = " ──▶ ".join(f"{name:<9}" for name in (*STAGES, "trainer", "rollout"))
    read = [f"{meters.read.get(name, 0):,.0f}" for name in STAGES]
    numbers = "     ".join(f"{text:<9}" for text in (*read, f"{progress.trainings} runs", progress.deployment.state))
    refused = f"refused {meters.dead_letters:,.0f}"
    behind = f"behind {sum(meters.behind.values()):,.0f}"
    return [f"  {arrows.rstrip()}", f"  {numbers.rstrip()}", f"  {behind}   {refused}   alarms {progress.alarms}   {_serving(progress)}"]


def _serving(progress: Progress) -> str:
    arms = [f"{arm.model} ({arm.role} {arm.share:.0%})" for arm in progress.deployment.arms]
    along = [f"{arm.model} ({arm.role})" for arm in progress.deployment.shadows]
    return " + ".join(arms) + (f", beside it {', '.join(along)}" if along else "") if arms else "no model yet"


def _quality(progress: Progress) -> list[str]:
    weeks = {role: weekly_auc(progress.quality.get(role, ())) for role in ("champion", "frozen")}
    every = [value for values in weeks.values() for value in values]
    if not every:
        return ["  AUC by week        no matured answers of a model yet"]
    low, high = min(every), max(every)
    return [
        f"  AUC by week        {sparkline(values, low, high):<{SPARKS_MAX}} {values[-1]:.3f}  {role}"
        for role, values in weeks.items()
        if values
    ]


def _drift(progress: Progress) -> str:
    found = most_drifted(progress.psi)
    if found is None:
        return ""
    name, values = found
    course = sparkline(values, 0.0, max(PSI_LIMIT, *values))
    return f"  {name:<18.18} {course:<{SPARKS_MAX}} PSI {values[-1]:.2f} against training; evidence above {PSI_LIMIT}"
