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
    rare: bool = False  # shown by --help-all only


# Settings dataclass -> heading of its flags.
PANELS = {
    "ModelSettings": "Model",
    "DataSettings": "Data",
    "PruneSettings": "Pruning",
    "AdapNetSettings": "AdapNet",
    "GoalSettings": "AdapNet",
    "DetachSettings": "Sub-models",
    "PrimeNetSettings": "PrimeNet",
    "RouteSettings": "Routing",
    "SweepSettings": "Grid",
    "TrainSettings": "Training",
    "DistillSettings": "Training",
    "OutputSettings": "Output",
}

DESCRIPTIONS: dict[str, Described] = {
    # Model
    "model": Described("Model file. Left out, --arch is taken with random weights.", "MODEL", argument=True),
    "arch": Described("How the network is built: torchvision:NAME, timm:NAME or FILE.py:build.", "ARCH"),
    "arch_arg": Described("Argument of the architecture, such as num_classes=10. Repeatable.", "KEY=VALUE"),
    "input": Described("Shape of the images, such as 3x224x224, where the model does not say.", "CxHxW"),
    "weights": Described("Which weights of a file that has several, such as model_ema.", "KEY", rare=True),
    "trust": Described("Let a pickled model or a program run code while it is opened. Only for files of your own."),
    "max_size": Described("Largest model file, also unpacked, in GiB.", "GIB", least=0, rare=True),
    # Data
    "validation": Described("Share of the training set that decisions look at.", "SHARE", least=0, most=1, rare=True),
    "download": Described("Fetch a data set that is missing."),
    "mean": Described("Mean of each channel of pixels in 0..1, such as 0.485,0.456,0.406.", "NUMBERS", rare=True),
    "std": Described("Standard deviation of each channel. Both are kept in the model.", "NUMBERS", rare=True),
    "classes": Described("File that says which output each class folder has, of a network with more classes.", "FILE"),
    "bad_images": Described("An image that cannot be read: leave it out and name it, or stop.", "WHAT", rare=True),
    # Pruning
    "method": Described("How channels are chosen, see above; auto is obs with data, else l1.", "METHOD"),
    "ratio": Described("Share of the channels that go.", "SHARE", 0, 1),
    "target_macs": Described("Instead of a ratio, the MACs that stay: 0.5 for half, 2e8 for 200 million.", "MACS"),
    "allocate": Described("Of each layer: what costs least error, the same share, or the lowest scores of all.", "HOW"),
    "round_to": Described("Make widths that change multiples of this; auto: of what the chip likes. [auto]", "N"),
    "min_channels": Described("Channels that stay in every layer.", "N", least=1),
    "ratio_for": Described("A ratio for some layers only, such as 'layer1.*=0.2'. Repeatable.", "LAYER=SHARE"),
    "keep": Described("Layers that stay as they are, such as 'layer4.*'. Repeatable.", "LAYER"),
    "also": Described("A method of the model that is followed too, such as embed. Repeatable.", "METHOD", rare=True),
    "score_images": Described("Training images that taylor looks at.", "N", least=1, rare=True),
    "reconstruct": Described("With data, refit what reads pruned channels by least squares. [adapnet: off]"),
    # Sub-models
    "exits": Described("Sub-models besides the base. [2; nsn: one for each hidden layer]", "N", least=1),
    "at": Described("The first module that each sub-model keeps, such as features.7,features.24.", "NAMES"),
    "targets": Described("MACs of each sub-model as shares of the base's, such as 0.5,0.25.", "SHARES"),
    "bn": Described("What each model has of its own in batch norm.", "MODE"),
    "recalibrate": Described("After training, measure every model's batch-norm statistics anew."),
    "loss_weights": Described("Of the base and each sub-model, such as 1,0.5,0.5.", "WEIGHTS"),
    "distill": Described("Share of a sub-model's loss that follows the base's scores.", "SHARE", 0, 1),
    "temperature": Described("Of the scores that --distill compares.", "X", least=0, rare=True),
    "keep_input": Described("nsn: probability that dropout keeps an input.", "X", 0, 1, rare=True),
    "keep_hidden": Described("nsn: probability that dropout keeps a hidden unit.", "X", 0, 1, rare=True),
    "l2": Described("nsn: penalty on the base's weights. [9e-5; 9e-6 with one hidden layer]", "X", least=0, rare=True),
    "baseline": Described("Also train every model alone with the same budget, to compare."),
    # PrimeNet
    "scales": Described("Kernel sizes of the block's parallel convolutions, of 1, 3, 5 and 7.", "N,N,..."),
    "reduced": Described("Channels that each of them reads, after a 1x1 convolution.", "N", least=1, rare=True),
    "fit": Described("How the block's maps shrink: pooled behind it, or by a stride, which is cheaper.", "HOW"),
    "inference": Described("Keep the scale that did best on validation data, or let each image choose.", "HOW"),
    "local_lr": Described("Learning rate of each scale's own Adam.", "RATE", 0),
    "local_beta1": Described("Of these Adams.", "X", least=0, most=1, rare=True),
    "local_beta2": Described("Of these Adams.", "X", least=0, most=1, rare=True),
    "local_eps": Described("Of these Adams.", "X", least=0, rare=True),
    "retrain": Described("What learns in phase two: all behind the block, or the last layer.", "PART", rare=True),
    "retrain_epochs": Described("Epochs of the second phase, in which the block is held.", "N", least=0),
    "retrain_batch_size": Described("Images per step of the second phase.", "N", least=1, rare=True),
    # Routing
    "mode": Described("What the flags below stand at: tuned by us, or the paper's letter.", "MODE"),
    "labels": Described("How images get their depth: what is right where, or activations.", "RULE"),
    "router": Described("What decides: a gate at each way out, or a small network that sees the image.", "KIND"),
    "heads": Described("A small classifier at each way out, or the network's own.", "WHICH"),
    "adapters": Described("Shared heads: learned 1x1 convolutions around units that change the shape.", rare=True),
    "depths": Described("Places where images may leave, the end included.", "N", least=2),
    "leave_after": Described("Instead: the units to leave after, by their numbers in --list, such as 0,2,5.", "UNITS"),
    "init": Described("Start from the model's weights, or draw new ones.", "HOW"),
    "skip_set": Described("Images that teach the network by label: all, or the paper's choice.", "SET", rare=True),
    "label_epochs": Described("More epochs, with each image at its labelled depth only.", "N", least=0),
    "early_weight": Described("Of each earlier depth's loss; the last one's is 1.", "X", least=0, rare=True),
    "joint": Described("Train the router along with the network, not afterwards."),
    "router_epochs": Described("Epochs of the router alone.", "N", least=0, rare=True),
    "router_set": Described("Images that teach the router.", "SET", rare=True),
    "router_images": Described("At most so many of them.", "N", least=4, rare=True),
    "max_drop": Described("Without a target: validation top-1 that may be lost, as a fraction.", "X", 0, 1),
    "target_ms": Described("Instead: mean milliseconds of one image on ONNX Runtime, on this machine.", "MS", least=0),
    "threshold": Described("Instead: leave where the router is at least so sure; 0 never goes on.", "X", 0),
    # Sweep
    "methods": Described("Of pruning, see `compressor prune --help`. [obs,taylor,adapnet]", "NAME,NAME,..."),
    "ratios": Described("Shares of the MACs that go. [0.3,0.5,0.7]", "SHARE,..."),
    "control": Described("Also train the model itself on with the same budget, to compare."),
    # Training
    "epochs": Described("Times through the training set.", "N", least=0),
    "batch_size": Described("Images per step.", "N", least=1),
    "seed": Described("Of everything that is drawn by chance.", "N"),
    "optimizer": Described("What turns gradients into steps.", "NAME"),
    "lr": Described("Learning rate at the start of the schedule.", "RATE", 0),
    "momentum": Described("Of sgd.", "X", least=0, most=1, rare=True),
    "nesterov": Described("Nesterov's momentum, for sgd.", rare=True),
    "beta1": Described("Of adam and adamw.", "X", least=0, most=1, rare=True),
    "beta2": Described("Of adam and adamw.", "X", least=0, most=1, rare=True),
    "rho": Described("Of rmsprop.", "X", least=0, most=1, rare=True),
    "eps": Described("Of adam, adamw and rmsprop.", "X", least=0, rare=True),
    "weight_decay": Described("On all parameters.", "X", least=0),
    "schedule": Described("How the learning rate falls.", "NAME"),
    "milestones": Described("Epochs at which step multiplies the rate by gamma, such as 30,60.", "EPOCHS", rare=True),
    "gamma": Described("Factor of the step schedule.", "X", least=0, rare=True),
    "warmup_epochs": Described("Linear rise from nothing to the learning rate.", "N", least=0, rare=True),
    "label_smoothing": Described("Share of the label spread over all classes.", "SHARE", least=0, most=1, rare=True),
    "augment": Described("Random changes to training images; auto is what suits the data.", "NAME"),
    "crop_padding": Described("Black pixels around an image before the random crop.", "N", least=0, rare=True),
    "device": Described("auto, cpu, cuda or cuda:NUMBER.", "DEVICE"),
    "amp": Described("bfloat16 on GPUs that have it.", rare=True),
    "channels_last": Described("Memory layout with the channels last, if the model takes it.", rare=True),
    "compile": Described("Use torch.compile; every change of structure compiles again.", rare=True),
    "sync_bn": Described("Under torchrun, batch norm over the batches of all processes.", rare=True),
    "deterministic": Described("The same weights from the same run on a GPU too; slower.", rare=True),
    "autotune": Described("Let cuDNN try its algorithms on every new shape.", rare=True),
    "on_nan": Described("A loss that is not finite: stop, or go back with half the rate.", "WHAT", rare=True),
    "max_rollbacks": Described("How often to go back.", "N", least=0, rare=True),
    "evaluate_every": Described("Epochs between looks at the validation set; 0: never.", "N", least=0, rare=True),
    "log_seconds": Described("Seconds between progress lines.", "SECONDS", least=0, rare=True),
    "distill_weight": Described("Share of the loss that follows the teacher.", "SHARE", least=0, most=1, rare=True),
    "distill_temperature": Described("Softmax temperature of --distill.", "X", least=0, rare=True),
    # Output
    "out": Described("Folder for the results.", "FOLDER"),
    "overwrite": Described("Replace the run that is in the folder."),
    "latency": Described("Measure milliseconds on torch and ONNX Runtime."),
    "onnx": Described("Export the result to ONNX and check it."),
    "tensorboard": Described("Write the metrics as event files for TensorBoard, too."),
}
