# evomerge on a CPU. Build: docker build -t evomerge .   Run: docker run --rm -v "$PWD:/work" evomerge run study.yaml
FROM python:3.11-slim

# torch.compile needs a C++ compiler; without one, merges are the same bytes, only slower.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY evomerge evomerge
COPY search_spaces search_spaces
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir -c constraints.txt .

RUN useradd --uid 1000 --create-home evomerge && mkdir /work && chown 1000 /work
USER 1000
WORKDIR /work
ENTRYPOINT ["evomerge"]
CMD ["--help"]
