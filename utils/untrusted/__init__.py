"""Machines that read files of strangers without running what is in them, and refuse files that ask for more than they hold.

    pickles.py      pickles of plain data (.bin files) as a machine with a few opcodes, none of which imports or calls anything
    torchfile.py    the zip files of torch.save: their table, sizes and checksums, before torch.load sees them

Whoever has such a file calls `load_plain` of pickles.py, or `utils.checkpoint.load`.
"""
