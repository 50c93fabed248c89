# syntax=docker/dockerfile:1
# driftline's images, one target for each weight of what they need (the extras of pyproject.toml):
#   serve    intake, feature, inference, labeler, drift, rollout
#   train    trainer
#   gateway  gateway
#   tools    every command, the embedded schema registry, the player of the demo's flights
# docker build --target serve --tag driftline-serve:0.1.0 .
ARG PYTHON=3.13

# Everything that requirements.txt pins, as `make setup` has it, and driftline as a wheel; no image is made of this stage.
FROM python:${PYTHON}-slim-bookworm AS packages
WORKDIR /build
ENV UV_LINK_MODE=copy
COPY requirements.txt ./
# The runtime of OpenMP is LightGBM's wish.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/all \
    && sed -n '/^uv==/,/[^\\]$/p' requirements.txt > uv.txt \
    && /opt/all/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r uv.txt \
    && /opt/all/bin/uv pip sync --require-hashes --python /opt/all/bin/python requirements.txt
COPY pyproject.toml README.md ./
COPY libs libs
COPY services services
COPY schemas schemas
RUN /opt/all/bin/python -m hatchling build --target wheel --directory dist
COPY docker/selected.py docker/install.sh docker/
# Loops are compiled for every processor of the architecture, not for that of the builder, which no other may have.
ENV NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES=

FROM packages AS serve-packages
RUN sh docker/install.sh serve \
    services.intake.app services.feature.app services.inference.app \
    services.labeler.app services.drift.app services.rollout.app

FROM packages AS train-packages
RUN sh docker/install.sh train services.trainer.app

FROM packages AS gateway-packages
RUN sh docker/install.sh gateway services.gateway.app

FROM packages AS tools-packages
RUN sh docker/install.sh tools \
    services.feature.app services.labeler.app services.drift.app \
    driftline.local.registry driftline.local.player driftline.operate.backfill

# What all images share. The root file system may be read-only: what is written goes to /tmp, to the model store, and to the run dir.
FROM python:${PYTHON}-slim-bookworm AS base
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="driftline" \
      org.opencontainers.image.description="Real-time machine learning on Kafka that closes its own loop" \
      org.opencontainers.image.version="${VERSION}"
RUN groupadd --gid 10001 driftline \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin driftline \
    && install -d -o 10001 -g 10001 /var/lib/driftline/models /run/driftline
ENV PATH=/opt/driftline/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/tmp/numba \
    NUMBA_CPU_NAME=generic \
    NUMBA_CPU_FEATURES= \
    DRIFTLINE_PIPELINES=/srv/driftline/pipelines \
    DRIFTLINE_SCHEMAS=/srv/driftline/schemas \
    DRIFTLINE_MODEL_STORE=/var/lib/driftline/models \
    DRIFTLINE_OPS_HOST=0.0.0.0 \
    DRIFTLINE_OPS_PORT=9100
COPY docker/entrypoint.sh /usr/local/bin/entrypoint
COPY schemas /srv/driftline/schemas
COPY pipelines /srv/driftline/pipelines
EXPOSE 9100
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 9100, timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["sh", "/usr/local/bin/entrypoint"]
CMD ["driftline", "--help"]

FROM base AS serve
COPY --from=serve-packages /opt/driftline /opt/driftline
USER 10001:10001

FROM base AS gateway
COPY --from=gateway-packages /opt/driftline /opt/driftline
EXPOSE 8080
USER 10001:10001

# LightGBM wants the runtime of OpenMP.
FROM base AS base-train
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

FROM base-train AS train
COPY --from=train-packages /opt/driftline /opt/driftline
USER 10001:10001

FROM base-train AS tools
COPY --from=tools-packages /opt/driftline /opt/driftline
USER 10001:10001
HEALTHCHECK NONE
