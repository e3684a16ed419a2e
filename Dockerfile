# The image of compose.yaml and of Docker and Kubernetes work pools (docs/flows.md): docker build -t lightning-flows .
# With CUDA: docker build --build-arg HARDWARE=gpu -t lightning-flows .
FROM python:3.11-slim
# gcc and libc6-dev: Triton compiles its launchers with them, on a GPU.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev make libnuma1 && rm -rf /var/lib/apt/lists/*
WORKDIR /srv/lightning
COPY . .
ARG HARDWARE=cpu
RUN make env HARDWARE=$HARDWARE
# On the volume that has the runs: models stay when a container goes, and the runs' base versions are links to them.
ENV PATH=/srv/lightning/.venv/bin:$PATH XDG_CACHE_HOME=/srv/lightning/var/cache
