#!/bin/sh
# Makes .venv with everything that requirements.txt pins, installs driftline into it as it stands, and prepares the rest.
# Run from the repository's root. A stamp named by the checksum of what it depends on lets the next run end at once.
set -u

VENV=.venv
LOG=$VENV/setup.log

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

version_of() {
    "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null
}

in_range() {
    case $1 in 3.11.* | 3.12.* | 3.13.*) return 0 ;; *) return 1 ;; esac
}

checksum() {
    { cat requirements.txt pyproject.toml libs/driftline/local/setup.sh libs/driftline/local/kafka.jars; pwd; } | cksum | tr ' ' '-'
}

# Sets `python`, or ends with the reason in words. With uv on the machine but no Python in range, uv brings one.
find_python() {
    for python in ${PYTHON:-python3.12 python3.13 python3.11 python3 python}; do
        version=$(version_of "$python") && in_range "$version" && return 0
    done
    if [ -z "${PYTHON:-}" ] && command -v uv >/dev/null 2>&1; then
        python=
        return 0
    fi
    asked=${PYTHON:-python3}
    found=$(version_of "$asked")
    fail "driftline needs Python 3.11, 3.12 or 3.13; $asked here is ${found:-missing}." \
        "  make demo PYTHON=/path/to/python3.12        (or install uv, which brings its own)"
}

make_venv() {
    if [ -n "$python" ] && "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        "$python" -m venv "$VENV" || fail "$python could not make the virtual environment $VENV."
    elif command -v uv >/dev/null 2>&1; then
        uv venv --quiet --seed --allow-existing --python "${python:-3.12}" "$VENV" || fail "uv could not make the virtual environment $VENV."
    else
        fail "$python has no venv module (Debian and Ubuntu ship it apart)." \
            "  sudo apt install python3-venv        or install uv and run make demo again"
    fi
}

# uv, itself pinned, is several times quicker than pip; where it does not run or cannot fetch, pip does the same work.
install_packages() {
    sed -n '/^uv==/,/[^\\]$/p' requirements.txt >"$VENV/uv.txt"
    : >"$LOG"
    if "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$VENV/uv.txt" >>"$LOG" 2>&1 &&
        "$VENV/bin/uv" pip sync --quiet --require-hashes --python "$VENV/bin/python" requirements.txt >>"$LOG" 2>&1; then
        return 0
    fi
    "$VENV/bin/python" -m ensurepip >>"$LOG" 2>&1
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt >>"$LOG" 2>&1 && return 0
    fail "The packages could not be fetched. Set-up needs the Python package index once (about 320 MB), later runs do not." \
        "  Behind a proxy: HTTPS_PROXY. Own mirror: PIP_INDEX_URL. All that was said is in $LOG; its end:" \
        "$(grep -v '^ *$' "$LOG" | tail -n 3 | cut -c 1-200 | sed 's/^/    /')"
}

# Offline: what builds it came with the packages.
install_driftline() {
    "$VENV/bin/uv" pip install --quiet --offline --no-deps --no-build-isolation --python "$VENV/bin/python" -e . >>"$LOG" 2>&1 && return 0
    "$VENV/bin/python" -m pip install --quiet --no-index --no-deps --no-build-isolation -e . >>"$LOG" 2>&1 && return 0
    fail "driftline itself could not be installed into $VENV; the end of $LOG:" "$(tail -n 5 "$LOG" | sed 's/^/    /')"
}

stamp=$VENV/.ready-$(checksum)
asked=${PYTHON:+$(version_of "$PYTHON")}
if [ -e "$stamp" ]; then
    here=$(version_of "$VENV/bin/python") && [ "${asked:-$here}" = "$here" ] && exit 0
fi

begun=$(date +%s)
find_python
[ "$(version_of "$VENV/bin/python")" = "$(version_of "${python:-none}")" ] || rm -rf "$VENV"
[ -x "$VENV/bin/python" ] || make_venv
rm -f "$VENV"/.ready-*
install_packages
install_driftline
packages=$(find "$VENV" -name "*.dist-info" -prune -print | wc -l | tr -d " ")
echo "${python:-python3.12 (from uv)} · environment ready ($packages packages, $(($(date +%s) - begun)) s)"
"$VENV/bin/python" -m driftline.local.prepare || exit 1
: >"$stamp"
