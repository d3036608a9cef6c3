# make demo   from a fresh machine to a trained, evaluated model        make test    the test suite
# make demo-tasks  that model on questions, numbers, classes and clips
# make study  the paper's ablations on the demo's handwriting, after make demo: docs/studies.md
# make check  lint, format, types                                       make gpu-check PYTHON=python3   one CUDA GPU
# make sweep  every family of timm as an image encoder: docs/encoders.md
# make proofs  what the suite leaves out: more of a kind, and what compiles C++
# make test-lowest  with the lowest versions that setup.py allows: docs/versions.md

VENV := .venv
LOWEST := .venv-lowest
# Those that lean on other libraries most: private names, models, layouts of optimizers, formats, metrics.
LOWEST_TESTS ?= tests/test_private_names.py tests/checkpoint tests/evaluation tests/models tests/monitoring tests/planning \
	tests/tasks $(addprefix tests/parallel/,test_zero_stages.py test_ds_keys.py test_splits.py test_tensor.py)
PYTHON ?= $(VENV)/bin/python
SYSTEM_PYTHON ?= $(shell for p in python3 python3.11 python3.12; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo demo-tasks study test proofs test-lowest check format sweep gpu-check clean

demo: $(VENV)/ready
	$(PYTHON) tools/demo.py

demo-tasks: $(VENV)/ready
	$(PYTHON) tools/demo_tasks.py

study: $(VENV)/ready
	$(PYTHON) tools/study.py ablations

# Two at a time, file by file in the order of tests/conftest.py, with a thread each: threads that spin for one another
# take ten times as long. A process that dies ends the tests: with another one in its place xdist waits without an end.
TWO_AT_A_TIME := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

test: $(VENV)/ready
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(PYTHON) -m pytest -m "not gpu and not proof" $(TWO_AT_A_TIME)

proofs: $(VENV)/ready
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(PYTHON) -m pytest -m "proof and not gpu" $(TWO_AT_A_TIME)

test-lowest: $(LOWEST)/ready
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(LOWEST)/bin/python -m pytest -m "not gpu and not proof" \
		$(TWO_AT_A_TIME) $(LOWEST_TESTS)

check: $(VENV)/ready
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: $(VENV)/ready
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

sweep: $(VENV)/ready
	$(PYTHON) tools/encoder_sweep.py --markdown docs/encoders.md

# Uses the interpreter it is given as it is: no set-up, no network. STAGES: names, or sets 1, 2, 3; none: all.
gpu-check:
	$(PYTHON) tools/gpu_check.py --stages "$(STAGES)"

# torch is asked for first and alone: a resolver that meets it among others may pick a newer, CUDA-only build.
$(VENV)/ready: setup.py
	@test -n "$(SYSTEM_PYTHON)" || { echo "git_scale needs Python 3.11 or 3.12"; exit 2; }
	$(SYSTEM_PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q "torch>=2.11,<2.14" numpy
	$(VENV)/bin/python -m pip install -q -e ".[demo,test,lint,hf,video,study]"
	touch $@

$(LOWEST)/ready: setup.py tools/lowest_versions.py
	@test -n "$(SYSTEM_PYTHON)" || { echo "git_scale needs Python 3.11 or 3.12"; exit 2; }
	$(SYSTEM_PYTHON) -m venv $(LOWEST)
	PYTHONPATH=. $(LOWEST)/bin/python tools/lowest_versions.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install -q -c $(LOWEST)/constraints.txt torch numpy
	$(LOWEST)/bin/python -m pip install -q -c $(LOWEST)/constraints.txt -e ".[demo,test,hf,video,study]"
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
