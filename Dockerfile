# EdgePrism for CPUs. From a clone:
#
#     docker build -t local/edgeprism .
#     docker run --rm --network none -v "$PWD:/pictures:ro" local/edgeprism caption /pictures/photo.jpg
#
# Models and captions stay in a volume: -v edgeprism:/data. The model hub's cache is there as well, because installed
# models link to it.

FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
# llama.cpp first: it takes minutes and changes seldom
COPY constraints.txt .
RUN python -m venv /opt/edgeprism
# for any x86-64 with AVX2 or any 64-bit Arm, not for the very processor that builds the image
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF"
RUN /opt/edgeprism/bin/pip install --no-cache-dir -c constraints.txt llama-cpp-python
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY edgeprism edgeprism
COPY convert convert
COPY models models
RUN /opt/edgeprism/bin/pip install --no-cache-dir -c constraints.txt ".[cpu,heic,pairs]"

FROM python:3.11-slim-bookworm
# llama.cpp's threads
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home edgeprism \
    && install --directory --owner edgeprism /data
COPY --from=build /opt/edgeprism /opt/edgeprism
ENV PATH="/opt/edgeprism/bin:$PATH" EDGEPRISM_HOME=/data HF_HOME=/data/huggingface
USER edgeprism
VOLUME /data
ENTRYPOINT ["edgeprism"]
CMD ["--help"]
