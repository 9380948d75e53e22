# Every target sets up what it needs: Python 3.11 or newer and make are all that must be there.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help demo test types tests test-properties test-devices test-architectures \
	architectures-table compatibility-table docs notebooks clean

help:
	@echo "make demo                train LeNet-5 on MNIST, prune it, compare (options: DEMO_ARGS='--help')"
	@echo "make test                linter, types and tests"
	@echo "make test-properties     the property tests on more random examples"
	@echo "make test-devices        training on two devices"
	@echo "make test-architectures  the slow tests on whole published architectures"
	@echo "make architectures-table the same, and writes docs/architectures.md"
	@echo "make compatibility-table runs beside other callbacks, and writes docs/compatibility.md"
	@echo "make docs                run the examples in README.md and docs/"
	@echo "make notebooks           execute the notebooks on the embedded digits, into build/notebooks"
	@echo "make clean               remove the environment, builds and caches (runs/ stays)"
	@echo
	@echo "Each sets up .venv first. To choose the Python: make demo PYTHON=python3.12"

$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "sgdap needs Python 3.11 or newer, and PYTHON=$(PYTHON) is not that." \
			"Name one that is, such as: make PYTHON=python3.12" >&2; \
		exit 1; \
	}
	$(PYTHON) -m venv .venv
	@echo "Installing sgdap and what it needs into .venv: some minutes the first time."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/sgdap demo $(DEMO_ARGS)

# The types are checked while the tests run. Where one of them fails, the other goes on to its end.
test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory --jobs=2 --keep-going types tests

types: $(INSTALLED)
	$(BIN)/mypy sgdap

tests: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder

test-properties: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder \
		-m hypothesis --hypothesis-profile=thorough

test-devices: $(INSTALLED)
	$(BIN)/pytest -m devices tests

test-architectures: $(INSTALLED)
	$(BIN)/pytest -n 2 -m architectures tests/architectures

architectures-table: $(INSTALLED)
	SGDAP_ARCHITECTURES_TABLE=docs/architectures.md \
		$(BIN)/pytest -n 2 -m architectures tests/architectures

compatibility-table: $(INSTALLED)
	SGDAP_COMPATIBILITY_TABLE=docs/compatibility.md $(BIN)/pytest tests/compatibility

docs: $(INSTALLED)
	$(BIN)/pytest -m documentation tests/test_documentation.py

notebooks: $(INSTALLED)
	@for notebook in $(wildcard notebooks/*.ipynb); do \
		SGDAP_MNIST="$${SGDAP_MNIST:-$(CURDIR)/sgdap/data/mnist_subset.npz}" \
		$(BIN)/jupyter nbconvert --to notebook --execute --output-dir build/notebooks \
			"$$notebook" || exit 1; \
	done

clean:
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
