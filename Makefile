# make test    run the tests
# make demo    train a small 1-Lipschitz network on synthetic faces with two CPU processes, certify it, plot
# make ablation DATA=FOLDER   the paper's tables on the faces of a folder (train.rec, train.idx, *.bin); two hours on 2 cores
# make bench   speed and memory next to plain implementations; BENCH="--weights W --bin B" adds the attack, see --help
# make check-gpu   the first minute on a machine with GPUs
# make clean   remove what the demo made
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
DEMO = out/demo
DATA ?= ../shared/data/lfwcrop

.PHONY: install test demo ablation bench check-gpu clean
test: install
	$(RUN) -m pytest -q tests

demo: install
	rm -rf $(DEMO)
	$(VENV)/bin/torchrun --standalone --nproc_per_node=2 train.py rec=synthetic backbone=sllnet_small device=cpu xi=1.0 \
		num_epoch=4 batch_size=64 frequent=10 verbose=100 output=$(DEMO)/train
	$(RUN) -m eval certify --bin $(DEMO)/train/synthetic.bin --backbone sllnet_small --weights $(DEMO)/train/model_final.pt \
		--device cpu --far 1e-2 --out $(DEMO)/certified
	$(RUN) -m eval plot $(DEMO)/certified

ablation: install
	$(RUN) ablation.py data=$(DATA)

bench: install
	$(RUN) tests/benchmarks/run.py $(BENCH)

check-gpu: install
	$(RUN) tests/benchmarks/check_gpu.py

install: $(VENV)/.installed

# the stamp is as old as the last complete installation: a second call installs nothing
$(VENV)/.installed: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -r requirements.txt -c constraints.txt
	touch $@

clean:
	rm -rf $(DEMO)
