# make demo   set up and run one edit            make lab         JupyterLab with the notebooks
# make test   set up and run all checks          make notebooks   run the notebooks and store what they show
# make clean  remove the environments            make test-colab  the checks with the versions that Colab has
# make editions   write the student's and the teacher's edition of the notebooks to build/
# make site     build/site/: the book, the live page, slides and downloads, as static files (needs npm)
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

.PHONY: demo test lint test-library test-notebooks test-colab mutants notebooks editions site lab clean

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
	$(RUN) -m imagic_lab.classroom.build

editions: .venv/ready
	$(RUN) -m imagic_lab.classroom.editions

site: .venv/ready docs/book/node_modules/ready # without the live page, if that can't be built: this then says so
	-$(MAKE) build/live
	$(RUN) -m imagic_lab.book

build/live: .venv/ready-dev $(wildcard docs/live/*.* imagic_lab/web/*.py imagic_lab/toyworld/*.py \
            imagic_lab/classroom/map.svg imagic_lib/*.py data/images/* data/tiny-sd/*/*)
	rm -rf $@
	$(RUN) -m imagic_lab.web.page $@ || (rm -rf $@; false)

docs/book/node_modules/ready: docs/book/package-lock.json
	npm ci --prefix docs/book --ignore-scripts --no-audit --no-fund
	touch $@

lab: .venv/ready # the repository is its root, so that links from the notebooks to ../data work
	$(RUN) -m jupyter trust notebooks/*.ipynb > /dev/null # or else a reload would not show the studio again
	$(RUN) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/studio.ipynb

clean:
	rm -rf .venv .venv-colab

.venv/ready: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) $(INSTALL) -r requirements.txt -c constraints.txt
	touch $@

.venv/ready-dev: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) $(INSTALL) -r requirements.txt -r requirements-dev.txt -c constraints.txt
	touch .venv/ready $@

.venv/ready-mutants: .venv/ready-dev tests/mutants.txt
	$(RUN) $(INSTALL) -r tests/mutants.txt -c constraints.txt
	touch $@

.venv-colab/ready: tests/colab.txt
	$(PYTHON) -m venv .venv-colab
	$(COLAB) $(INSTALL) -r tests/colab.txt
	touch $@
