# `make demo` is the whole road on drawn data; `make help` lists the rest.
VENV := .venv
PYTHON ?= python3
# A .venv made with GPU=1 stays so until GPU=0 asks otherwise.
GPU ?= $(if $(wildcard $(VENV)/installed-gpu),1,0)
DEMO_DIR ?= demo_output

DEVICE := $(if $(filter 1,$(GPU)),gpu,cpu)
REQUIREMENTS := requirements.txt requirements-$(DEVICE).txt requirements-dev.txt
# Says that $(VENV) is complete and which TensorFlow it holds; written last, so that an interrupted set-up starts again.
STAMP := $(VENV)/installed-$(DEVICE)
# Says that the operations in C++ were built for it.
KERNELS := $(VENV)/kernels-$(DEVICE)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help missing packages setup horovod demo demo-extras export-extras test lint lock clean

help:  ## this list
	@echo "usage: make TARGET [GPU=1] [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: packages $(KERNELS)  ## make .venv with the pinned packages (GPU=1: TensorFlow with CUDA), build operations (g++)

packages: $(STAMP)  ## of that the packages alone

missing:

horovod: setup  ## build Horovod for the TensorFlow in .venv (needs g++; GPU=1: NCCL, needs the CUDA toolkit)
	$(VENV)/bin/python tools/build_horovod.py $(if $(filter 1,$(GPU)),--gpu)

demo: setup  ## draw shapes, train on them, evaluate, predict (12 minutes on 2 cores)
	$(VENV)/bin/python demo/shapes_demo.py --output-dir $(DEMO_DIR)

demo-extras: setup  ## install what the web page demo/web.py needs (Gradio)
export-extras: setup  ## install what ./predict.py --export-onnx needs (tf2onnx, ONNX Runtime)
demo-extras export-extras:
	$(VENV)/bin/python -m pip install --disable-pip-version-check --only-binary=:all: \
	    --requirement requirements-$(@:-extras=).txt --constraint constraints.txt

test: lint horovod export-extras  ## lint and tests, those of Horovod and ONNX too
	$(VENV)/bin/python -m pytest tests

lint: setup  ## ruff
	$(VENV)/bin/python -m ruff check .

lock: setup  ## renew constraints.txt from requirements*.txt (installs uv into .venv)
	$(VENV)/bin/python -m pip install --quiet uv
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.10 --strip-extras --no-annotate --upgrade \
	    --custom-compile-command "make lock" requirements.txt requirements-*.txt --output-file constraints.txt

clean:  ## remove .venv, caches and the demo's output
	rm -rf $(VENV) $(DEMO_DIR) .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Again, too, where what was built is gone.
$(KERNELS): $(STAMP) $(wildcard FasterRCNN/ops/kernels/*.cc FasterRCNN/ops/kernels/*.h FasterRCNN/ops/kernels/*.py) \
            $(if $(wildcard FasterRCNN/ops/kernels/*.so),,missing)
	@set -- $${CXX:-g++}; if command -v "$$1" >/dev/null; then $(VENV)/bin/python tools/build_kernels.py && touch $@; \
	else echo "note: without g++ some operations are slower on processors;" \
	    "to have the fast ones: sudo apt-get install g++ && make setup"; fi

$(STAMP): $(REQUIREMENTS) constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	    echo "error: Python 3.10 to 3.13 is needed, but $(PYTHON) is: $$($(PYTHON) --version 2>&1 || true)." \
	         "Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "error: $(PYTHON) cannot make virtual environments. Install what it lacks: sudo apt-get install" \
	         "$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 1; }
	@echo "Setting up $(VENV) for TensorFlow on the $(DEVICE): a few minutes, most of it download."
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --only-binary=:all: \
	    $(REQUIREMENTS:%=--requirement %) --constraint constraints.txt
	@touch $@
	@echo "Done. Now: source $(VENV)/bin/activate"
