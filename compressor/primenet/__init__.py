"""PrimeNet: an early stage of parallel scales that learns from local losses, while the batch passes through it."""
