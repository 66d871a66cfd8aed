# saqm as an image: `serve` (HTTP and its page) and `node` (DICOM) from one build. See docs/deploy.md.
#
#     docker build --tag saqm:local .
#     docker build --tag saqm:local --build-arg PIP_INDEX_URL=https://mirror.hospital.example/simple .
#
# deploy/check.sh runs every COPY and RUN of this file, and its CMD and HEALTHCHECK, where there is no container engine.

# The Python that the tests run on. For builds that must repeat to the byte, put the digest here: name@sha256:...
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
# Says where packages come from, if not from pip's default; stays in this stage.
ARG PIP_INDEX_URL
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt /build/
COPY src /build/src
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /build/wheels /build
# By file name, never by "saqm": a package of that name on an index must not be taken for this one.
RUN python -m venv /opt/saqm \
    && /opt/saqm/bin/python -m pip install --no-cache-dir --no-compile --constraint /build/constraints.txt \
        "$(echo /build/wheels/saqm-*.whl)[serve,dicom-decoders]" \
    && /opt/saqm/bin/python -m pip freeze --exclude saqm > /opt/saqm/installed.txt \
    && /opt/saqm/bin/python -m pip uninstall --yes --quiet pip setuptools \
    && /opt/saqm/bin/python -m compileall -q /opt/saqm/lib

FROM ${PYTHON}
LABEL org.opencontainers.image.title="saqm" \
    org.opencontainers.image.description="Quality of medical images without a reference: HTTP service and DICOM node" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.documentation="docs/deploy.md"
# Fixed numbers, so that the owner of a volume is the same after every upgrade.
RUN groupadd --system --gid 10001 saqm \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/saqm --shell /usr/sbin/nologin saqm
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/saqm
COPY --from=build /opt/saqm /opt/saqm
COPY deploy/saqm.toml /etc/saqm/saqm.toml
ENV PATH=/opt/saqm/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/saqm
USER 10001:10001
WORKDIR /var/lib/saqm
VOLUME ["/var/lib/saqm"]
EXPOSE 8787 11112
STOPSIGNAL SIGTERM
# Of `serve`; for `node` compose.yaml says another. Asks the loopback, so it needs no key.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8787/healthz', timeout=4)"]
ENTRYPOINT ["saqm"]
CMD ["serve", "--config", "/etc/saqm/saqm.toml"]
