"""What lies on disk and is taken up again: what its files may hold, unfinished work, and what both are about."""
