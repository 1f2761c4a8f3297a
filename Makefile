# make demo   set up and run one edit            make lab         JupyterLab with the notebooks
# make test   set up and run all checks          make notebooks   run the notebooks and store what they show
# make clean  remove the environments            make test-colab  the checks with the versions that Colab has
# make editions   write the student's and the teacher's edition of the notebooks to build/
# make mutants [MODULES="pictures ..."]          put faults into the library and count those that the tests notice
#
# TORCH_INDEX: the address of PyTorch's CPU-only packages, as shown by pytorch.org -> Get Started ->
# Compute Platform: CPU. `make demo TORCH_INDEX=<address>` spares the download of a CUDA build.
TORCH_INDEX ?=
PYTHON      ?= python3
RUN         := .venv/bin/python
COLAB       := .venv-colab/bin/python
PYTEST      := OMP_NUM_THREADS=1 .venv/bin/python -m pytest
# two files at once, each on one core, are sooner done than one file on two; the longest, the notebooks, come first
TWO         := -n 2 --dist loadscope --no-loadscope-reorder
INSTALL     := -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: demo test lint test-library test-notebooks test-colab mutants notebooks editions lab clean

demo: .venv/ready
	$(RUN) -m imagic_lib demo

# the last line says if the notebooks could not be opened in a browser
test: lint .venv/ready-dev # how the notebooks are run: tests/notebook_run.py
	$(PYTEST) -p tests.notebook_run notebooks tests $(TWO) --cov --cov-report=term --cov-fail-under=97

lint: .venv/ready-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

test-library: .venv/ready-dev
	$(PYTEST) $(TWO)

test-notebooks: .venv/ready-dev
	$(PYTEST) -p tests.notebook_run notebooks $(TWO)

test-colab: .venv-colab/ready
	$(COLAB) -m pytest

mutants: .venv/ready-mutants # some hours; stopped, it goes on where it was
	$(RUN) tests/mutants.py $(MODULES)

notebooks: .venv/ready
	$(RUN) notebooks/build.py

editions: .venv/ready
	$(RUN) -m notebooks.editions

lab: .venv/ready # the repository is its root, so that links from the notebooks to ../data work
	$(RUN) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks

clean:
	rm -rf .venv .venv-colab

.venv/ready: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) $(INSTALL) -r requirements.txt -c constraints.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(RUN) $(INSTALL) -r requirements-dev.txt -c constraints.txt
	touch $@

.venv/ready-mutants: .venv/ready-dev tests/mutants.txt
	$(RUN) $(INSTALL) -r tests/mutants.txt -c constraints.txt
	touch $@

.venv-colab/ready: tests/colab.txt
	$(PYTHON) -m venv .venv-colab
	$(COLAB) $(INSTALL) -r tests/colab.txt
	touch $@
