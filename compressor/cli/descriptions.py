"""What every flag says in `--help`, and the least and most it takes; defaults stand in the settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Described:
    """One flag, or an argument, in words."""

    text: str
    metavar: str | None = None
    least: float | None = None
    most: float | None = None
    argument: bool = False


# Settings dataclass -> heading of its flags.
PANELS = {
    "ModelSettings": "Model",
    "DataSettings": "Data",
    "PruneSettings": "Pruning",
    "TrainSettings": "Training",
    "OutputSettings": "Output",
}

DESCRIPTIONS: dict[str, Described] = {
    # Model
    "model": Described("Model file. Left out, --arch is taken with random weights.", "MODEL", argument=True),
    "arch": Described("How the network is built: torchvision:NAME, timm:NAME or FILE.py:build.", "ARCH"),
    "arch_arg": Described("Argument of the architecture, such as num_classes=10. Repeatable.", "KEY=VALUE"),
    "input": Described("Shape of the images, such as 3x224x224, where the model does not say.", "CxHxW"),
    "trust": Described("Let a pickled model run code while it is opened. Only for files of your own."),
    # Data
    "validation": Described("Share of the training set that decisions look at.", least=0, most=1),
    "download": Described("Fetch a data set that is missing."),
    "bad_images": Described("An image that cannot be read: leave it out and name it, or stop."),
    # Pruning
    "method": Described("How channels are chosen; see below.", "METHOD"),
    "ratio": Described("Share of the channels that go.", "SHARE", 0, 1),
    "target_macs": Described("Instead of a ratio, the MACs that stay: 0.5 for half, 2e8 for 200 million.", "MACS"),
    "scope": Described("The ratio of every layer, or the lowest scores of the whole network."),
    "round_to": Described("Make widths that change multiples of this.", least=1),
    "min_channels": Described("Channels that stay in every layer.", least=1),
    "ratio_for": Described("A ratio for some layers only, such as 'layer1.*=0.2'. Repeatable.", "LAYER=SHARE"),
    "keep": Described("Layers that stay as they are, such as 'layer4.*'. Repeatable.", "LAYER"),
    "score_images": Described("Training images that taylor looks at.", least=1),
    # Training
    "epochs": Described("Times through the training set.", least=0),
    "batch_size": Described("Images per step.", least=1),
    "seed": Described("Of everything that is drawn by chance."),
    "optimizer": Described("What turns gradients into steps."),
    "lr": Described("Learning rate at the start of the schedule.", "RATE", 0),
    "momentum": Described("Of sgd.", least=0, most=1),
    "nesterov": Described("Nesterov's momentum, for sgd."),
    "beta1": Described("Of adam and adamw.", least=0, most=1),
    "beta2": Described("Of adam and adamw.", least=0, most=1),
    "rho": Described("Of rmsprop.", least=0, most=1),
    "eps": Described("Of adam, adamw and rmsprop.", least=0),
    "weight_decay": Described("On all parameters.", least=0),
    "schedule": Described("How the learning rate falls."),
    "milestones": Described("Epochs at which step multiplies the rate by gamma, such as 30,60.", "EPOCHS"),
    "gamma": Described("Factor of the step schedule.", least=0),
    "warmup_epochs": Described("Linear rise from nothing to the learning rate.", least=0),
    "label_smoothing": Described("Share of the label that is spread over all classes.", least=0, most=1),
    "augment": Described("Random changes to training images; auto: what suits the data set."),
    "crop_padding": Described("Black pixels around an image before the random crop.", least=0),
    "device": Described("auto, cpu, cuda or cuda:NUMBER.", "DEVICE"),
    "amp": Described("bfloat16 on GPUs that have it."),
    "channels_last": Described("Memory layout with the channels last."),
    "compile": Described("Use torch.compile; every change of structure compiles again."),
    "deterministic": Described("The same weights from the same run on a GPU too; slower."),
    "autotune": Described("Let cuDNN try its algorithms on every new shape."),
    "on_nan": Described("When the loss is no longer finite: stop, or go back with half the rate."),
    "max_rollbacks": Described("How often to go back.", least=0),
    "evaluate_every": Described("Epochs between looks at the validation set; 0: never.", least=0),
    "log_seconds": Described("Seconds between progress lines.", least=0),
    # Output
    "out": Described("Folder for the results.", "FOLDER"),
    "overwrite": Described("Replace the run that is in the folder."),
    "latency": Described("Measure milliseconds on torch and ONNX Runtime."),
    "onnx": Described("Export the result to ONNX and check it."),
}
