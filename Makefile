# make test    run the tests, a process a core with one thread each
# make demo    train a small 1-Lipschitz network on synthetic faces with two CPU processes, certify it, plot
# make faces   Labeled Faces in the Wild, downloaded (200 MB), as data/lfw
# make ablation   the paper's tables on these faces, or with DATA=FOLDER on those of a folder (train.rec, train.idx, *.bin); two hours on 2 cores
# make bench   speed and memory next to plain implementations; BENCH="--weights W --bin B" adds the attack, see --help
# make lint    the rules that the code keeps (ruff) and its types (mypy)
# make docs    the site, to out/site
# make check-gpu   a few minutes on a machine with GPUs: checks, and a table of what a step takes
# make clean   remove what the demo made
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
DEMO = out/demo
FACES = data/lfw
DATA ?= $(FACES)

.PHONY: install install-dev test demo faces ablation bench lint docs check-gpu clean
test: install
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder tests

demo: install
	rm -rf $(DEMO)
	$(VENV)/bin/torchrun --standalone --nproc_per_node=2 train.py rec=synthetic backbone=sllnet_small device=cpu xi=1.0 \
		num_epoch=4 batch_size=64 frequent=10 verbose=100 output=$(DEMO)/train
	$(RUN) -m eval certify --bin $(DEMO)/train/synthetic.bin --backbone sllnet_small --weights $(DEMO)/train/model_final.pt \
		--device cpu --far 1e-2 --out $(DEMO)/certified
	$(RUN) -m eval plot $(DEMO)/certified

faces: $(FACES)/lfw.bin

# the last file that is written
$(FACES)/lfw.bin: | install
	$(RUN) -m utils.build_dataset lfw --out $(FACES)

ablation: install $(if $(filter $(FACES),$(DATA)),$(FACES)/lfw.bin)
	$(RUN) ablation.py data=$(DATA)

bench: install
	$(RUN) tests/benchmarks/run.py $(BENCH)

lint: install-dev
	$(RUN) -m ruff check .
	$(RUN) -m mypy

docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet

check-gpu: install
	$(RUN) tests/benchmarks/check_gpu.py

# What was installed is known by the checksum of the files that ask for it, which a fresh clone does not change as it does their times. Where
# there is no such mark, pip says whether anything is missing, without looking anywhere for it.
define install
	@sum=$$(cat $(1) constraints.txt | cksum); mark=$(VENV)/.installed-$(basename $(lastword $(1))); \
	[ "$$(cat $$mark 2>/dev/null)" = "$$sum" ] && exit 0; \
	wanted="$(addprefix -r ,$(1)) -c constraints.txt"; \
	$(RUN) -m pip install --quiet --no-index --dry-run $$wanted >/dev/null 2>&1 || \
		{ $(PYTHON) -m venv $(VENV) && $(RUN) -m pip install $$wanted; } || exit 1; \
	echo "$$sum" > $$mark
endef

install:
	$(call install,requirements.txt)

install-dev:
	$(call install,requirements.txt requirements-dev.txt)

clean:
	rm -rf $(DEMO)
