# make demo    everything set up, then: train, get preempted, resume, compare bit for bit
# make demo-s3 the same, with the runs in a real S3 server on loopback
# make test    everything set up, then: all checks and tests
# make quick   unit tests that need no torch: a few seconds
# make stand-in-env  a CUDA build of torch (5 GB) for the tests of the CUDA path, which need no GPU; CUDA_VENV says where
# make long    every damaged file of a run in every way, every card of the stand-in, heads of full width, 1,200 interruptions
# make check   format, lint, types, imports between packages, spelling, complexity
# make lock    the hashes of what the image installs, after constraints.txt has changed
# make pictures  docs/demo.svg and docs/status.svg, of what the program prints
# make image   the container image; make image-report what is in it, by size
# make fuzz    input from outside, for about an hour: other examples than in the tests, each time
# make mutants do the tests notice what is wrong? Half an hour; goes on where it was stopped
# make bench   the measurements behind the figures of README.md and docs/figures.md
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Large, and the same for every clone: CI keeps it outside of them.
CUDA_VENV ?= .venv-cuda
export CUDA_VENV
# The release whose CUDA build tests/gpu_stand_in/library is written for (CUDA 13.0 for Linux on x86-64).
CUDA_TORCH := 2.14.1
IMAGE ?= indextts-job
ENGINE ?= $(shell command -v docker || command -v podman)
export PYTHONUTF8 := 1

.PHONY: demo demo-s3 test quick stand-in-env fuzz mutants long check lint format bench goldens pictures constraints lock image image-report clean

demo: $(VENV)/ready-run
	$(BIN)/indextts-job demo

demo-s3: $(VENV)/ready-dev
	$(BIN)/python -m tests.support.servers $(BIN)/indextts-job demo --url s3://bucket/demos

test: check
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

quick: $(VENV)/ready-dev
	$(BIN)/pytest -q --durations=3 --numprocesses auto --maxprocesses 4 $$($(BIN)/python -m tests.support.pure)

stand-in-env: $(CUDA_VENV)/ready-$(CUDA_TORCH)

fuzz: $(VENV)/ready-dev
	$(BIN)/pytest tests/fuzz --hypothesis-profile fuzz --numprocesses auto --maxprocesses 4

# tests/mutants.md lists the mutants that cannot be killed.
mutants: $(VENV)/ready-dev
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/python -m tests.support.mutants

# The full matrices that `make test` runs a part of.
long: $(VENV)/ready-dev
	DAMAGE=all $(BIN)/pytest tests/damage --numprocesses auto --maxprocesses 4
	HEAD_WIDTH=1280 $(BIN)/pytest tests/unit/test_head.py
	STAND_IN=all $(BIN)/pytest tests/gpu_stand_in --numprocesses auto --maxprocesses 4
	$(BIN)/python -m bench.chaos --interruptions 1200

check: $(VENV)/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/run image/report.sh slurm/train.sbatch tests/slurm/other_release.sh
	$(BIN)/python -m tests.support.complexity

lint: check

format: $(VENV)/ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

image:
	$(ENGINE) build -t $(IMAGE) --build-arg REVISION=$$(git rev-parse HEAD) .

image-report:
	ENGINE=$(ENGINE) image/report.sh $(IMAGE)

bench: $(VENV)/ready-dev
	$(BIN)/python -m bench.packing
	$(BIN)/python -m bench.heads
	$(BIN)/python -m bench.freezing
	$(BIN)/python -m bench.checkpoint
	$(BIN)/python -m bench.data
	$(BIN)/python -m bench.scale
	$(BIN)/python -m bench.startup
	$(BIN)/python -m bench.chaos
	$(BIN)/python -m bench.new_rows

pictures: $(VENV)/ready-dev
	$(BIN)/python -m tests.support.pictures

goldens: $(VENV)/ready-dev
	$(BIN)/python -m tests.support.goldens
	$(BIN)/ruff format --quiet indextts_job/troubleshooting.py

constraints: $(VENV)/ready-dev
	@$(BIN)/pip freeze --exclude-editable

# What the image installs, with the hashes of all its files, for the Python of its base.
lock: $(VENV)/ready-dev
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile pyproject.toml -c constraints.txt --generate-hashes --python-version 3.12 \
	  --python-platform x86_64-manylinux_2_28 --no-header --no-annotate --quiet -o image/requirements.lock

# The versions are pinned, so a plain CPU machine and a GPU machine run the same torch release.
$(VENV)/ready-run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready-run
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $@

# Only what the project depends on, not the project: its tests put the clone that they run in on the path.
$(CUDA_VENV)/ready-$(CUDA_TORCH): pyproject.toml constraints.txt
	test -x $(CUDA_VENV)/bin/python || $(PYTHON) -m venv $(CUDA_VENV)
	grep -v '^torch==' constraints.txt >$(CUDA_VENV)/constraints.txt
	$(CUDA_VENV)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
	  >$(CUDA_VENV)/requirements.txt
	$(CUDA_VENV)/bin/pip install --quiet --disable-pip-version-check -c $(CUDA_VENV)/constraints.txt torch==$(CUDA_TORCH) \
	  -r $(CUDA_VENV)/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo_run
