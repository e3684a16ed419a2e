# `make demo` and `make test` make the environment if there is none. `make help` lists the rest.
PYTHON ?= python3
# cpu: vLLM's CPU build; gpu: vLLM and torch for CUDA. `make demo HARDWARE=gpu`.
HARDWARE ?= cpu
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
READY := $(VENV)/ready-$(HARDWARE)
ORACLE := .venv-oracle/ready
ARGS ?=

# The CPU build of torch: from a folder of wheels where the machine offers one, else from PyTorch's own index.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
WHEELS := $(firstword $(wildcard $(addsuffix /torch-*,$(PIP_FIND_LINKS))))
ifneq ($(WHEELS),)
TORCH_SOURCE := --find-links $(dir $(WHEELS))
else ifeq ($(HARDWARE),cpu)
TORCH_SOURCE := --extra-index-url $(TORCH_CPU_INDEX) --index-strategy unsafe-best-match
endif

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.PHONY: demo
demo: $(READY) ## train a real LLM at the calculator example, eight epochs, and show that it got better
	@$(BIN)/lightning-flows demo $(ARGS)

.PHONY: up
up: $(READY) ## Prefect's UI and a worker, the gateway, MLflow's UI and the page, as one local stack; `make up ARGS=--help`
	@$(BIN)/lightning-flows up $(ARGS)

.PHONY: down
down: ## end that stack
	@$(BIN)/lightning-flows down $(ARGS)

.PHONY: test
test: lint oracle-env test-fast ## lint, unit, integration and end-to-end tests (under 25 minutes on two cores)
	$(BIN)/pytest -n 2 -m "slow and not extra" $(ARGS)

.PHONY: test-fast
test-fast: $(READY) ## what needs no vLLM and no training (under 2 minutes on two cores)
	$(BIN)/pytest -n 2 -m "not slow and not extra" tests/unit tests/property $(ARGS)

.PHONY: test-all
test-all: lint $(READY) oracle-env ## every test but those of test-frameworks (under 60 minutes)
	$(BIN)/pytest -m "not frameworks" $(ARGS)

.PHONY: test-frameworks
test-frameworks: $(READY) ## every agent framework, each in its own environment; writes the table of docs/frameworks.md
	$(BIN)/pytest tests/integration/test_frameworks.py tests/integration/test_frameworks_vllm.py $(ARGS)

.PHONY: soak
soak: $(READY) ## ten minutes of all faults at once, with an account at the end; `make soak ARGS="--minutes 1"`
	$(BIN)/python -m tests.soak $(ARGS)

.PHONY: lint
lint: $(READY) ## ruff (format and lint) and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases bench docs examples tests --exclude '^examples/frameworks/'

.PHONY: format
format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: env
env: $(READY) ## the environment alone

# Soft: where it cannot be had, the line is loud, what needs it is skipped, and the rest goes on.
.PHONY: oracle-env
oracle-env: $(UV) ## Agent Lightning 0.3.0 in .venv-oracle, for tests and figures beside it
	@$(MAKE) --silent --no-print-directory $(ORACLE) || { rm -rf $(dir $(ORACLE)); \
		echo "*** agentlightning could not be installed: what compares with it is SKIPPED ***"; }

.PHONY: house
house: $(READY) ## lines and statements a package, settings, longest file, circles, upward imports; one JSON line
	@$(BIN)/python -m bench.house

.PHONY: results
results: $(READY) ## bench/RESULTS.md from bench/results/figures.jsonl
	@$(BIN)/python -m bench.results_page

.PHONY: bench-training
bench-training: $(READY) ## a training step against stock TRL, its data path and its start
	$(BIN)/python -m bench.training $(ARGS)

.PHONY: gpu-check
gpu-check: $(READY) ## a GPU in ten minutes, with HARDWARE=gpu: attention, steps, vLLM asleep and awake; one JSON line a check
	$(BIN)/python -m bench.gpu $(ARGS)

.PHONY: framework-dumps
framework-dumps: $(READY) ## run the real agent frameworks again and keep the spans they emit (tests/data/frameworks)
	$(BIN)/python -m tests.frameworks.dump $(ARGS)

.PHONY: bench-ingest
bench-ingest: $(READY) oracle-env ## receiver, decoder and lake against Agent Lightning's store, one JSON line a figure
	$(BIN)/python -m bench.ingest $(ARGS)

.PHONY: bench-hierarchy
bench-hierarchy: $(READY) oracle-env ## spans to triplets against Agent Lightning's adapter, one JSON line a figure
	$(BIN)/python -m bench.hierarchy $(ARGS)

.PHONY: bench-evidence
bench-evidence: $(READY) ## whose call it is, of runs of which that is known, undisturbed and not; one JSON line a row
	$(BIN)/python -m bench.evidence $(ARGS)

