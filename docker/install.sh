#!/bin/sh
# Makes /opt/driftline in a stage of the Dockerfile: the packages of one extra with their digests checked, driftline itself, and its
# compiled loops. Run where /opt/all holds what requirements.txt pins and dist/ holds driftline's wheel.
#   install.sh EXTRA MODULE...    loops are compiled where their module is imported; the modules are what the image will run
set -eu

extra=$1
shift
python -m venv --without-pip /opt/driftline
/opt/all/bin/python docker/selected.py "$extra" > selected.txt
/opt/all/bin/uv pip sync --require-hashes --compile-bytecode --python /opt/driftline/bin/python selected.txt
/opt/all/bin/uv pip install --offline --no-deps --compile-bytecode --python /opt/driftline/bin/python dist/*.whl
/opt/all/bin/uv pip check --python /opt/driftline/bin/python
# -P: numba knows a loop by the path of its file, which has to be the installed one, not the one beside this.
NUMBA_CACHE_DIR=/opt/driftline/numba DRIFTLINE_SCHEMAS=/build/schemas /opt/driftline/bin/python -P -c '
import importlib, sys
from driftline.contracts.avro import warm
for module in sys.argv[1:]:
    importlib.import_module(module)
warm()
' "$@"
