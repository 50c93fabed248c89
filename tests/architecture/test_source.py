"""Rules of style that a program can check. Each checker is also fed one bad input that it has to refuse."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
SOURCE_FOLDERS = ("libs", "services", "pipelines", "benchmarks")
CORES = ("drift", "feature", "gateway", "inference", "intake", "labeler", "rollout", "trainer")

VAGUE = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
FUNCTION_LINES_MAX = 70
# Longer ones, each with its reason. A new name here is a decision; a shorter function is better.
LONG_FUNCTIONS: dict[str, str] = {}
# Who may ask the machine for the time: the clock, and what runs or measures processes on this machine.
KNOW_THE_TIME = ("libs/driftline/clock.py", "libs/driftline/local/", "benchmarks/")
NOW = {"now", "utcnow", "today", "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
ABOUT_TIME = {"datetime", "date", "time"}
EXECUTES_WHAT_IT_READS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources() -> list[Path]:
    return sorted(path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*.py"))


def written_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_without_theory(tree: ast.Module) -> bool:
    """A module with code and no docstring. An empty `__init__.py` needs none."""
    return bool(tree.body) and not ast.get_docstring(tree)


def vague_names(path: Path, tree: ast.Module) -> set[str]:
    """The words in a file's path and in its definitions that say nothing about what they name."""
    defined = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    words = {word.lower() for name in [*path.with_suffix("").parts, *defined] for word in re.findall(r"[A-Z]?[a-z]+", name)}
    return words & VAGUE


