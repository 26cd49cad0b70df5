"""What keeps a run alive, or ends it in order: guards, lockstep over processes, stop signals."""
