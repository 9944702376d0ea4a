# Needs make, a Python from 3.10 to 3.13, and a package index. `make` alone lists what there is.
#
#   PYTHON=python3.12 make course      the interpreter to build .venv with
#   LAB_PROFILE=smoke make course      the size of the runs: smoke, course (default) or gpu
#   PIP_INDEX_URL=… make course        pip's own settings (index, proxy, certificates) are honoured
#
# Every path below is relative and every recipe quotes it, so that a folder with spaces in its name works.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
# Written only when everything is installed: what was asked for, the Python, the folder.
STAMP := $(VENV)/.installed
# There while pip runs: the process. A pip that was killed leaves half-installed libraries that pip itself
# cannot repair, so that what it left is thrown away.
BUSY := $(VENV)/.installing
# A virtual environment cannot be moved, nor used with another Python: what it was made with, and where.
MADE := $(VENV)/.made
NOTEBOOKS := notebooks/[0-9][0-9]_*.ipynb
CELL_TIMEOUT ?= 600
SHELL := /bin/sh

# nbval starts kernels: nothing of the user's Jupyter or IPython may reach them.
ISOLATED := JUPYTER_CONFIG_DIR="$$PWD/build/jupyter/config" JUPYTER_DATA_DIR="$$PWD/build/jupyter/data" \
	JUPYTER_RUNTIME_DIR="$$PWD/build/jupyter/runtime" IPYTHONDIR="$$PWD/build/jupyter/ipython" JUPYTER_PATH=

.DEFAULT_GOAL := help
.PHONY: help setup fetch course lab test lint format unit slow nbval notebooks solutions clean
# One after the other: what is downloaded, and what is running, stays readable under make -j.
.NOTPARALLEL:

help: ## this list
	@echo "make course     set everything up, run every notebook in order; pages in build/course/index.html"
	@echo "make lab        set everything up, open JupyterLab at notebook 00"
	@echo "make test       set everything up; lint, types, unit tests, every notebook in the smoke profile"
	@echo "make notebooks  make notebooks/*.ipynb anew from notebooks/source/ (for authors)"
	@echo "make solutions  notebooks with the answers to the exercises, in build/solutions"
	@echo "make setup      only make .venv and install the pinned libraries"
	@echo "make fetch      only download the course's models, tokenizers and texts"
	@echo "make slow       tests that take minutes: a merge of 2 GB, runs of two processes (not part of make test)"
	@echo "make lint       ruff and mypy;  make format  lets ruff reformat"
	@echo "make clean      remove .venv and build (fetched files stay in the cache folder)"

