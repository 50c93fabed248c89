#!/bin/sh
# numba takes compiled loops only from a folder that it may write to, and the image may be read-only: so they are copied, once, to the
# folder that NUMBA_CACHE_DIR names. Without them a process would compile for most of a minute before it is ready.
set -eu

if [ -d /opt/driftline/numba ] && [ ! -d "$NUMBA_CACHE_DIR" ]; then
    cp -R /opt/driftline/numba "$NUMBA_CACHE_DIR.part"
    mv "$NUMBA_CACHE_DIR.part" "$NUMBA_CACHE_DIR"
fi
exec "$@"
