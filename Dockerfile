# CPU by default; for a GPU: docker build --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 --build-arg EXTRAS=test,cuda13 .
ARG BASE=debian:13-slim
# hadolint ignore=DL3006
FROM ${BASE}

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 user
USER 10001
WORKDIR /home/user/gpuprop
COPY --chown=10001 . .

ARG EXTRAS=test
RUN python3 -m venv .venv && .venv/bin/pip install --no-cache-dir --editable ".[${EXTRAS}]"
ENV PATH=/home/user/gpuprop/.venv/bin:$PATH

# The main job; the tests: docker run --rm IMAGE python -m pytest
CMD ["gpuprop", "train", "digits"]
