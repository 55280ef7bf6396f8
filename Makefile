.PHONY: help demo test test-long test-faults test-servers test-frameworks test-chart test-interop test-containers fuzz soak \
	bench lint audit types docs lock clean setup

SECONDS = 60
RUNS = 5
QUICK =
MINUTES = 60
SOAK = soak-results
EXCHANGES = 1000
KILLS = 600
WHOLE = 10
CUTS = 300
# Those that need more than a KDC on this machine.
ELSEWHERE = frameworks or servers or containers or chart or interop
RECORD = check

help: ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup: ## system packages, a virtual environment, this package in it
	@tools/setup

demo: setup ## a realm, a refresher and a worker on this machine, for 40 seconds
	@.venv/bin/krbrefresh demo

test: setup ## the tests, against a real KDC; all but those that take minutes or other servers
	@.venv/bin/python -m pytest -n 4 --dist worksteal -m "not (long or $(ELSEWHERE))" $(ARGS)

test-long: setup ## those that take minutes: outages longer than a ticket's life, clocks that jump, 200 credentials
	@.venv/bin/python -m pytest -n 4 --dist worksteal -m "long and not ($(ELSEWHERE))" $(ARGS)

test-faults: SECONDS = 30
test-faults: setup ## a KDC that lies to EXCHANGES=1000 and for SECONDS=30, SIGKILLs, power cuts (as root); SEED=
	@.venv/bin/python tests/chaos/kdc_faults.py --runs $(EXCHANGES) --seconds $(SECONDS) $(SEED:%=--seed %)
	@.venv/bin/python tests/chaos/kills.py --kills $(KILLS) --whole $(WHOLE) $(SEED:%=--seed %)
	@.venv/bin/python tests/chaos/power_cuts.py --cuts $(CUTS) $(SEED:%=--seed %)

test-servers: setup ## the recipes of docs/recipes.md, against real servers: PostgreSQL, Apache, Active Directory; needs root
	@tools/setup-servers
	@.venv/bin/python -m pytest -m servers tests/servers $(ARGS)

test-frameworks: setup ## the hooks, in the real frameworks: Celery with Redis, gunicorn, Dask, Ray, Airflow
	@tools/setup-frameworks
	@.venv/bin/python -m pytest -m frameworks tests/frameworks $(ARGS)

test-chart: setup ## the Helm chart, by the real Helm: its templates over values and versions of Kubernetes
	@tools/setup-chart
	@.venv/bin/python -m pytest -m chart tests/chart $(ARGS)

bench: setup ## beside k5start, kinit, airflow kerberos and others, RUNS=5; writes docs/benchmarks.md, or with QUICK=1 nothing
	@tools/setup-frameworks requirements-airflow
	@.venv/bin/python -m benchmarks $(if $(QUICK),--runs 1 --quick --results build/bench,--runs $(RUNS)) $(ARGS)
	@.venv/bin/python -m benchmarks.report $(if $(QUICK),--results build/bench)

test-containers: setup ## in real containers: builds the images, starts the demo, breaks it; needs a Docker engine, or root
	@tools/test-containers $(ARGS)

test-interop: setup ## every case of docs/interop.md against every KDC: MIT krb5, Heimdal, Samba; needs root
	@tools/setup-interop $(STABLE)
	@rm -rf .interop/results
	@.venv/bin/python -m pytest -n 4 --dist loadscope -m interop $(if $(STABLE),-k "not Forky") tests/interop $(ARGS)
	@.venv/bin/python -m tests.interop.record $(RECORD)

fuzz: setup ## hostile bytes for the ccache reader, for SECONDS=60
	@.venv/bin/python tests/fuzz/ccache_fuzz.py --seconds $(SECONDS) $(ARGS)

soak: setup ## refreshers, workers and faults at random, for MINUTES=60; results in SOAK=soak-results
	@.venv/bin/python -m tests.soak.run --minutes $(MINUTES) --out $(SOAK) $(ARGS)

lint: setup ## ruff, lint and format
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

audit: setup ## what programs that look for weaknesses say: bandit, and pip-audit where it can ask for advisories
	@tools/audit

types: setup ## mypy --strict
	@.venv/bin/mypy

docs: setup ## docs/settings.md from the settings' types, the chart's README from its values, its copies of monitoring/
	@.venv/bin/python tools/settings_doc > docs/settings.md
	@.venv/bin/python tools/chart_doc > charts/krbrefresh/README.md
	@cp monitoring/alerts.yaml monitoring/dashboard.json charts/krbrefresh/files/
	@.venv/bin/python tools/interop_doc > docs/interop.md

lock: setup ## pin the newest versions of the development environment
	@PATH="$(CURDIR)/.venv/bin:$$PATH" tools/lock --upgrade

clean: ## back to a fresh clone
	@rm -rf .venv .venv-servers .venv-frameworks .interop soak-results build dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -exec rm -rf {} +
