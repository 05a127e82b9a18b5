# For tests where no registry can be reached: Debian's Redis and Prometheus, in place of the images that compose.yaml names.
ARG BASE=serpentine-base:bookworm
FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends prometheus redis-server \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 999 -g 1000 /data \
    && install -d -o nobody -g nogroup /prometheus
# Both images run what their command begins with, Prometheus's flags alone too.
COPY stand-in /usr/local/bin/
USER 65534:65534
ENTRYPOINT ["stand-in"]
