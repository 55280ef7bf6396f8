.PHONY: help demo test lint types docs lock clean setup

help: ## what there is to make
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup: ## system packages, a virtual environment, this package in it
	@tools/setup

demo: setup ## a realm, a refresher and a worker on this machine, for 40 seconds
	@.venv/bin/krbrefresh demo

test: setup ## all tests, against a real KDC
	@.venv/bin/python -m pytest -n 3 --dist worksteal $(ARGS)

lint: setup ## ruff, lint and format
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

types: setup ## mypy --strict
	@.venv/bin/mypy

docs: setup ## docs/settings.md from the settings' types
	@.venv/bin/python tools/settings_doc > docs/settings.md

lock: setup ## pin the newest versions of the development environment
	@PATH="$(CURDIR)/.venv/bin:$$PATH" tools/lock --upgrade

clean: ## back to a fresh clone
	@rm -rf .venv build dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -exec rm -rf {} +
