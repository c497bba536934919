# As it is, torch is pip's default build: on x86-64 Linux one with CUDA, which also runs without a GPU.
# For a smaller image without CUDA name an index of CPU builds: --build-arg TORCH_INDEX=...
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# On a GPU Triton compiles what launches its kernels, at the first start.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=
WORKDIR /safecb
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "$(grep '^torch==' constraints.txt)"
COPY app app
COPY codebook codebook
COPY engine engine
COPY core core
COPY records records
COPY cli cli
COPY recipes recipes
COPY safety safety
COPY worker worker
COPY checkpoints checkpoints
RUN pip install --no-cache-dir -c constraints.txt -e '.[embedded]' \
    && useradd --create-home safecb && install -d -o safecb /data

USER safecb
ENV SAFECB_HOME=/data SAFECB_HOST=0.0.0.0
VOLUME /data
EXPOSE 8000
# It listens on all addresses, so it needs keys (SAFECB_KEYS) or SAFECB_OPEN=on.
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready')"]
# Run it with --init, so that an orphaned job process has somebody to bury it, and with --stop-timeout 60: see SAFECB_DRAIN_S.
ENTRYPOINT ["safecb"]
CMD ["serve"]
