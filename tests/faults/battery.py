"""
The fault battery: `make faults` plays every part, `make faults ARGS="--part kills --seed 3"` one of them. Each part leaves one JSON in the
folder of results, and is not played again while that is there; `report.py` makes a page of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import report
from doses import Doses, Trial
from parts import PARTS, SMALL, Part
from report import RESULTS
from rig import Lost, Rig

from driftline.errors import DriftlineError
from driftline.local.broker import Broker
from driftline.local.stack import RegistryServer

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("check_log.py",)
END_S = 600.0
WARM_S = 240.0


async def play(part: Part, seed: int, scale: float, folder: Path, say: Any = print) -> dict[str, Any]:
    """Play one part from the first server to the last checker. What it found, for JSON; the stack is gone when it returns."""
    began_s, began = time.monotonic(), datetime.now(UTC)
    rig = Rig(folder, seed=seed, through=part.through)
    trials: list[Trial] = []
    lost = ""
    checked: dict[str, Any] = {}
    told: dict[str, float] = {}
    try:
        await rig.start()
        rig.feed(part.days, part.mix, part.pace)
        supervising = asyncio.create_task(rig.supervise())
        try:
            await before(supervising, give(part, rig, seed, scale, trials, say))
            told["doses_s"] = time.monotonic() - began_s
            await before(supervising, finish(rig))
            told["played_s"] = time.monotonic() - began_s
        except (Lost, DriftlineError) as error:
            lost = str(error)
        finally:
            supervising.cancel()
            await asyncio.gather(supervising, return_exceptions=True)
        if not lost:
            say(f"{part.name}: {len(trials)} doses given, checking")
            checked = await asyncio.to_thread(check, folder)
            told["checked_s"] = time.monotonic() - began_s
    finally:
        await rig.stop()
    return {
        "part": part.name,
        "command": f'make faults ARGS="--part {part.name} --seed {seed}{"" if scale == 1 else f" --scale {scale:g}"}"',
        "seed": seed,
        "scale": scale,
        "began": began.isoformat(timespec="seconds"),
        "seconds": {name: round(value, 1) for name, value in told.items()} | {"all_s": round(time.monotonic() - began_s, 1)},
        "machine": machine(),
        "fed": rig.fed(),
        "mix": part.mix,
        "lost": lost,
        "exits": rig.exits,
        "memory_peaks": rig.memory_peaks,
        "trials": [one.to_dict() for one in trials],
        "checks": checked,
    }


async def give(part: Part, rig: Rig, seed: int, scale: float, trials: list[Trial], say: Any) -> None:
    """Wait until the loop is warm, then give every dose of the part."""
    await rig.all_ready(WARM_S)
    if not await rig.ends.beyond("predictions", 0, WARM_S):
        raise Lost("no prediction has come")
    doses = Doses(rig, seed)
    async for trial in part.doses(doses, rig, scale, np.random.default_rng([seed, 12])):
        trials.append(trial)
        took = "" if trial.recovery_s is None else f", {trial.recovery_s:.2f} s"
        say(f"{part.name} {len(trials):>4}  {trial.dose} {trial.service} {trial.how}{' whole' if trial.whole else ''}{took}")


async def before(supervising: asyncio.Task[None], doing: Coroutine[Any, Any, None]) -> None:
    """Do something, unless what supervises meanwhile gives up first."""
    task = asyncio.create_task(doing)
    try:
        await asyncio.wait({task, supervising}, return_when=asyncio.FIRST_COMPLETED)
        if supervising.done():
            supervising.result()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def finish(rig: Rig) -> None:
    """No more doses: let the feeder come to its end, which waits for the loop's last answer."""
    (rig.feed_folder / "midnight").unlink(missing_ok=True)
    (rig.feed_folder / "enough").touch()
    rig.pace(1e9)
    feeder = rig.stack.children["feeder"]
    deadline = time.monotonic() + END_S
    while feeder.alive:
        if time.monotonic() > deadline:
            raise Lost(f"the loop has not come to its end in {END_S:.0f} s: {feeder.log_tail(10)}")
        await asyncio.sleep(0.1)
    if feeder.exit_code != 0:
        raise Lost(f"the feeder failed: {feeder.log_tail(10)}")
    await rig.all_ready()


def check(folder: Path) -> dict[str, Any]:
    """Run the checkers, each a program of its own, on what the play left."""
    found = {}
    for script in CHECKS:
        command = [sys.executable, str(ROOT / "benchmarks" / script), "--stack", str(folder / "stack.json")]
        began_s = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            figures = json.loads(done.stdout)
        except ValueError:
            figures = {"violations": [f"{script} ended with {done.returncode}: {done.stderr[-2_000:]}"]}
        found[script] = {**figures, "seconds": round(time.monotonic() - began_s, 1)}
    return found


def check_again(folder: Path) -> dict[str, Any]:
    """The checkers on a play whose files were kept: its broker and its registry are started again."""
    broker = Broker(folder / "kafka")
    with broker, RegistryServer(folder / "registry", broker.address) as registry:
        (folder / "stack.json").write_text(json.dumps({"kafka": broker.address, "registry": registry.url}))
        return check(folder)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {
        "cpus": psutil.cpu_count(),
        "cpu": model,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 when every part that was chosen was played and nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=sorted(PARTS), default=[], help="only this one (may be given again)")
    parser.add_argument("--dose", choices=("whole", "small"), default="whole", help="small: what is in `make test`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="a share of the doses")
    parser.add_argument("--again", action="store_true", help="play parts again that have a result")
    parser.add_argument("--keep", action="store_true", help="keep the files of a play that has shown nothing wrong")
    parser.add_argument("--check", type=Path, metavar="PLAY", help="run the checkers again on the kept files of a play, and nothing else")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    if chosen.check:
        print(json.dumps(check_again(chosen.check), indent=1))
        return 0
    if chosen.dose == "small" and chosen.results == RESULTS:
        chosen.results = RESULTS / "small"
    chosen.results.mkdir(parents=True, exist_ok=True)
    broken = 0
    parts = {SMALL.name: SMALL} if chosen.dose == "small" else PARTS
    for name in chosen.part or list(parts):
        place = chosen.results / f"{name}.json"
        if place.exists() and not chosen.again:
            print(f"{name}: played already ({place.name}); --again plays it once more", flush=True)
            broken += bool(report.wrong(json.loads(place.read_text())))
            continue
        folder = chosen.results / "plays" / name
        shutil.rmtree(folder, ignore_errors=True)
        result = asyncio.run(play(parts[name], chosen.seed, chosen.scale, folder, lambda words: print(words, flush=True)))
        place.write_text(json.dumps(result, indent=1) + "\n")
        wrong = report.wrong(result)
        print(f"{name}: {len(result['trials'])} doses in {result['seconds']['all_s']:.0f} s, {len(wrong)} violations", flush=True)
        for one in wrong:
            print(f"  VIOLATED {one}", flush=True)
        if not wrong and not chosen.keep:
            shutil.rmtree(folder, ignore_errors=True)
        broken += bool(wrong)
    if chosen.dose == "whole" and chosen.results == RESULTS:
        report.write(RESULTS, report.PAGE)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
