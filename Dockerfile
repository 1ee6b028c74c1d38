# One image for each service: `docker build --target api .`, or `make images` for all of them with the builder at hand.
#
# The environment is made by uv from the lock file at the path where it runs, in a stage of the same base; uv, compilers and
# caches stay behind. Nothing needs a shell, root, or a file system that can be written to (but /tmp, and a service's volumes).

# Pin both by digest where images are published (see docs/decisions/0050-one-dockerfile.md).
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG UV_IMAGE=ghcr.io/astral-sh/uv:0.13.9

FROM ${UV_IMAGE} AS uv

FROM ${BASE} AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PROJECT_ENVIRONMENT=/app \
    UV_PYTHON=python3 \
    UV_PYTHON_DOWNLOADS=never \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_CACHE_DIR=/var/cache/uv
WORKDIR /src
# uv reads the lock against every member, installed or not.
COPY pyproject.toml uv.lock ./
COPY libs/common/pyproject.toml libs/common/pyproject.toml
COPY libs/devstack/pyproject.toml libs/devstack/pyproject.toml
COPY deploy/observability/pyproject.toml deploy/observability/pyproject.toml
COPY services/api/pyproject.toml services/api/pyproject.toml
COPY services/metering/pyproject.toml services/metering/pyproject.toml
COPY services/billing/pyproject.toml services/billing/pyproject.toml
COPY services/backup/pyproject.toml services/backup/pyproject.toml

FROM ${BASE} AS runtime
ENV PATH=/app/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    USER=kgents
WORKDIR /
# Who did it, in what operators' commands write down: no file names this number.
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
STOPSIGNAL SIGTERM

# api: the door. Dependencies first: they change less often than the code.
FROM build AS build-api
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --locked --no-dev --package kgents-api --no-install-workspace
COPY libs/common libs/common
COPY services/api services/api
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --locked --no-dev --package kgents-api --no-editable

FROM runtime AS api
LABEL org.opencontainers.image.title="kgents-api" \
      org.opencontainers.image.vendor="kgents" \
      org.opencontainers.image.description="the door"
COPY --from=build-api /app /app
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
    CMD ["/app/bin/python", "-I", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('KGENTS_PORT', '8000') + '/health/live', timeout=2)"]
ENTRYPOINT ["/app/bin/kgents-api"]

# metering: the ledger, its reads and its delivery. Dependencies first: they change less often than the code.
FROM build AS build-metering
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --locked --no-dev --package kgents-metering --no-install-workspace
COPY libs/common libs/common
COPY services/metering services/metering
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --locked --no-dev --package kgents-metering --no-editable

FROM runtime AS metering
LABEL org.opencontainers.image.title="kgents-metering" \
      org.opencontainers.image.vendor="kgents" \
      org.opencontainers.image.description="the ledger, its reads and its delivery"
COPY --from=build-metering /app /app
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
    CMD ["/app/bin/python", "-I", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('KGENTS_PORT', '8001') + '/health/live', timeout=2)"]
ENTRYPOINT ["/app/bin/kgents-metering"]

# billing: Stripe's events into facts. Dependencies first: they change less often than the code.
FROM build AS build-billing
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --locked --no-dev --package kgents-billing --no-install-workspace
COPY libs/common libs/common
COPY services/billing services/billing
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --locked --no-dev --package kgents-billing --no-editable

FROM runtime AS billing
LABEL org.opencontainers.image.title="kgents-billing" \
      org.opencontainers.image.vendor="kgents" \
      org.opencontainers.image.description="Stripe's events into facts"
COPY --from=build-billing /app /app
EXPOSE 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
    CMD ["/app/bin/python", "-I", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('KGENTS_PORT', '8002') + '/health/live', timeout=2)"]
ENTRYPOINT ["/app/bin/kgents-billing"]

# backup: snapshots, archive, restore and drill. Dependencies first: they change less often than the code.
FROM build AS build-backup
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --locked --no-dev --package kgents-backup --no-install-workspace
COPY libs/common libs/common
COPY services/backup services/backup
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --locked --no-dev --package kgents-backup --no-editable

FROM runtime AS backup
LABEL org.opencontainers.image.title="kgents-backup" \
      org.opencontainers.image.vendor="kgents" \
      org.opencontainers.image.description="snapshots, archive, restore and drill"
COPY --from=build-backup /app /app
EXPOSE 8003
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
    CMD ["/app/bin/python", "-I", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('KGENTS_PORT', '8003') + '/health/live', timeout=2)"]
ENTRYPOINT ["/app/bin/kgents-backup"]
CMD ["run"]
