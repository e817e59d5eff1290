# `make book` and `make test` work alone, in either order, on a machine that has Python 3.11+, git and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
UV := $(BIN)/uv --quiet

.PHONY: env book html notebooks test lock clean

book: notebooks html

env: $(READY)

# uv installs from the hashed lock in a fraction of pip's time; the stamp makes later runs skip this.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	VIRTUAL_ENV=.venv $(UV) pip install --require-hashes -r requirements.lock
	VIRTUAL_ENV=.venv $(UV) pip install --no-deps --editable .
	touch $@
