# Nodes without GPUs. From the top of the checkout:
#     docker build --file cluster/images/cpu.Dockerfile --tag spark-ray:cpu .
# `make install` is what tests run too: every package has the version that
# requirements/constraints.txt pins.
FROM python:3.11.13-slim-bookworm

# g++ and make for DeepSpeed; the rest is what KubeRay's probes and `ray up` call. `ray up` calls it
# in login shells, where Debian's profile forgets the PATH of the image.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        bash g++ make openssh-client openssl procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && echo 'PATH=/opt/spark-ray/.venv/bin:$PATH' > /etc/profile.d/spark-ray.sh \
    && useradd --create-home --uid 1000 --shell /bin/bash ray \
    && install --directory --owner ray --group ray /opt/spark-ray /models

WORKDIR /opt/spark-ray
USER ray
COPY --chown=ray Makefile pyproject.toml README.md LICENSE ./
COPY --chown=ray requirements requirements
COPY --chown=ray spark_ray spark_ray

# PyTorch's own index has the build without CUDA, `2.x.y+cpu`, which pip prefers to `2.x.y`.
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    make install EXTRAS=models,train,tune,serve,ui,whisper,faster-whisper,s3,postgres,aws,gcp

ENV PATH=/opt/spark-ray/.venv/bin:$PATH \
    HF_HOME=/models/huggingface \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=spark_ray.serving.proxy:middlewares \
    RAY_SERVE_PROXY_USE_GRPC=1 \
    RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=2147483647 \
    RAY_USAGE_STATS_ENABLED=0
