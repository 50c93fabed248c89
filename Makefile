# Needs Python 3.11 to 3.13 and a shell. Every target sets up .venv first; the second time that touches no network.
# PYTHON=/path/to/python3.12 chooses the Python; ARGS=... goes on to the command.
COUNT ?= 1000000
SEED ?= 7
WORKERS ?= 2
.PHONY: demo test check mutants simulate faults hostile-models hostile-messages bench bench-quick gpu pin setup help
BIN := .venv/bin
PIN = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header $(ARGS)

demo: setup  ## seven months of real flights through the whole loop, and a report (ARGS=--fast: ten weeks)
	@$(BIN)/driftline demo $(ARGS)

test: check .venv-generator/.ready  ## every test, against a real Kafka and a real Valkey, after `make check` (ARGS="-k rollout": some)
	$(BIN)/pytest $(ARGS)

check: setup  ## lint, format, types, imports: what CI checks beside the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy libs services pipelines
	$(BIN)/lint-imports

mutants: setup  ## each law of docs/laws.md broken on purpose in a copy of the tree: its test has to fail (ARGS=05: law 5 alone)
	$(BIN)/python tests/laws/run.py $(ARGS)

simulate: setup  ## the runtime under faults of chance, then its mutants (SEEDS=n FIRST=n; ARGS=-v: the trace of each seed)
	$(BIN)/python -m tests.simulation.run --seeds $(or $(SEEDS),100000) --first $(or $(FIRST),1) $(ARGS)

faults: setup  ## the fault battery, in parts that can be run apart, and docs/reliability.md (ARGS="--part kills --seed 3": one part)
	$(BIN)/python tests/faults/battery.py $(ARGS)

hostile-models: setup  ## docs/hostile-models.md: every hostile model of the tests, who refuses it, and in which words
	$(BIN)/python tests/hostile/models/zoo.py

hostile-messages: setup  ## a million mutated messages through every consumed topic, and docs/hostile-input.md (COUNT=n SEED=n WORKERS=n)
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/hostile/messages/harness.py --count $(COUNT) --seed $(SEED) --workers $(WORKERS) --page docs/hostile-input.md

bench: .venv-peers/.ready  ## floors, peers and driftline hop by hop, and docs/performance.md (ARGS="--only driftline": some)
	$(BIN)/python -m benchmarks.performance --peers-python .venv-peers/bin/python $(ARGS)

bench-quick: .venv-peers/.ready  ## the same, one round of fewer events
	$(BIN)/python -m benchmarks.performance --quick --peers-python .venv-peers/bin/python $(ARGS)

# Packages apart from ours: the peers' (Bytewax has wheels for 3.11 and 3.12), and those of what generates a client in the tests.
.venv-peers/.ready: benchmarks/peers/requirements.txt
.venv-generator/.ready: tests/services/gateway/generator/requirements.txt
.venv-peers/.ready .venv-generator/.ready: | setup
	@sh libs/driftline/local/apart.sh $(@D) $<
	@touch $@

# pip where uv cannot fetch, as in setup.sh.
gpu: setup  ## ONNX Runtime for a GPU in place of the one for the processor: 2.3 GB, docs/how-to/use-a-gpu.md
	@$(BIN)/uv pip uninstall --quiet --python $(BIN)/python onnxruntime onnxruntime-gpu
	@$(BIN)/uv pip install --quiet --no-deps --require-hashes --python $(BIN)/python -r requirements-gpu.txt 2>$(BIN)/../gpu.log || \
		$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-gpu.txt
	@echo "DRIFTLINE_DEVICE=cuda uses it; inference refuses to start where it does not reach a GPU"

pin: setup  ## requirements*.txt from requirements*.in: versions and digests (ARGS=--upgrade: the newest)
	$(PIN) -o requirements.txt requirements.in
	$(PIN) -o requirements-gpu.txt requirements-gpu.in

setup:  ## .venv, packages, the broker's jars; nothing when they are there
	@sh libs/driftline/local/setup.sh

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | while IFS='	' read -r target words; do printf 'make %-16s %s\n' "$$target" "$$words"; done
