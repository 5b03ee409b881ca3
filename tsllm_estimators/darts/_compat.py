"""The one module that touches names of darts 0.48 which darts does not document as public."""

from darts.models.forecasting.pl_forecasting_module import PLForecastingModule
from darts.models.forecasting.torch_forecasting_model import MixedCovariatesTorchModel
from darts.utils.data.torch_datasets.utils import (
    PLModuleInput,
    PLModuleOutput,
    TorchInferenceBatch,
    TorchTrainingSample,
)
from darts.utils.data.torch_datasets.utils import (
    _train_sample_from_shapes as train_sample_from_shapes,
)
from darts.utils.likelihood_models.torch import TorchLikelihood

__all__ = [
    "MixedCovariatesTorchModel",
    "PLForecastingModule",
    "PLModuleInput",
    "PLModuleOutput",
    "TorchInferenceBatch",
    "TorchLikelihood",
    "TorchTrainingSample",
    "train_sample_from_shapes",
]
