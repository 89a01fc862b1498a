"""`compressor finetune`."""

HELP = "Train a model further, gently: after pruning, or on other data."
EXAMPLE = "compressor finetune runs/small/model.safetensors --data digits --epochs 5 --out runs/tuned"
