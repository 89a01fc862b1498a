"""Networks whose first layers can be taken off, on one set of weights: CNSN for convolutions, NSN for perceptrons."""
