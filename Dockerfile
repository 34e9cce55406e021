# The training job as a container: `docker build -t indextts-job .`, then `docker run --gpus all … indextts-job train …`.
#
# Layers, from what changes least: base, Python, dependencies (gigabytes, from constraints.txt), the package (kilobytes).
# Build arguments choose what they are made of; the defaults are for NVIDIA GPUs on x86-64.

ARG BASE_IMAGE=docker.io/nvidia/cuda:13.0.1-runtime-ubuntu24.04@sha256:c3fde347d52d578c84fd644bc177bc7ec333feaf11550d990da4084d7612e4c7

FROM ${BASE_IMAGE} AS base
# tini is process 1: it forwards SIGTERM even before the trainer can listen (process 1 has no default action), and reaps.
# The archive keeps no old versions to pin; the digest above fixes the base.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 tini ca-certificates \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /root/.bashrc /root/.profile \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +

FROM base AS dependencies
# Nothing of this stage but the virtual environment goes on.
# hadolint ignore=DL3008,DL3009
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv
# For another index or a folder of wheels: --build-arg PIP_OPTIONS="--no-index --find-links=/wheels".
ARG PIP_OPTIONS=""
# Besides S3: gcsfs for gs://, adlfs for abfs://.
ARG EXTRA_PACKAGES=""
# Every file that is installed has one of the hashes of LOCK. For V100s, other extras or another index, whose files are
# others: --build-arg LOCK= installs the versions of CONSTRAINTS instead (constraints-v100.txt, see docs/gpus.md).
ARG LOCK=image/requirements.lock
ARG CONSTRAINTS=constraints.txt
COPY constraints*.txt pyproject.toml image/requirements.lock /build/
# At the end goes what no training runs: tests, torch's test programs, the data server of TensorBoard's page. Bytecode
# stays: the root file system is read-only, so every start would compile it again.
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python -c "import tomllib; print(*tomllib.load(open('/build/pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /build/requirements.txt \
    && if [ -n "${LOCK}" ] && [ -z "${EXTRA_PACKAGES}" ]; then \
         /opt/venv/bin/pip install --no-cache-dir ${PIP_OPTIONS} --require-hashes -r "/build/${LOCK##*/}"; \
       else \
         /opt/venv/bin/pip install --no-cache-dir ${PIP_OPTIONS} -c "/build/${CONSTRAINTS}" torch \
         && /opt/venv/bin/pip install --no-cache-dir ${PIP_OPTIONS} -c "/build/${CONSTRAINTS}" -r /build/requirements.txt ${EXTRA_PACKAGES}; \
       fi \
    && /opt/venv/bin/pip uninstall --quiet --yes tensorboard-data-server pip \
    && find /opt/venv -depth -type d \( -name tests -o -path "*/torch/test" \) -exec rm -rf {} + \
    && find /opt/venv -path "*/torch/bin/*" -type f ! -name torch_shm_manager -delete

FROM dependencies AS package
ARG PIP_OPTIONS=""
COPY . /build/
# The package alone, in a folder of its own: a change of code rebuilds this and the last layer.
RUN python3 -m venv /build/venv \
    && /build/venv/bin/pip install --no-cache-dir ${PIP_OPTIONS} -c /build/constraints.txt setuptools wheel \
    && /build/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --target /opt/indextts-job /build \
    && sed -i '1s|.*|#!/opt/venv/bin/python|' /opt/indextts-job/bin/*
# What `indextts-job --version` shows, and every attempt records.
ARG REVISION=unknown
RUN echo "${REVISION}" > /opt/indextts-job/indextts_job/REVISION

FROM base
# A C compiler for compiled blocks (docs/gpus.md): --build-arg COMPILER="gcc libc6-dev python3-dev". Without one they run
# uncompiled, and the image has no compiler that an intruder could use.
ARG COMPILER=""
# hadolint ignore=DL3008
RUN [ -z "${COMPILER}" ] || { apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ${COMPILER} \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log; }
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="indextts-job" \
      org.opencontainers.image.description="Fine-tunes IndexTTS2's GPT on machines that may vanish" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=package /opt/indextts-job /opt/indextts-job
# Nothing is written outside /tmp and what the user mounts, so the root file system may be read-only.
ENV PATH=/opt/indextts-job/bin:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/indextts-job \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 10001:10001
WORKDIR /tmp
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/tini", "--", "indextts-job"]
CMD ["--help"]
