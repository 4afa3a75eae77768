# maskgil serve in a container. Targets: cpu, cuda (NVIDIA driver 525 or newer, with the NVIDIA container toolkit).
#   docker build --target cpu -t maskgil . && docker run --rm -p 127.0.0.1:8000:8000 -e MASKGIL_API_KEY=... maskgil
FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
    JAX_COMPILATION_CACHE_DIR=/var/cache/maskgil
WORKDIR /opt/maskgil
COPY pyproject.toml setup.py requirements.lock README.md LICENSE MANIFEST.in ./
COPY configs configs
COPY maskgil_jax maskgil_jax
RUN useradd --system --create-home maskgil && mkdir -p /var/cache/maskgil && chown maskgil /var/cache/maskgil
EXPOSE 8000
HEALTHCHECK --start-period=300s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz')"]
ENTRYPOINT ["maskgil", "serve", "--host", "0.0.0.0"]
CMD ["--weights", "demo"]

FROM base AS cuda
RUN pip install -c requirements.lock '.[web,speech,gpu]'
USER maskgil

FROM base AS cpu
ENV JAX_PLATFORMS=cpu
RUN pip install -c requirements.lock '.[web,speech]'
USER maskgil
