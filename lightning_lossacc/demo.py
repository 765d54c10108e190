"""Ordinary Lightning modules and data for `lossacc demo`: a user's code that knows no callback.

All data are on disk or made from a seed: scikit-learn's bundled tables and synthetic transactions.
Legend for shapes: N rows, F features, C classes.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

_MORE_WORKERS = r"The '\w+_dataloader' does not have many workers"
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
_OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


class Classifier(LightningModule):
    """A multilayer perceptron trained with cross-entropy; two classes have two logits.

    Logs once an epoch `train_loss`, `val_loss` (the training objective on validation rows, label
    smoothing and class weights included) and `val_accuracy` (share of rows, in [0, 1]).

    Args:
        num_features: Columns F of the input.
        num_classes: Classes C, at least 2.
        hidden_sizes: Units of each hidden layer; empty for a linear classifier.
        activation: Nonlinearity after each hidden layer.
        dropout: Probability in [0, 1) of dropping a hidden unit, after each activation.
        optimizer: "sgd" is gradient descent, plain unless `momentum` is given.
        learning_rate: Step size, constant over the training.
        weight_decay: L2 penalty of "adam" and "sgd", decoupled decay of "adamw".
        label_smoothing: Share in [0, 1) of the target that is spread evenly over all classes.
        class_weights: One weight a class; none for equal weights.
        hidden_bias: Value at which all hidden biases start; none for PyTorch's default. Far below
            zero, such as -20, every ReLU unit is dead before the first step.
        momentum: Share in [0, 1) of the step before that "sgd" adds to each step (Polyak, 1964).

    Raises:
        ValueError: If the number of class weights is not `num_classes`, or `momentum` is out of range
            or given to another optimizer than "sgd".
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        hidden_sizes: tuple[int, ...] = (256, 256),
        activation: Literal["relu", "leaky_relu", "gelu", "tanh", "sigmoid"] = "relu",
        dropout: float = 0.0,
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: tuple[float, ...] | None = None,
        hidden_bias: float | None = None,
        momentum: float = 0.0,
    ) -> None:
        super().__init__()
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(
                f"Expected `class_weights` to have {num_classes} numbers, one a class, but got {len(class_weights)}."
            )
        if not 0 <= momentum < 1:
            raise ValueError(f"Expected `momentum` to be a share in [0, 1), but got {momentum}.")
        if momentum > 0 and optimizer != "sgd":
            raise ValueError(f"Expected `momentum` to come with optimizer 'sgd', but got {optimizer!r}.")
        self.save_hyperparameters()
        layers: list[nn.Module] = []
        width = num_features
        for hidden_size in hidden_sizes:
            hidden = nn.Linear(width, hidden_size)
            if hidden_bias is not None:
                nn.init.constant_(hidden.bias, hidden_bias)
            layers += [hidden, _ACTIVATIONS[activation]()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            width = hidden_size
        self.network = nn.Sequential(*layers, nn.Linear(width, num_classes))
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, F)."""
        return self.network(features)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch of features (N, F) and target (N,)."""
        features, target = batch
        loss = self._loss(self(features), target)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch of features (N, F) and target (N,)."""
        features, target = batch
        logits = self(features)
        loss = self._loss(logits, target)
        self.val_accuracy(logits, target)
        self.log("val_loss", loss, prog_bar=True)
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Optimizer:
        """The chosen optimizer over all parameters."""
        more = {"momentum": self.momentum} if self.optimizer == "sgd" else {}
        return _OPTIMIZERS[self.optimizer](
            self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, **more
        )

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, weight=self.class_weights, label_smoothing=self.label_smoothing)


class Table(LightningDataModule, ABC):
    """Rows split once into a training and a validation part, by seed alone.

    Features are standardised with mean and standard deviation of the training part; a column that
    is constant there is only centred. Label noise touches training labels only.

    Args:
        num_train: Rows of the training part; all others are validation rows.
        label_noise: Share in [0, 1] of the training rows whose label is replaced by another class.
        seed: Seed of the split and of the label noise; independent of the global seed.
        batch_size: Rows in a training batch.
        val_batch_size: Rows in a validation batch.

    Attributes:
        train_index: Positions (num_train,) of the training rows in the whole table, ascending.
        val_index: Positions of the validation rows in the whole table, ascending.
    """

    train_index: Tensor
    val_index: Tensor

    def __init__(
        self,
        num_train: int,
        label_noise: float = 0.0,
        seed: int = 0,
        batch_size: int = 32,
        val_batch_size: int = 512,
    ) -> None:
        super().__init__()
        if not 0 <= label_noise <= 1:
            raise ValueError(f"Expected `label_noise` to be a share in [0, 1], but got {label_noise}.")
        self.num_train = num_train
        self.label_noise = label_noise
        self.seed = seed
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size

    @abstractmethod
    def rows(self) -> tuple[Tensor, Tensor]:
        """Features (N, F) float32 and target (N,) int64 of the whole table, in its own order."""

    def setup(self, stage: str | None = None) -> None:
        """Splits, standardises and adds label noise; the same for every stage.

        Until `teardown`, Lightning's advice to use more workers is silent: tensors in memory load
        faster without.

        Raises:
            ValueError: If `num_train` leaves no row for training or validation.
        """
        warnings.filterwarnings("ignore", message=_MORE_WORKERS, category=PossibleUserWarning)
        self._silence = warnings.filters[0]
        features, target = self.rows()
        if not 0 < self.num_train < len(target):
            raise ValueError(
                f"Expected `num_train` to be between 1 and {len(target) - 1}, but got "
                f"{self.num_train}; the table has {len(target)} rows."
            )
        generator = torch.Generator().manual_seed(self.seed)
        self.train_index, self.val_index = split(target, self.num_train, generator)
        train_features = features[self.train_index]
        deviation = train_features.std(dim=0, correction=0)
        deviation[deviation == 0] = 1
        features = (features - train_features.mean(dim=0)) / deviation
        train_target = flip_labels(target[self.train_index], self.label_noise, int(target.max()) + 1, generator)
        self._train = TensorDataset(features[self.train_index], train_target)
        self._val = TensorDataset(features[self.val_index], target[self.val_index])

    def teardown(self, stage: str | None = None) -> None:
        """Lets warnings through again."""
        if self._silence in warnings.filters:
            warnings.filters.remove(self._silence)

    def train_dataloader(self) -> DataLoader:
        """Training rows in random order, drawn from the global seed."""
        return DataLoader(self._train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Validation rows in the order of the table."""
        return DataLoader(self._val, batch_size=self.val_batch_size)


