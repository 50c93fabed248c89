#!/bin/sh
# Makes an environment of its own beside .venv, of the same Python, for packages that ours must not meet.
#   apart.sh FOLDER REQUIREMENTS    as pinned, with digests; uv fetches them, or pip where uv cannot, as in setup.sh
# Run from the repository's root, after setup.sh.
set -eu

folder=$1
requirements=$2
log=$folder/setup.log
.venv/bin/uv venv --quiet --allow-existing --python .venv/bin/python "$folder"
.venv/bin/uv pip sync --quiet --require-hashes --python "$folder/bin/python" "$requirements" >"$log" 2>&1 && exit 0
.venv/bin/python -m pip --python "$folder/bin/python" install --quiet --disable-pip-version-check --require-hashes -r "$requirements" >>"$log" 2>&1 && exit 0
printf '%s\n' "The packages of $requirements could not be fetched; the end of $log:" "$(grep -v '^ *$' "$log" | tail -n 3 | cut -c 1-200)" >&2
exit 1
