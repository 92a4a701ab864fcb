# Thin: every verb is a script that can also be called by itself.
PYTHON = .venv/bin/python
RUNS = 3
TIMES = 7
SEED = 19
AGAINST = HEAD

.PHONY: help demo quick test lint unit attack matrix molecule bench overhead pools faults durability failover clean

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand --tabs=12

demo: ## deploy Celery to test hosts of your own machine, and look around
	@tools/bootstrap.sh --lab
	@$(PYTHON) tools/demo.py

quick: ## run the linters and most unit tests, within a minute
	@tools/bootstrap.sh --venv
	@$(PYTHON) tools/test.py quick

test: ## run all checks: lint, unit tests, and every scenario on test hosts
	@tools/bootstrap.sh --lab
	@$(PYTHON) tools/test.py

lint: ## run the linters
	@tools/bootstrap.sh --venv
	@$(PYTHON) tools/test.py lint

unit: ## run the unit tests
	@tools/bootstrap.sh --venv
	@$(PYTHON) tools/test.py unit

attack: ## send workers what no client sends: TIMES as much as the checks do, from the seed SEED
	@tools/bootstrap.sh --lab
	@ATTACK_TIMES=$(TIMES) ATTACK_SEED=$(SEED) $(PYTHON) -m pytest -q -s app/tests/test_runtime_attack.py

matrix: ## run the tests of the runtime with each supported Celery, and its oldest and newest kombu and redis-py
	@tools/bootstrap.sh --venv
	@$(PYTHON) tools/versions.py --all

molecule: ## run the scenarios, or one: make molecule S=default; KEEP=1 keeps its hosts, T=name is a test
	@tools/bootstrap.sh --lab
	@$(PYTHON) tools/test.py $(if $(KEEP),keep,molecule) $(S) $(if $(T),--only "$(T)")

bench: ## measure
	@tools/bootstrap.sh --lab
	@$(PYTHON) bench/run.py --markdown docs/bench.md

overhead: ## measure the CPU time of a task against another commit: AGAINST=v1
	@tools/bootstrap.sh --lab
	@$(PYTHON) bench/overhead.py $(AGAINST) --markdown docs/overhead.md

pools: ## measure how many tasks a second each pool runs of what its concurrency allows
	@tools/bootstrap.sh --venv
	@$(PYTHON) bench/pools.py --markdown docs/bench.md

faults: ## count what faults under load do to tasks, RUNS times in a row
	@tools/bootstrap.sh --lab
	@FAULTS_MARKDOWN=docs/faults.md FAULTS_RUNS=$(RUNS) $(PYTHON) tools/test.py --minutes 240 molecule faults

durability: ## count what power cuts take, and measure what it costs to lose less
	@tools/bootstrap.sh --lab
	@DURABILITY_MARKDOWN=docs/durability.md $(PYTHON) tools/test.py molecule durability

failover: ## count what becomes of tasks when the primary of several Redis dies, or is cut off
	@tools/bootstrap.sh --lab
	@FAILOVER_MARKDOWN=docs/failover.md $(PYTHON) tools/test.py molecule failover

clean: ## remove this checkout's test hosts, .venv and caches
	@tools/clean.sh
