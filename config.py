"""Settings of the published run (proposed model, xi = 3). `train.py key=value ...` overrides any of them.

The published configuration's `lambd`, `fp16` and `emb_size` are taken too, on the command line and in an EasyDict: `lambd` is lambda_,
fp16=True is precision="fp16" and fp16=False is "fp32". A published `model_5.pt` is of the end of epoch 5 counted from 0, after six
epochs; here it is after five.
"""
from easydict import EasyDict

config = EasyDict()

# data
# a folder with train.rec and train.idx (MS1MV3 in the paper), a .rec file, an image folder, several of these ("/data/a,/data/b": identities
# of later ones follow those of former ones), or "synthetic"
config.rec = "synthetic"
config.num_classes = None           # None: read from the data. MS1MV3: 93431
config.num_image = None             # None: all there are. MS1MV3: 5179510. "synthetic" makes about as many, equally many of each identity
config.recordio_backend = "builtin"  # or "mxnet"
config.on_bad_record = "error"      # or "skip": the next one stands in for a record that cannot be used, which is counted and logged
config.max_bad_records = 1000       # more than these, of all processes together, end the run
config.in_memory = False            # decode all images once, at the start, and keep them: H * W * 3 bytes for each
config.partners = False             # the second half of a batch: another image of each person in the first half, chosen anew every epoch
config.jitter = 0.0                 # 1: images are turned by up to 0.12 rad, zoomed by up to 8 % and moved by up to 3 %; 2: twice as much
config.noise_sigma = 0.0            # Gaussian noise on each pixel of [-0.5, 0.5], for randomised smoothing: its standard deviation
config.num_workers = None           # decoding processes per training process; None: as many as there are cores to spare, at most 8

# network and header
config.backbone = "sllnet"          # a name, or package.module:Name of a network of one's own
config.backbone_args = {}           # further arguments of the network, e.g. {"depth": [2, 2]}; checkpoints say them
config.emb_size = None              # length of an embedding; None: the network's own (512 for sllnet)
config.header = "ecosface"          # arcface, cosface, adacos, ecosface (elasticface_cos), emma, naive (lln), or package.module:Name
config.header_args = {}             # further arguments of the header, e.g. {"s": 64.0, "m": 0.35}
config.header_shards = None         # deal the classes out to the processes (sharding.py); None: above 2^17 of them
config.sample_rate = 1.0            # of a sharded header: the share of its classes that a step takes, those of its images among them
config.init_weights = None          # fine-tuning: a model_*.pt to begin with; everything else starts afresh

# loss: cross entropy + lambda_ * mean(max(0, -xi * log(norm / xi))) + contrast * supervised contrastive loss
config.lambda_ = 10.0
config.xi = 3.0
config.contrast = 0.0               # of several images of a person in a batch, which partners=True sees to
config.contrast_args = {"s": 10.0, "m": 0.1}  # its scale and margin

# adversarial training: pgd, the loss of images moved by an attack; trades, that of clean ones + trades_beta * mean squared distance of unit
# embeddings of clean and moved ones; none
config.adversarial = "none"
config.adversarial_eps = 0.75       # budget of the attack, l2 in pixels of [-0.5, 0.5]
config.adversarial_steps = 5        # of the attack: each costs a forward and most of a backward pass
config.adversarial_step_size = None  # l2; None: steps that fall linearly from twice the budget, as those of attacks.PGD
config.trades_beta = 6.0

# optimisation
config.batch_size = 512             # of all processes together
config.grad_accum_steps = 1         # parts in which a process computes its share of a batch
config.num_epoch = 20
config.lr = 1e-3
config.muon = 0.0                   # learning rate of orthogonalised updates for kernels and matrices of the backbone; 0: they take AdamW's
config.weight_decay = 0.0
config.warmup_epoch = 0
config.power = 1.0                  # of the polynomial decay to 0
config.max_norm = 5.0               # of the backbone's gradient
config.precision = "fp16"           # fp16, bf16 or fp32; fp16 needs CUDA, the CPU takes fp32 in its place
config.max_skipped_steps = 20       # so many steps in a row whose loss or gradient is not finite end the run (looked at with log lines)
config.compile = False              # torch.compile the backbone

# run
config.seed = 0
config.device = None                # None: cuda where there is one, else cpu
config.deterministic = True         # False lets cuDNN choose the fastest convolutions, which differ between runs
config.output = "out/train"
config.resume = None                # "auto": go on from the newest state in `output`, if there is one; or the path of a state file
config.resume_changed = False       # go on although settings, data or the number of processes are not those of the state
config.timeout = 600.0              # seconds that a process waits for the others, and for a batch, before it gives up
config.frequent = 20                # steps between two log lines
config.verbose = 2000               # steps between two verifications
config.val_targets = None           # names of .bin files beside the (first) data; None: all there are (lfw, cfp_fp, agedb_30 in the paper)
config.save_epochs = 5              # epochs between two pairs model_*.pt, header_*.pt (counted from 1); the last are *_final.pt
config.save_steps = 2000            # steps between two full states, state_*.pt; the end of an epoch saves one too
config.keep_states = 2              # how many of them are kept
config.save_header = None           # write header_*.pt, a file with all classes; None: where the header is not sharded
