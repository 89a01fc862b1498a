"""The defaults of every method are those that its paper gives, and where it gives none, those of our reading of it."""

from dataclasses import asdict, fields, replace

import pytest

from compressor.exits.settings import CNSN, NSN, DetachSettings, falling
from compressor.primenet.settings import REPRESENTATION, PrimeNetSettings
from compressor.pruning.adapnet import (
    clusters,
    insert,
    maps,
    neighbours,
    prune,
    schedule,
    subspace,
    tables,
    unit,
)  # fmt: skip
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.routing.settings import PAPER_TRAINING, RouteSettings
from compressor.runs import phases

ADAPNET = {
    # sections 3 and 4, table 2
    "startup_untrained": 50, "max_epochs": 60, "finetune_epochs": 10, "lsep": 150, "lr": 0.025, "lr_halve_every": 15,
    "lr_trained_epoch": 50, "weight_decay": 0.01, "batch_size": 128, "beta_start": 0.9, "beta_step": 0.06,
    # ours, where the paper gives none
    "dict_size": 256, "chi_s": 20.0, "prune_cap": 0.10, "min_share": 0.05, "merge_cap": 0.05, "max_width": 1.0,
}  # fmt: skip
CONSTANTS = {
    # the paper's
    schedule: {"BETA_FLOOR": 0.18, "STOP_FILTERS": 3, "STOP_PERIODS": 2}, phases: {"MOMENTUM": 0.8},
    prune: {"GAMMA1": 0.6, "GAMMA2_FACTOR": 2.0, "GAMMA3": 0.8, "GAMMA2_CAP": 0.95},
    insert: {"ACTIVE_SHARE": 0.3, "ACTIVE_MASS": 0.7}, unit: {"PROTECTION": 2},
    # DSC-Net and KSE, as published
    subspace: {"EPOCHS": 2, "LEARNING_RATE": 1e-3, "BATCH": 128, "LAMBDA1": 1.0, "LAMBDA2": 30.0, "ALPHA": 0.2,
               "TAU": 0.1},
    neighbours: {"NEIGHBOURS": 5, "ROWS": 256},
    # ours
    maps: {"REC_BATCHES": 8, "REC_MAPS": 3, "COSINE_IMAGES": 16},
    tables: {"ROW_MIN": 40, "BORDER_FRACTION": 0.2, "BORDER_RATIO": 0.75},
    clusters: {"K_MIN": 4, "EXEMPLARS": 8, "RETIRE_AFTER": 5, "RETIRE_SHARE": 0.01},
}  # fmt: skip


def differing(settings: object, wanted: dict[str, object]) -> dict[str, object]:
    held = vars(settings)
    return {name: held[name] for name, value in wanted.items() if held[name] != value}


def test_adapnets_are_the_papers() -> None:
    assert not differing(AdapNetSettings(), ADAPNET)
    assert PRESETS["paper"] == AdapNetSettings()
    assert len(fields(AdapNetSettings)) <= 25


@pytest.mark.parametrize(("module", "wanted"), CONSTANTS.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_adapnets_constants_are_the_papers(module: object, wanted: dict[str, object]) -> None:
    assert not differing(module, wanted)


def test_the_quick_preset_differs_in_times_and_rates_alone() -> None:
    quick, paper = asdict(PRESETS["quick"]), asdict(PRESETS["paper"])
    changed = {name for name, value in quick.items() if value != paper[name]}
    rates = {"lr", "lr_halve_every", "lr_trained_epoch", "weight_decay"}
    assert changed == {"startup_untrained", "max_epochs", "finetune_epochs", "lsep"} | rates
    assert (quick["startup_untrained"], quick["max_epochs"], quick["finetune_epochs"]) == (5, 12, 3)


def test_concepts_are_tested_as_strictly_as_filters_unless_told() -> None:
    assert AdapNetSettings().evidence == 20.0
    assert AdapNetSettings(chi_s_concepts=7.0).evidence == 7.0


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (PrimeNetSettings(), {"scales": (3, 5, 7), "reduced": 32, "local_lr": 2e-4,
                              "retrain_epochs": 50, "retrain_batch_size": 32}),
        (REPRESENTATION, {"epochs": 100, "batch_size": 200, "optimizer": "adam", "lr": 2e-4,
                          "optimizer_arg": (("betas", (0.99, 0.999)), ("eps", 1e-7)), "weight_decay": 0.0,
                          "schedule": "constant", "augment": "none"}),
        (DetachSettings(), {"loss_weights": (), "distill": 0.0, "distill_temperature": 4.0, "keep_input": 0.8,
                            "keep_hidden": 0.5}),
        (CNSN, {"batch_size": 32, "lr": 0.01, "momentum": 0.9,
                                                     "weight_decay": 6e-4, "warmup_epochs": 1}),
        (falling("nsn", replace(NSN, epochs=600)),
         {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.0, "gamma": 1 / 3, "batch_size": 128, "milestones": (200, 400),
          "augment": "none"}),
        (PAPER_TRAINING, {"epochs": 20, "batch_size": 128, "optimizer": "rmsprop", "lr": 1e-3,
                          "optimizer_arg": (("alpha", 0.9), ("eps", 1e-7)),
                          "weight_decay": 0.0, "schedule": "constant", "augment": "none"}),
        (RouteSettings(), {"depths": 4, "router_epochs": 30}),
    ],
    ids=["primenet", "primenet-training", "detach", "cnsn", "nsn", "routing-paper", "routing"],
)  # fmt: skip
def test_other_methods_are_the_papers(settings: object, wanted: dict[str, object]) -> None:
    assert not differing(settings, wanted)


@pytest.mark.parametrize(("epochs", "falls"), [(300, (50, 100, 150)), (30, (5, 10, 15)), (2, (1,)), (7, (1, 2, 4))])
def test_cnsns_rate_falls_at_the_papers_shares_of_the_epochs(epochs: int, falls: tuple[int, ...]) -> None:
    found = falling("cnsn", replace(CNSN, epochs=epochs, schedule="step", first_epoch=4))
    assert found.milestones == tuple(4 + fall for fall in falls)
