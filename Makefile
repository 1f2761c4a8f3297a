# make demo   set up and run one edit            make lab    JupyterLab
# make test   set up and run all checks          make clean  remove the environment
#
# TORCH_INDEX: the address of PyTorch's CPU-only packages, as shown by pytorch.org -> Get Started ->
# Compute Platform: CPU. `make demo TORCH_INDEX=<address>` spares the download of a CUDA build.
TORCH_INDEX ?=
PYTHON      ?= python3
PIP         := .venv/bin/python -m pip install --quiet --disable-pip-version-check
RUN         := .venv/bin/python

.PHONY: demo test lint lab clean

demo: .venv/ready
	$(RUN) -m imagic_lib demo

test: .venv/ready-dev lint
	$(RUN) -m pytest --cov --cov-report=term

lint: .venv/ready-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

lab: .venv/ready
	$(RUN) -m jupyterlab

clean:
	rm -rf .venv

.venv/ready: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements.txt -c constraints.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(PIP) -r requirements-dev.txt -c constraints.txt
	touch $@
