"""Machines that read files of strangers without running what is in them."""
