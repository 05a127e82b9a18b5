# Each target installs what it needs into .venv, pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: serve test test-backends lint audit bench bench-quick bench-keep load-quick load soak soak-stream capacity sanitize \
	monitor-test dashboard cluster-test image image-test compose-check deploy-check kernels test-gpu

.SILENT: .venv/.installed .venv/.load
.venv/.installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard service/kernels/cpu/native/*)
	echo 'installing into .venv' >&2
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[media,train,dev]'
	touch $@

serve: .venv/.installed
	$(BIN)/serpentine serve

test: .venv/.installed
	$(BIN)/pytest

# What depends on the backend that a service runs on, once more on the one that `make test` did not take.
test-backends: .venv/.installed
	SERPENTINE_BACKEND=reference $(BIN)/pytest tests/api tests/faults tests/sessions tests/test_*.py

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities of what constraints.txt pins.
audit:
	test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/pip install --quiet pip-audit; } || true
	.ci/audit build/audit/bin/pip-audit

bench: .venv/.installed .venv-bench/.installed
	$(BIN)/python -m benchmarks

# A rival's own environment. Where there is no wheel of it, `make bench` goes on without its rows.
.venv-bench/.installed: benchmarks/llama/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet -r $< || rm -r .venv-bench
	test ! -d .venv-bench || touch $@

# What the documents show, measured anew: on a machine with nothing else to do, about a quarter of an hour.
bench-keep: .venv/.installed .venv-bench/.installed
	$(BIN)/python -m benchmarks --save cpu
	$(BIN)/python -m benchmarks.efficiency --save efficiency-cpu
	$(BIN)/python -m benchmarks.document

# Standard output is lines of JSON and nothing else.
bench-quick: .venv/.installed
	@$(BIN)/python -m benchmarks.quick

# Load: on a service that is started for it, or on one that runs: make load HOST=http://127.0.0.1:8080. SAVE=1 keeps the
# figures in load_tests/results and lays them out in the pages.
.venv/.load: .venv/.installed
	$(BIN)/pip install --quiet -c constraints.txt locust websocket-client
	touch $@

LOAD_OPTIONS := $(if $(HOST),--host $(HOST)) $(if $(SAVE),--save)

load-quick: .venv/.load
	@$(BIN)/python -m load_tests quick $(LOAD_OPTIONS)

load: .venv/.load
	$(BIN)/python -m load_tests full $(LOAD_OPTIONS)

soak: .venv/.load
	$(BIN)/python -m load_tests soak $(LOAD_OPTIONS)

capacity: .venv/.load
	$(BIN)/python -m load_tests capacity $(LOAD_OPTIONS)

# Rules, dashboard and runbook against a real Prometheus; also part of `make test`, where Prometheus is installed.
monitor-test: .venv/.installed
	@command -v prometheus promtool >/dev/null || { echo 'monitor-test needs prometheus (Debian: apt-get install prometheus)' >&2; exit 1; }
	$(BIN)/pytest tests/monitoring

GRAFANA := deploy/monitoring/grafana
dashboard: .venv/.installed
	$(BIN)/python $(GRAFANA)/make_dashboard.py > $(GRAFANA)/dashboards/serpentine.json

# An hour of sound and words as fast as it goes, then a million frames of features: memory, and the cost of a frame.
soak-stream: .venv/.installed
	$(BIN)/python -m load_tests.stream_hour
	$(BIN)/python -m load_tests.stream_hour --steps 1000000

# Containers. Docker, or for root its package without a running daemon, builds them; without a registry, mmdebstrap the base.
TARGET ?= cpu
IMAGE ?= serpentine:$(TARGET)
ENGINE := PYTHON=$(abspath $(BIN))/python docker/engine.sh
image: .venv/.installed
	$(ENGINE) docker/build.sh $(TARGET) $(IMAGE)

image-test: .venv/.installed
	tests/deploy/tools.sh
	$(ENGINE) sh -c 'docker/build.sh $(TARGET) $(IMAGE) && IMAGE=$(IMAGE) $(BIN)/python -m pytest -s docker'

# On Ray on this machine: the command, replicas that come and go, and two nodes of which one is killed under load.
cluster-test: .venv/.installed
	$(BIN)/python docker/requirements.py cluster | $(BIN)/pip install --quiet -c constraints.txt -r /dev/stdin
	CLUSTER_TEST=1 $(BIN)/pytest -s tests/cluster

# The compose file and the manifests against the schemas of what reads them.
compose-check deploy-check: .venv/.installed
	tests/deploy/tools.sh
	$(BIN)/pytest tests/deploy $(if $(filter compose-check,$@),-k compose)

# The tests of the compiled kernels, once under AddressSanitizer and UndefinedBehaviorSanitizer. Leaks are Python's own.
SANITIZED := build/sanitize
sanitize: .venv/.installed
	$(BIN)/pip install --quiet cmake nanobind ninja
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DSERPENTINE_SANITIZE=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-DCMAKE_PREFIX_PATH="$$($(BIN)/python -m nanobind --cmake_dir)"
	$(BIN)/cmake --build $(SANITIZED)
	$(BIN)/cmake --install $(SANITIZED) --prefix $(SANITIZED)/installed
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m tests.sanitized $(SANITIZED)/installed/service/kernels/cpu \
		tests/kernels/test_cpu_ops.py tests/kernels/test_squeezed_weights.py \
		tests/models/test_mixture_of_mamba_cpu.py tests/models/test_coupled_mamba_cpu.py

# All GPU kernels, compiled without one; see docs/gpu.md.
KERNELS := build/kernels
kernels: .venv/.installed
	$(BIN)/python -m service.kernels.build --targets sm_80,sm_90 --cache $(KERNELS)

# The suites of the GPU backend on a GPU. PyTorch must be a build for CUDA.
test-gpu: .venv/.installed
	TRITON_INTERPRET=0 $(BIN)/pytest -m gpu
