"""
The zoo: every hostile model that there is a test for, with how it is hostile, who has to refuse it, and in which words.

`python tests/hostile/models/zoo.py` offers each to a store and writes what became of it to docs/hostile-models.md.
"""

from __future__ import annotations

import tempfile
import traceback
from collections import Counter
from pathlib import Path

from behaviour import BEHAVIOUR
from files import FILES
from graphs import GRAPHS
from ground import Ground
from hostile import Hostile
from manifests import MANIFESTS

from driftline.errors import Invalid
from driftline.models.bundle import BundleStore

ZOO: tuple[Hostile, ...] = (*FILES, *MANIFESTS, *GRAPHS, *BEHAVIOUR)

PAGE = Path(__file__).resolve().parents[3] / "docs" / "hostile-models.md"
# Who raised, by the function of driftline.models that did; in onnx.py and trees.py everything is a check of the graph.
BY_FUNCTION = {
    "_place": "store",
    "_read": "store",
    "get": "signature",
    "_decoded": "manifest",
    "_check": "manifest",
    "refuse_misfit": "manifest",
    "try_out": "probe",
}
BY_MODULE = {"onnx.py": "graph", "trees.py": "graph"}


def refuser(error: Invalid) -> str:
    """Which of the five raised `error`."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return BY_MODULE.get(Path(last.filename).name) or BY_FUNCTION[last.name]


def offered(one: Hostile, folder: Path, store: BundleStore | None = None) -> Invalid | None:
    """What the store says when it is asked for the model as inference asks; None when it serves it."""
    ground = Ground(folder)
    digest = one.make(ground)
    try:
        (store or ground.opened()).model(digest)
    except Invalid as error:
        return error
    return None


def page() -> str:
    """The table, from what really happens."""
    rows, count = [], Counter[str]()
    for one in ZOO:
        with tempfile.TemporaryDirectory() as folder:
            error = offered(one, Path(folder))
        if error is None:
            raise SystemExit(f"{one.name} was served")
        count[refuser(error)] += 1
        rows.append(f"| `{one.name}` | {one.how} | {refuser(error)} | {str(error).replace('|', chr(92) + '|')} |")
    seen = len(rows) - count["probe"]
    told = ", ".join(f"{number} by the {who}" for who, number in count.most_common())
    return "\n".join([HEAD.format(all=len(rows), seen=seen, probed=count["probe"], told=told), *rows, ""])


HEAD = """# Hostile models

Made by `make hostile-models` from `tests/hostile/models/`, where a test asserts each line. There are {all} files. {seen} are refused
before ONNX Runtime sees a byte of them, and before the probe's process is started; the other {probed} show what they are only
when they run, and are refused by the probe, a process of its own with limits (`libs/driftline/models/probe.py`, decision
[0010](decisions/0010-models-are-probed.md)). Refused {told}.

All but those that the store or the signature refuses carry a good signature of the trusted key: a key that signs by mistake, or
that was stolen, makes no model safe. What inference does meanwhile is asserted by `tests/hostile/models/test_champion_serves.py`:
rows of the champion are answered by the champion, rows of a refused model get the fallback score, flagged as degraded.

| refused by | what it looks at |
|---|---|
| store | names, kinds and sizes of files, before anything is read |
| signature | Ed25519 over the digest, and the digest over the manifest |
| manifest | its form, what it says of itself, and that the graph is the one it names |
| graph | the graph, parsed within limits and walked, never loaded (`onnx.py`, `trees.py`) |
| probe | what the graph does |

| file | how it is hostile | refused by | message |
|---|---|---|---|"""


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE.name}: {len(ZOO)} models, all refused")