class Digits(Table):
    """Handwritten digits: 1 797 images, 8 x 8 pixels, 10 classes (Alpaydin and Kaynak, 1998)."""

    def rows(self) -> tuple[Tensor, Tensor]:
        """Features (1797, 64) and target (1797,)."""
        return _bundled("digits")


class BreastCancer(Table):
    """Wisconsin breast cancer: 569 biopsies, 30 features, 63 % benign (Street et al., 1993)."""

    def rows(self) -> tuple[Tensor, Tensor]:
        """Features (569, 30) and target (569,); 0 is malignant, 1 is benign."""
        return _bundled("breast_cancer")


class Wine(Table):
    """178 wines of 3 growers (59, 71, 48), 13 chemical features (Forina et al., 1991)."""

    def rows(self) -> tuple[Tensor, Tensor]:
        """Features (178, 13) and target (178,)."""
        return _bundled("wine")


class Fraud(Table):
    """Synthetic transactions, 5 % fraud (class 1): exactly, where `num_train` divides evenly.

    Features are independent normal numbers with standard deviation 1 and mean 0, or `shift` for
    fraud: the best detector separates the classes by shift * sqrt(num_features) deviations.

    Args:
        num_rows: Rows of the table.
        num_features: Columns of the table.
        shift: Mean of every feature of fraud.
        table: Arguments of `Table`; `seed` draws the rows as well.
    """

    def __init__(self, num_rows: int = 2200, num_features: int = 200, shift: float = 0.1, **table: Any) -> None:
        super().__init__(**table)
        self.num_rows = num_rows
        self.num_features = num_features
        self.shift = shift

    def rows(self) -> tuple[Tensor, Tensor]:
        """Features (num_rows, num_features) and target (num_rows,); every 20th is fraud."""
        generator = torch.Generator().manual_seed(self.seed)
        target = (torch.arange(self.num_rows) % 20 == 0).long()
        features = torch.randn(self.num_rows, self.num_features, generator=generator)
        return features + self.shift * target.unsqueeze(1), target


class TrainingRows(Dataset[tuple[Tensor, Tensor]]):
    """The training rows of a table in its order, labels as they are trained on: `train_probe` of a configuration.

    Args:
        table: The data that are trained on; the same arguments give the same rows.
    """

    def __init__(self, table: Table) -> None:
        table.setup()
        table.teardown()
        self._rows = table.train_dataloader().dataset

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._rows[index]


def split(target: Tensor, num_train: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions of training and validation rows, ascending, each class in proportion to one row.

    Systematic sampling (Madow and Madow, 1944): rows are shuffled, sorted by class, and taken at
    equal distances.
    """
    order = torch.randperm(len(target), generator=generator)
    order = order[target[order].argsort(stable=True)]
    start = torch.rand(1, generator=generator, dtype=torch.float64)
    taken = ((torch.arange(num_train) + start) * len(target) / num_train).long()
    is_train = torch.zeros(len(target), dtype=torch.bool)
    is_train[order[taken]] = True
    return is_train.nonzero().squeeze(1), (~is_train).nonzero().squeeze(1)


def flip_labels(target: Tensor, share: float, num_classes: int, generator: torch.Generator) -> Tensor:
    """A copy of target (N,) in which exactly round(share * N) labels are another class."""
    num_flipped = round(share * len(target))
    flipped = torch.randperm(len(target), generator=generator)[:num_flipped]
    shift = torch.randint(1, num_classes, (num_flipped,), generator=generator)
    noisy = target.clone()
    noisy[flipped] = (target[flipped] + shift) % num_classes
    return noisy


def two_cases() -> tuple[Tensor, Tensor, Tensor]:
    """Two predictions of the same rows: the first has less loss and the worse accuracy.

    Case 1: two rows surely right, one wrong by a hair; cross-entropy 0.423 nats, accuracy 2/3.
    Case 2: all rows right with probability 0.50; cross-entropy ln 2 = 0.693 nats, accuracy 1.

    Returns:
        Probabilities (3, 3) of case 1, probabilities (3, 3) of case 2, target (3,).
    """
    smaller_loss = torch.tensor([[0.80, 0.10, 0.10], [0.10, 0.80, 0.10], [0.10, 0.46, 0.44]])
    better_accuracy = torch.tensor([[0.50, 0.25, 0.25], [0.25, 0.50, 0.25], [0.25, 0.25, 0.50]])
    return smaller_loss, better_accuracy, torch.tensor([0, 1, 2])


def _bundled(name: Literal["digits", "breast_cancer", "wine"]) -> tuple[Tensor, Tensor]:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"Expected scikit-learn to be installed for the {name} data, but it is not; install "
            "`lightning-lossacc[demo]`."
        ) from error
    features, target = getattr(datasets, f"load_{name}")(return_X_y=True)
    return torch.from_numpy(features).float(), torch.from_numpy(target).long()
