"""The demo: its data are what they say, equal each time, and each config says what it shows.

Proved here: sizes, class shares, determinism and disjointness of both parts; the exact number of
flipped labels; standardisation by the training part alone; the two cases of the first article;
dead units are dead, class weights and label smoothing reach the loss; every config is built by
the parser of LightningCLI and takes two steps; the advice about workers is silent only while the
demo's data are attached. Whether the callback finds in each run what the header says is tested
with the callback.
"""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor

from lightning_lossacc import demo

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
# What each header must name: the event or cause that the run was tuned to show.
SHOWN = {
    "article": "class-trade-off",
    "breast_cancer": "over-confidence",
    "dead_relu": "dead",
    "digits": "over-confidence",
    "digits_label_noise": "label noise",
    "fraud": "95 %",
    "healthy": "no event",
    "learning_rate_too_high": "oscillat",
}


def parts(data: demo.Table) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and target of the training part, features and target of the validation part."""
    data.setup()
    data.teardown()
    train = data.train_dataloader().dataset.tensors
    val = data.val_dataloader().dataset.tensors
    return *train, *val


# One case a table. 250 of 1797, 100 of 569 leave remainder rows; 200 of 2200 divides evenly.
# The counts are facts about the tables, written down rather than computed.
TABLES: list[tuple[type[demo.Table], int, dict[str, Any], int, list[int]]] = [
    (demo.Digits, 250, {}, 64, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]),
    (demo.BreastCancer, 100, {}, 30, [212, 357]),
    (demo.Wine, 89, {}, 13, [59, 71, 48]),
    (demo.Fraud, 200, {"num_rows": 2200}, 200, [2090, 110]),
]
each_table = pytest.mark.parametrize(
    ("table", "num_train", "options", "num_features", "class_rows"),
    TABLES,
    ids=[row[0].__name__ for row in TABLES],
)


@each_table
def test_sizes_and_class_shares(
    table: type[demo.Table],
    num_train: int,
    options: dict[str, Any],
    num_features: int,
    class_rows: list[int],
) -> None:
    train_features, train_target, val_features, val_target = parts(table(num_train=num_train, **options))
    num_rows = sum(class_rows)
    assert train_features.shape == (num_train, num_features)
    assert val_features.shape == (num_rows - num_train, num_features)
    assert train_features.dtype == torch.float32
    assert train_target.dtype == torch.int64
    in_train = train_target.bincount(minlength=len(class_rows))
    in_val = val_target.bincount(minlength=len(class_rows))
    assert (in_train + in_val).tolist() == class_rows
    expected = torch.tensor(class_rows) * num_train / num_rows
    assert (in_train - expected).abs().max() < 1 + 1e-6


def test_fraud_is_exactly_five_percent_in_both_parts() -> None:
    for seed in range(5):
        _, train_target, _, val_target = parts(demo.Fraud(num_train=200, seed=seed))
        assert train_target.bincount().tolist() == [190, 10]
        assert val_target.bincount().tolist() == [1900, 100]


@each_table
def test_parts_share_no_row_and_cover_the_table(
    table: type[demo.Table],
    num_train: int,
    options: dict[str, Any],
    num_features: int,
    class_rows: list[int],
) -> None:
    data = table(num_train=num_train, **options)
    parts(data)
    together = torch.cat([data.train_index, data.val_index])
    assert together.sort().values.tolist() == list(range(sum(class_rows)))
    # Positions must be those of the rows: the target says so.
    assert data.rows()[1][data.val_index].equal(data.val_dataloader().dataset.tensors[1])


@each_table
def test_equal_seeds_give_equal_data_whatever_the_global_seed(
    table: type[demo.Table],
    num_train: int,
    options: dict[str, Any],
    num_features: int,
    class_rows: list[int],
) -> None:
    torch.manual_seed(1)
    first = parts(table(num_train=num_train, seed=3, label_noise=0.1, **options))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = parts(table(num_train=num_train, seed=3, label_noise=0.1, **options))
    assert torch.get_rng_state().equal(state)
    other = parts(table(num_train=num_train, seed=4, label_noise=0.1, **options))
    assert all(left.equal(right) for left, right in zip(first, second, strict=True))
    assert not first[0].equal(other[0])


def test_features_are_standardised_by_the_training_part() -> None:
    train_features, _, val_features, _ = parts(demo.BreastCancer(num_train=100))
    assert train_features.mean(dim=0).abs().max() < 1e-5
    assert (train_features.std(dim=0, correction=0) - 1).abs().max() < 1e-4
    assert val_features.mean(dim=0).abs().max() > 1e-3


def test_constant_columns_stay_finite() -> None:
    train_features, _, val_features, _ = parts(demo.Digits(num_train=250))
    assert (train_features.std(dim=0) == 0).any()
    assert train_features.isfinite().all()
    assert val_features.isfinite().all()


# None, a share that does not divide evenly (30.03 of 91), the config's share, all.
@pytest.mark.parametrize(("num_train", "share"), [(100, 0.0), (91, 0.33), (600, 0.2), (50, 1.0)])
def test_label_noise_flips_the_exact_number_of_training_labels(num_train: int, share: float) -> None:
    clean = parts(demo.Digits(num_train=num_train))
    noisy = parts(demo.Digits(num_train=num_train, label_noise=share))
    assert int((clean[1] != noisy[1]).sum()) == round(share * num_train)
    assert noisy[1].min() >= 0
    assert noisy[1].max() <= 9
    assert clean[3].equal(noisy[3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, "between 1 and 177"),
        ({"num_train": 178}, "between 1 and 177"),
        ({"num_train": 89, "label_noise": 1.5}, "`label_noise`"),
        ({"num_train": 89, "label_noise": -0.1}, "`label_noise`"),
    ],
)
def test_impossible_data_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parts(demo.Wine(**options))


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"lightning-lossacc\[demo\]"):
        demo.Wine(num_train=89).rows()


def test_two_cases_have_the_smaller_loss_with_the_worse_accuracy() -> None:
    first, second, target = demo.two_cases()
    for probabilities in (first, second):
        assert probabilities.shape == (3, 3)
        assert torch.allclose(probabilities.sum(dim=1), torch.ones(3))
    losses = [float(F.nll_loss(case.log(), target)) for case in (first, second)]
    accuracies = [float((case.argmax(dim=1) == target).float().mean()) for case in (first, second)]
    assert losses == pytest.approx([-(2 * math.log(0.8) + math.log(0.44)) / 3, math.log(2)])
    assert accuracies == pytest.approx([2 / 3, 1])
    assert losses[0] < losses[1]
    assert accuracies[0] < accuracies[1]


def test_far_negative_hidden_bias_kills_every_unit() -> None:
    features = parts(demo.BreastCancer(num_train=300))[0]
    logits = demo.Classifier(30, 2, hidden_bias=-20.0)(features)
    assert logits.equal(logits[:1].expand_as(logits))
    alive = demo.Classifier(30, 2)(features)
    assert not alive.equal(alive[:1].expand_as(alive))


def test_weights_and_smoothing_reach_the_loss() -> None:
    model = demo.Classifier(4, 3, (), class_weights=(1, 2, 3), label_smoothing=0.1)
    model.log = lambda *arguments, **options: None
    features, target = torch.randn(8, 4), torch.randint(0, 3, (8,))
    expected = F.cross_entropy(model(features), target, weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)
    assert model.training_step((features, target), 0).equal(expected)
    with pytest.raises(ValueError, match="`class_weights`"):
        demo.Classifier(4, 3, class_weights=(1.0, 2.0))


def test_momentum_reaches_plain_gradient_descent_alone() -> None:
    assert demo.Classifier(4, 3, optimizer="sgd", momentum=0.9).configure_optimizers().defaults["momentum"] == 0.9
    assert demo.Classifier(4, 3, optimizer="sgd").configure_optimizers().defaults["momentum"] == 0
    with pytest.raises(ValueError, match="`momentum` to be a share"):
        demo.Classifier(4, 3, optimizer="sgd", momentum=1.0)
    with pytest.raises(ValueError, match="optimizer 'sgd', but got 'adam'"):
        demo.Classifier(4, 3, momentum=0.9)


def test_training_rows_are_those_that_are_trained_on() -> None:
    """Same rows, same wrong labels, in the order of the table, and no filter of warnings is left behind."""
    arguments = {"num_train": 100, "label_noise": 0.2, "seed": 3}
    filters = list(warnings.filters)
    rows = demo.TrainingRows(demo.Digits(**arguments))
    assert warnings.filters == filters
    data = demo.Digits(**arguments)
    data.setup()
    features, target = data.train_dataloader().dataset.tensors
    data.teardown()
    assert len(rows) == 100
    assert torch.stack([rows[place][0] for place in range(100)]).equal(features)
    assert torch.stack([rows[place][1] for place in range(100)]).equal(target)


def test_rows_to_follow_are_the_rows_of_the_same_config() -> None:
    settings = read(next(path for path in CONFIGS if path.stem == "digits_label_noise"))
    (monitor,) = settings["trainer"]["callbacks"]
    assert monitor["init_args"]["train_probe"]["init_args"]["table"] == settings["data"]


def read(config: Path) -> dict[str, Any]:
    return yaml.safe_load(config.read_text(encoding="utf-8"))


def build(config: Path) -> tuple[LightningModule, LightningDataModule]:
    """Model and data as LightningCLI builds them: same parser, unknown arguments refused."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    settings = read(config)
    parsed = parser.parse_object({key: settings[key] for key in ("model", "data")})
    # Renamed in jsonargparse 4.49; the old name warns.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    built = instantiate(parsed)
    return built.model, built.data