def loads_what_runs(tree: ast.Module) -> bool:
    """Imports something that executes what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] in EXECUTES_WHAT_IT_READS for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in EXECUTES_WHAT_IT_READS:
            return True
    return False


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Each function with its number of lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def asks_for_the_time(tree: ast.Module) -> bool:
    """Imports `time`, or calls `now`, `today` and the like on a date or the time."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name == "time" for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in NOW:
            of = node.func.value
            if (of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")) in ABOUT_TIME:
                return True
    return False


def draws_without_a_seed(tree: ast.Module) -> bool:
    """Calls a generator that the whole process shares, or makes one without a seed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("random.Random", "np.random.default_rng", "numpy.random.default_rng") and not (node.args or node.keywords):
                return True
            if re.fullmatch(r"random\.(?!Random)\w+|(np|numpy)\.random\.(?!default_rng|Generator|SeedSequence|PCG64)\w+", called):
                return True
    return False


def connects_without_access(tree: ast.Module) -> bool:
    """Makes a client of aiokafka whose options do not begin with those of `driftline.access`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("AIOKafka"):
            first = node.keywords[0] if node.keywords else None
            if first is None or first.arg is not None or not ast.unparse(first.value).startswith("kafka_client("):
                return True
    return False


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def test_all_source_was_found() -> None:
    """
    The rules below find their own subjects: too few would mean that they look in the wrong place.
    """
    assert len(sources()) > 60
    assert {label(path) for path in sources()} >= {f"services/{name}/core.py" for name in CORES}


def test_every_module_says_what_it_is_for() -> None:
    """
    A module, tests included, opens with one or two sentences.
    """
    assert [label(path) for path in [*sources(), *written_tests()] if is_without_theory(parsed(path))] == []


def test_no_name_says_nothing() -> None:
    """
    No utils, helpers, manager or common: not as a module, not in the name of a function or class.
    """
    found = {label(path): names for path in sources() if (names := vague_names(Path(label(path)), parsed(path)))}
    assert found == {}


def test_functions_fit_on_a_screen() -> None:
    """
    No function has more than 70 lines, but those that are listed with their reason, and none is listed without need.
    """
    long = {
        f"{label(path)}:{name}"
        for path in [*sources(), *written_tests()]
        for name, lines in functions(parsed(path))
        if lines > FUNCTION_LINES_MAX
    }
    assert long == set(LONG_FUNCTIONS)


def test_only_the_clock_knows_the_time() -> None:
    """
    Time is on the log; who needs the wall's asks the clock in libs, so that a test can set it.
    """
    asking = [label(path) for path in sources() if asks_for_the_time(parsed(path)) and not label(path).startswith(KNOW_THE_TIME)]
    assert asking == []


def test_nothing_is_pickled() -> None:
    """
    A model is data: reading it runs nothing.
    """
    assert [label(path) for path in sources() if loads_what_runs(parsed(path))] == []


def test_chance_has_a_seed() -> None:
    """
    A run repeats from its seed.
    """
    assert [label(path) for path in sources() if draws_without_a_seed(parsed(path))] == []


def test_every_client_of_kafka_asks_for_its_access() -> None:
    """
    One that did not would be the one that connects in clear. Benchmarks have brokers of their own.
    """
    product = [path for path in sources() if not label(path).startswith("benchmarks/")]
    assert [label(path) for path in product if connects_without_access(parsed(path))] == []


def test_tests_are_sentences() -> None:
    """
    Each test has a docstring that says in words what its name says.
    """
    wordless = [
        f"{label(path)}:{node.name}"
        for path in written_tests()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert wordless == []


def test_tests_have_no_packages() -> None:
    """
    pytest imports each test file by itself, so two may have one name.
    """
    assert list((ROOT / "tests").rglob("__init__.py")) == []


# Test files of which some tests need a device or a program that driftline does not bring.
NOT_EVERYWHERE = {
    "tests/deploy/test_kubernetes.py",
    "tests/libs/driftline/models/test_devices.py",
    "tests/monitoring/test_alerts.py",
    "tests/services/gateway/console/test_browser.py",
    "tests/services/gateway/test_stock_clients.py",
}


def test_no_test_is_switched_off() -> None:
    """
    A test that is skipped or expected to fail is a promise that nobody checks, but for those of what is not on every machine.
    """
    switched_off = re.compile(r"pytest\.(mark\.)?(skip|skipif|xfail|importorskip)\b|unittest\.skip")
    found = {label(path) for path in written_tests() if path != Path(__file__) and switched_off.search(path.read_text(encoding="utf-8"))}
    assert found == NOT_EVERYWHERE


def test_every_service_has_its_card() -> None:
    """
    A folder of services is a core, its wiring, and ten lines for people.
    """
    for name in CORES:
        assert {path.name for path in (ROOT / "services" / name).iterdir()} >= {"README.md", "app.py", "core.py"}, name


@pytest.mark.parametrize(
    ("checker", "bad"),
    [
        (is_without_theory, "x = 1"),
        (asks_for_the_time, "import time"),
        (asks_for_the_time, "from time import monotonic"),
        (asks_for_the_time, "from datetime import datetime\nseen = datetime.now()"),
        (asks_for_the_time, "import datetime as d\nimport datetime\nseen = datetime.date.today()"),
        (loads_what_runs, "import joblib"),
        (loads_what_runs, "from pickle import loads"),
        (connects_without_access, "AIOKafkaConsumer(bootstrap_servers=kafka)"),
        (connects_without_access, "AIOKafkaAdminClient(**options)"),
        (draws_without_a_seed, "import random\nx = random.random()"),
        (draws_without_a_seed, "import numpy as np\nx = np.random.default_rng()"),
        (draws_without_a_seed, "import numpy as np\nx = np.random.rand(3)"),
        (lambda tree: vague_names(Path("libs/driftline/text_utils.py"), tree), ""),
        (lambda tree: vague_names(Path("libs/driftline/texts.py"), tree), "class ConnectionManager: pass"),
        (lambda tree: any(lines > FUNCTION_LINES_MAX for _, lines in functions(tree)), "def f():\n" + "    x = 1\n" * 70),
    ],
)
def test_each_rule_refuses_a_bad_input(checker: object, bad: str) -> None:
    """
    A checker that finds nothing anywhere would pass all the tests above.
    """
    assert callable(checker)
    assert checker(ast.parse(bad))
