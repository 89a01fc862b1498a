"""`compressor replace`."""

HELP = (
    "Replace the first layers by PrimeNet's block: parallel convolutions of several sizes, each trained by a loss of "
    "its own, without back-propagation through them.\n\n"
    "Trains in two phases: --epochs in which the block learns with everything behind it, then --retrain-epochs in "
    "which the block is held. Without --until the earliest stage goes that costs at least twice what the block does."
)
EXAMPLE = (
    "compressor replace sample_models/digits_cnn.safetensors --until 5 --fit stride --data digits --epochs 10 "
    "--retrain-epochs 5 --out runs/replaced"
)