each_config = pytest.mark.parametrize("config", CONFIGS, ids=[path.stem for path in CONFIGS])


def test_there_is_a_config_for_each_situation() -> None:
    assert {path.stem for path in CONFIGS} == set(SHOWN)


@each_config
def test_header_says_what_the_config_shows(config: Path) -> None:
    lines = config.read_text(encoding="utf-8").splitlines()
    header = "\n".join(line for line in lines[: lines.index("seed_everything: 0")])
    assert all(line.startswith("#") for line in header.splitlines())
    assert SHOWN[config.stem] in header
    assert "Expect" in header
    assert "Remedy" in header or config.stem == "healthy"


@each_config
def test_trainer_section(config: Path) -> None:
    trainer = read(config)["trainer"]
    assert trainer["accelerator"] == "cpu"
    assert [entry["class_path"] for entry in trainer["callbacks"]] == ["lightning_lossacc.LossAccuracyMonitor"]
    folders = [Path(entry["init_args"]["save_dir"]) / entry["init_args"]["name"] for entry in trainer["logger"]]
    assert folders == [Path("runs") / config.stem, Path("runs") / config.stem / "csv"]


@each_config
def test_config_takes_two_steps(config: Path, tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    model, data = build(config)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = Trainer(
        fast_dev_run=2,
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        # Lightning's own import of a deprecated torch name.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        trainer.fit(model, datamodule=data)
    # All rows in one step are one batch.
    assert trainer.global_step == min(2, len(data.train_dataloader()))
    assert {"train_loss", "val_loss", "val_accuracy"} == set(trainer.callback_metrics)
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())
    after = list(model.parameters())
    assert any(not left.equal(right) for left, right in zip(before, after, strict=True))


def test_advice_about_workers_is_silent_only_while_attached() -> None:
    advice = "The 'train_dataloader' does not have many workers which may be a bottleneck."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = demo.Wine(num_train=89)
        data.setup()
        warnings.warn(advice, PossibleUserWarning, stacklevel=1)
        with pytest.raises(PossibleUserWarning, match="another"):
            warnings.warn("another", PossibleUserWarning, stacklevel=1)
        data.teardown()
        with pytest.raises(PossibleUserWarning, match="workers"):
            warnings.warn(advice, PossibleUserWarning, stacklevel=1)


def test_demo_knows_nothing_of_the_callback() -> None:
    source = Path(demo.__file__).read_text(encoding="utf-8")
    assert "lightning_lossacc" not in source
