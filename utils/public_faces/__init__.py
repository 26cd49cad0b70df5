"""Faces that anybody can get, as the files that training and evaluation read: part of the command utils/build_dataset.py."""

SIZE = 112  # pixels a side
QUALITY = 92  # of JPEG: that of the faces that the tables of this repository are of
FOLDS = (8, 9)  # of LFW's view 2: those of the same tables
AT_LEAST = 2  # images of a person in training: of one alone there is nothing to learn
LFW_CROPS = ("lfwcrop", "region")
