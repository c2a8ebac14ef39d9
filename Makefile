# Every target sets up what it needs: a virtual environment in .venv with the pinned versions of constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ZERO_FLAGS ?=
# Tests start many processes, which load what one of them has compiled; container images often set this.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help train test images check protos format stubs install venv-package clean

help: ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

train: install ## Train on the triangle puzzle for ten minutes (ZERO_FLAGS adds options of `zero train`)
	@$(BIN)/zero train $(ZERO_FLAGS)

test: install ## Check and run every test, the slow ones included
	@echo "==> make test: checks, then all tests but those of the images (about fifteen minutes; \`$(BIN)/pytest\` runs the fast ones in two minutes)"
	@$(MAKE) --no-print-directory check
	@$(BIN)/pytest -m "not images" --durations=5
	@echo "==> All passed. Next: \`make train\` trains an agent; \`$(BIN)/zero --help\` lists the commands."

images: install ## Build the container images and try them (root on Debian, with podman, runc and mmdebstrap)
	@$(BIN)/pytest -m images -rs --durations=5 tests/deploy/test_images.py

check: install ## Lint, types, imports, generated stubs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/check_stubs.sh

protos: ## Lint proto/ with buf (needs npx)
	@sh tests/check_protos.sh

format: install ## Format and fix what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

stubs: install ## Regenerate zero/wire from proto/
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m grpc_tools.protoc -Izero/wire=proto --python_out=. --mypy_out=. --grpc_python_out=. --mypy_grpc_out=. proto/*.proto

install: $(STAMP) ## Create .venv with the pinned packages

$(STAMP): pyproject.toml constraints.txt
	@echo "==> Setting up $(VENV): downloads PyTorch and Ray, once or when the requirements change; minutes, by your network"
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: name a newer one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(MAKE) --no-print-directory venv-package
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' | sed -u '/^Requirement already/d; s/^/    /'
	@touch $@

venv-package: # Debian keeps what `python3 -m venv` needs in a package of its own
	@command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] || { echo "$(PYTHON) cannot make virtual environments: sudo apt-get install python3-venv"; exit 1; }
	apt-get update -qq && apt-get install -y -qq python3-venv

clean: ## Remove the virtual environment and caches (runs/ stays)
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
