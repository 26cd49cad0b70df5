"""What keeps a run alive, or ends it in order; whoever reads the method need not come here.

run.py          the steps of a run from where its state left off, in lockstep; saving, stopping and going on
guard.py        steps whose loss or gradient is not finite: left out, counted, and the end of the run where there are too many
lockstep.py     all processes stop at the same step, on a signal or when one of them has no batch
signals.py      what asks a process to stop, noted between two steps or raised where it is
folder.py       one run at a time writes to a folder
machines.py     what one machine has and another lacks
resources.py    what a machine is short of, told from errors
launch.py       what the environment says of how many processes there are, checked
rendezvous.py   how the processes of one start find each other after torchrun has killed an earlier one, and notice that one is gone
"""
