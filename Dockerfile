# Train, evaluate, search and serve on a CPU:
#   docker build -t occluded-reid .
#   docker run --rm --shm-size 2g -v "$PWD":/data occluded-reid zoo list
# What is written lies below the working directory /data.

FROM python:3.12-slim-bookworm AS build
# Set it to an index of PyTorch's CPU builds (pytorch.org: Linux, Pip, CPU) to leave CUDA out.
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH="/opt/venv/bin:$PATH"
WORKDIR /src
COPY pyproject.toml requirements.txt README.md LICENSE ./
RUN pip install --constraint requirements.txt torch torchvision \
    ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY occluded_reid occluded_reid
COPY fed_plugin fed_plugin
COPY aonet_plugin aonet_plugin
COPY gallery_search gallery_search
COPY configs configs
COPY projects projects
RUN pip install --constraint requirements.txt ".[headless,web]" \
    && pip install --no-deps fastreid==1.4.0

FROM python:3.12-slim-bookworm
# OpenMP for PyTorch and faiss
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1=12.* \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 reid \
    && install -d -o reid -g reid /data
COPY --from=build /opt/venv /opt/venv
ENV PATH="/opt/venv/bin:$PATH" PYTHONUNBUFFERED=1 FASTREID_DATASETS=/data/datasets
USER 1000
WORKDIR /data
EXPOSE 7860
ENTRYPOINT ["occluded-reid"]
CMD ["--help"]
