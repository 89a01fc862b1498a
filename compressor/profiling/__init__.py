"""What a model costs to run: multiply-adds, parameters, memory and time."""
