"""`compressor prune`."""

from compressor.pruning.settings import METHODS

HELP = (
    "Make a model smaller by removing its least important channels.\n\n"
    "Without --data this is one-shot: nothing is trained, and no accuracy is known; l1 chooses, and the same share of "
    "every layer goes. With --data obs chooses, widths follow the error, layers that read pruned channels are refitted "
    "by least squares, and the smaller network is fine-tuned and measured.\n\n"
    "Methods:\n\n"
    + "\n".join(f"  {name:<9} {about.summary}" for name, about in METHODS.items())
    + "\n\nadapnet trains in three phases: before, while and after the structure changes. --preset short takes four "
    "epochs (a trained network's default), --preset paper up to 120 as in the paper (the default from random weights), "
    "--preset quick minutes; learning rate, weight decay and batch size are the preset's, too. Flags change single "
    "settings of each. blocks takes whole blocks of layers until a target in MACs or time is met."
)
EXAMPLE = (
    "compressor prune sample_models/digits_cnn.safetensors --target-macs 0.5 --data digits --epochs 5 --out runs/small"
)
