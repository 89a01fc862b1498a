"""Data sets, the one visible training loop, checkpoints, evaluation; knows neither methods nor surgery."""