.PHONY: bench-credit
bench-credit: $(READY) ## advantages of four agents beside what each is known to have added, one JSON line a case
	$(BIN)/python -m bench.credit $(ARGS)

.PHONY: bench-gateway
bench-gateway: $(READY) oracle-env ## the gateway against LiteLLM's proxy and direct calls, one JSON line a figure
	$(BIN)/python -m bench.gateway $(ARGS)

.PHONY: bench-learning
bench-learning: $(READY) ## held-out share by rollouts: ours, call-level grouping, stock TRL; hours, resumes, ARGS="--minutes 60"
	$(BIN)/python -m bench.learning $(ARGS)

.PHONY: bench-arms
bench-arms: $(READY) ## the calculator trained with one thing different, seed by seed, on 192 held-out tasks; hours, resumes, ARGS="--minutes 60"
	$(BIN)/python -m bench.arms $(ARGS)

.PHONY: bench-curves
bench-curves: $(READY) ## held-out reward by epoch of calc_x, spider and musique; hours, resumes, ARGS="spider --minutes 60"
	$(BIN)/python -m bench.curves $(ARGS)

.PHONY: bench-gains
bench-gains: $(READY) ## what Qwen2.5-Coder gains by RL on held-out tasks, with a control; hours, resumes, ARGS="spider --model FOLDER"
	$(BIN)/python -m bench.gains $(ARGS)

.PHONY: bench-retrieval
bench-retrieval: $(READY) ## the search of examples/musique at 100,000 vectors against exact search, one JSON line a figure
	$(BIN)/python -m bench.retrieval

.PHONY: bench-redeploy
bench-redeploy: $(READY) ## "training done" to the first token of the new version, one JSON line a figure
	$(BIN)/python -m bench.redeploy $(ARGS)

.PHONY: bench-agents
bench-agents: $(READY) ## planner and executor: both, either, none trained; goes on where it stopped, again until it says done
	$(BIN)/python -m bench.planner_executor $(ARGS)

.PHONY: bench-query
bench-query: $(READY) ## a rollout's tree and an agent's spans out of ten million, one JSON line
	$(BIN)/python -m bench.query $(ARGS)

.PHONY: bench-page
bench-page: $(READY) ## every page of `lightning-flows ui` over 10,000 rollouts, one JSON line a figure
	$(BIN)/python -m bench.page $(ARGS)

.PHONY: bench-orchestration
bench-orchestration: $(READY) ## rollouts a second, cost of orchestration, memory, resume, overlap; one JSON line a figure
	$(BIN)/python -m bench.orchestration $(ARGS)

.PHONY: lock
lock: $(UV) ## renew the pinned requirements of both kinds of machine
	$(MAKE) --no-print-directory lock-one HARDWARE=cpu
	@# what is pinned for the CPU is preferred, so the two differ only where vLLM's builds do
	grep -v '+cpu' requirements/cpu.txt > requirements/gpu.txt
	$(MAKE) --no-print-directory lock-one HARDWARE=gpu
	echo agentlightning==0.3.0 | $(UV) pip compile - --universal --python-version 3.11 --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --quiet --output-file requirements/oracle.txt

.PHONY: lock-one
lock-one: $(UV)
	$(UV) pip compile pyproject.toml --extra $(HARDWARE) --extra test --override requirements/overrides.txt \
		--universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		$(if $(filter cpu,$(HARDWARE)),$(TORCH_SOURCE)) --quiet --output-file requirements/$(HARDWARE).txt

.PHONY: clean
clean: ## remove the environment and every run (models stay in the user's cache, in ~/.cache)
	rm -rf $(VENV) $(dir $(ORACLE)) var

# Its pins are not ours, so it lives in an environment of its own.
$(ORACLE): requirements/oracle.txt | $(UV)
	@$(UV) venv --quiet --clear --python $(BIN)/python $(dir $@)
	@$(UV) pip install --quiet --python $(dir $@)bin/python --requirement $<
	@touch $@

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and "Python 3.11 to 3.14 is needed; this is " + sys.version.split()[0] + " (make PYTHON=python3.12 …)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv

# Nothing is resolved here: the lock is whole, and `--no-deps` keeps out what vLLM asks for and nothing uses.
# Bytecode is compiled once (but that of packages' own tests), since some machines forbid to cache it later, and imports are most of every start.
$(READY): requirements/$(HARDWARE).txt pyproject.toml | $(UV)
	$(UV) pip sync --quiet $(TORCH_SOURCE) requirements/$(HARDWARE).txt requirements/tools.txt
	$(UV) pip install --quiet --no-deps --editable .
	@echo "compiling bytecode, once"
	@$(BIN)/python -m compileall -q -j 0 -x '/tests/' $(VENV)/lib >/dev/null 2>&1 || true
	@rm -f $(VENV)/ready-*
	@touch $@
