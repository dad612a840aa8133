# Nodes with NVIDIA GPUs; the driver is the host's, CUDA comes with PyTorch's packages.
# From the top of the checkout:
#     docker build --file cluster/images/gpu.Dockerfile --tag spark-ray:gpu .
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

# PyPI's own build of PyTorch for Linux is the one with CUDA.
RUN PIP_NO_CACHE_DIR=1 \
    make install EXTRAS=models,train,tune,serve,ui,whisper,faster-whisper,s3,postgres,aws,gcp

ENV PATH=/opt/spark-ray/.venv/bin:$PATH \
    HF_HOME=/models/huggingface \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=spark_ray.serving.proxy:middlewares \
    RAY_SERVE_PROXY_USE_GRPC=1 \
    RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=2147483647 \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
