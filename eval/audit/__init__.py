"""What tries to break certificates, and what proves them in floating point."""
