# As it is, torch is pip's default build: on x86-64 Linux one with CUDA, which also runs without a GPU.
# For a smaller image without CUDA name an index of CPU builds: --build-arg TORCH_INDEX=...
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# gcc compiles decode steps at the first start, and on a GPU what launches Triton's kernels. For tini see ENTRYPOINT.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev tini && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=
WORKDIR /safecb
COPY constraints.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE NOTICE ./
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
    && useradd --uid 1000 --create-home safecb && install -d -o safecb /data

# A number: where Kubernetes has to see that this is not root, it does not read the image's /etc/passwd.
USER 1000
ENV SAFECB_HOME=/data SAFECB_HOST=0.0.0.0
VOLUME /data
EXPOSE 8000
# It listens on all addresses, so it needs keys (SAFECB_KEYS) or SAFECB_OPEN=on.
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready')"]
# tini as process 1 buries orphaned job processes and passes signals on: as process 1 a worker waiting for Redis would
# ignore SIGTERM. With -s it works below another init too. For --stop-timeout 60 see SAFECB_DRAIN_S.
ENTRYPOINT ["tini", "-s", "--", "safecb"]
CMD ["serve"]
