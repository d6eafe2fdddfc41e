# syntax=docker/dockerfile:1
# edgedistill on CPUs, at the versions of requirements.lock.
#     docker build -t edgedistill .
#     docker run --rm -v "$PWD:/home/edgedistill/work" edgedistill distill recipe=emoji-4step

FROM python:3.11-slim AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/edgedistill
# torch alone first: its layer stays when the sources change.
COPY requirements.lock ./
RUN /opt/edgedistill/bin/pip install -c requirements.lock \
    --extra-index-url https://download.pytorch.org/whl/cpu torch
COPY . .
RUN /opt/edgedistill/bin/pip install -c requirements.lock \
    --extra-index-url https://download.pytorch.org/whl/cpu ./runtime ".[cpu,data,openvino]"

FROM python:3.11-slim
LABEL org.opencontainers.image.title="edgedistill" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --create-home --uid 1000 edgedistill \
    && mkdir /home/edgedistill/work \
    && chown edgedistill:edgedistill /home/edgedistill/work
COPY --from=build /opt/edgedistill /opt/edgedistill
ENV PATH=/opt/edgedistill/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/edgedistill/work
ENTRYPOINT ["edgedistill"]
CMD ["--help"]
