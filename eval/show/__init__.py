"""Tables, plots, curves and examples, from results alone."""
