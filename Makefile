# One entry for people and for CI. `serve` and `test` set up a fresh machine; a second run finds the work done.

PYTHON := $(firstword $(foreach name,python3.11 python3.12,$(shell $(name) -c 'print("$(name)")' 2>/dev/null)))
BIN := .venv/bin

.PHONY: serve test test-fast test-scale demo check lint

serve: .venv/ready
	$(BIN)/safecb serve

# Many tests wait for a process: three workers are faster than two, even on two cores. OpenMP's threads sleep once they
# have waited a little, and leave the cores to the tests beside them.
test test-fast: export GOMP_SPINCOUNT = 3000
# Where Python is set to keep no compiled files, each of the processes that tests start would compile the project anew.
test test-fast: export PYTHONDONTWRITEBYTECODE =
# mypy runs beside the tests, as nice as they are: alone it would leave a core idle.
test: .venv/ready
	$(BIN)/ruff check .
	nice -n 15 $(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=25 -rfER; tests=$$?; \
	wait $$types || { echo "mypy has failed, see above" >&2; exit 1; }; exit $$tests

test-fast: .venv/ready
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not scale"

# Hosts that are cut off, the Compose file's containers, two releases on one store, and the tests of a bucket on other
# S3 servers, all also where one has failed. What is not installed is skipped, with what to install: CONTRIBUTING.md.
test-scale: export TEST_PATIENCE_S = 600
test-scale: .venv/ready
	$(BIN)/python -m pytest -q -rsP --durations=10 -m scale; failed=$$?; \
	for server in ministack ceph; do \
		$(BIN)/python -m pytest -q -rs -m "bucket and not scale" --s3 $$server || failed=1; \
	done; exit $$failed

demo: .venv/ready
	$(BIN)/python -m cli.demo

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

lint: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed, as python3.11 or python3.12 on PATH" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install -c constraints.txt -e '.[embedded,dev]'
	touch $@