setup: ## .venv with the pinned libraries; quick when nothing changed, goes on where it was interrupted
	@set -e; \
	python=""; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python3.10 python); do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	  then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "No Python from 3.10 to 3.13 was found$(if $(PYTHON), under the name $(PYTHON))." >&2; \
	  echo "  what to do: install one (python.org, conda, your system), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	made="$$("$$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])') $$PWD"; \
	key="$$("$$python" -c 'import hashlib; print(hashlib.sha256(b"".join(open(f, "rb").read() for f in ("pyproject.toml", "constraints.txt"))).hexdigest())') $$made"; \
	if [ -f "$(STAMP)" ] && [ "$$(cat "$(STAMP)")" = "$$key" ] && "$(BIN)/python" -c '' 2>/dev/null; then exit 0; fi; \
	other="$$(cat "$(BUSY)" 2>/dev/null || true)"; \
	if [ -n "$$other" ] && kill -0 "$$other" 2>/dev/null; then \
	  echo "Another make (process $$other) is installing into $(VENV): wait for it, then run this again." >&2; exit 1; \
	fi; \
	rm -f "$(STAMP)"; \
	if [ -n "$$other" ]; then \
	  echo "An installation was interrupted; $(VENV) is made anew (what pip had downloaded is in its cache)."; \
	  rm -rf "$(VENV)"; \
	fi; \
	if [ "$$(cat "$(MADE)" 2>/dev/null)" != "$$made" ] || ! "$(BIN)/python" -m pip --version >/dev/null 2>&1; then \
	  rm -rf "$(VENV)"; \
	  "$$python" -m venv "$(VENV)" || { \
	    rm -rf "$(VENV)"; \
	    echo "$$python could not make a virtual environment." >&2; \
	    echo "  what to do: on Debian and Ubuntu, apt install python3-venv; see TROUBLESHOOTING.md" >&2; exit 1; }; \
	  printf '%s\n' "$$made" > "$(MADE)"; \
	fi; \
	echo "Installing the libraries pinned in constraints.txt into $(VENV), with $$("$$python" --version):"; \
	echo "  about 0.4 GB to download and 2 GB on disk with a CPU build of torch, one to three minutes."; \
	echo "  On Linux the torch of PyPI brings CUDA libraries, several GB more. Without a GPU, the CPU build is enough:"; \
	echo "    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make $(MAKECMDGOALS)"; \
	echo "  What pip has downloaded it keeps: after an interruption, the same command goes on."; \
	mkdir -p build; \
	printf '%s\n' "$$$$" > "$(BUSY)"; \
	quiet=--quiet; if [ -t 1 ]; then quiet=; fi; \
	"$(BIN)/python" -m pip install $$quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' 2>build/pip.log || { \
	  grep -v "^WARNING: Location" build/pip.log >&2 || true; \
	  echo "pip could not install the libraries; all it said is in build/pip.log." >&2; \
	  echo "  what to do: see TROUBLESHOOTING.md (index, proxy, disk), then run the same command again" >&2; exit 1; }; \
	printf '%s\n' "$$key" > "$(STAMP)"; \
	rm -f "$(BUSY)"; \
	echo "  done."

fetch: setup ## the course's outside files, into the cache folder; says what is missing and how large it is
	@"$(BIN)/chinese-llama-lab" fetch --course

course: fetch ## every notebook in order; what is done and unchanged is not run again
	@"$(BIN)/chinese-llama-lab" course

lab: fetch ## JupyterLab at notebook 00
	@"$(BIN)/python" -m jupyterlab notebooks/00_start_here.ipynb

notebooks: fetch ## the committed notebooks, executed, from their sources
	@"$(BIN)/chinese-llama-lab" notebooks

solutions: setup ## teachers' copies
	@"$(BIN)/chinese-llama-lab" notebooks --solutions build/solutions

lint: setup ## style and types
	@"$(BIN)/python" -m ruff check .
	@"$(BIN)/python" -m ruff format --check .
	@"$(BIN)/python" -m mypy

format: setup ## let ruff put things in order
	@"$(BIN)/python" -m ruff check --fix .
	@"$(BIN)/python" -m ruff format .

# Two processes of one thread each: small tensors leave a second thread waiting.
unit: lint fetch
	@OMP_NUM_THREADS=1 LAB_RESULTS_DIR="$$PWD/build/test-results" $(ISOLATED) "$(BIN)/python" -m pytest tests \
	  -m "not slow" -n 2 --dist worksteal

slow: lint fetch ## tests of minutes: a merge of 2 GB, runs of two processes
	@LAB_RESULTS_DIR="$$PWD/build/test-results" $(ISOLATED) "$(BIN)/python" -m pytest tests -m slow

nbval: unit
	@mkdir -p build/test-results
	@OMP_NUM_THREADS=1 LAB_PROFILE=smoke LAB_RESULTS_DIR="$$PWD/build/test-results" $(ISOLATED) \
	  "$(BIN)/python" -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout $(CELL_TIMEOUT) -x \
	  -p no:cacheprovider -n 2 --dist loadfile $(NOTEBOOKS)

test: nbval ## lint and types first, then unit tests, then every notebook: what fails fast comes first

clean: ## what setup and course made; not the cache folder
	rm -rf "$(VENV)" build .pytest_cache .mypy_cache .ruff_cache
