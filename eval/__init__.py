"""Verification, certification and robustness of face-recognition networks; `python -m eval --help` lists the
commands.
"""
