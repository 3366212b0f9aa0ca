# Everything a developer needs; `make demo` and `make test` set up what they need by themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed
# Modules and tests are compiled once, whatever the environment says, and not in each process of each run.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-slow test-peers lint type format bench catalogue glossary docs clean

setup: $(STAMP)

# torch is named with its exact version so that the CPU build is taken where there is one.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)" -e ".[dev]"
	touch $(STAMP)

# timm, torchvision, transformers and the libraries built on them see the main environment and live in one of their own: torchvision's wheel
# fails to import beside a CPU build of torch, and whatever finds it installed would fail with it.
$(PEERS_STAMP): $(STAMP) pyproject.toml
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$($(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/main.pth"
	$(BIN)/python -c "import pathlib; print(pathlib.Path('src').resolve())" >> "$$($(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/main.pth"
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps timm==1.0.31 torchvision==0.28.0 transformers==5.23.0 tokenizers regex \
		accelerate==1.15.0 psutil==7.2.2 grad-cam==1.5.7 ttach==0.0.3 opencv-python-headless==5.0.0.93 segmentation-models-pytorch==0.6.0
	touch $(PEERS_STAMP)

demo: $(STAMP)
	$(BIN)/vitrail demo

# A process that dies ends the run, which could otherwise wait for its tests forever.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 -m "not slow and not peers"

test-slow: $(PEERS_STAMP)
	$(BIN)/python -m pytest -m "slow and not peers"
	$(PEERS)/bin/python -m pytest -m "slow and peers" tests/parity

test-peers: $(PEERS_STAMP)
	$(PEERS)/bin/python -m pytest -n 2 --dist loadfile -m "peers and not slow" tests/parity

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# On a machine that does nothing else; hours, most of them for compiled models and for training to the end.
bench: $(PEERS_STAMP)
	$(PEERS)/bin/python benchmarks/models.py
	$(PEERS)/bin/python benchmarks/export.py
	$(BIN)/python benchmarks/token_learner.py

catalogue: $(STAMP)
	$(BIN)/python -m vitrail.models.catalogue

# The glossary of the documentation, from the table that pages use.
glossary: $(STAMP)
	$(BIN)/python -c 'from vitrail.report.glossary import glossary_markdown as g; print(g(), end="")' > docs/glossary.md

# The pictures of docs/architectures: runs the commands that stand in its pages.
docs: $(STAMP)
	$(BIN)/python docs/architectures/draw.py

clean:
	rm -rf $(VENV) $(PEERS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
